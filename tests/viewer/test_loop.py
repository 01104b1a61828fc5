"""What is drawn next and how finely, with a clock of its own: no browser, no waiting."""

import threading

import numpy as np
import pytest

from hashfield.errors import ConfigError
from hashfield.viewer.loop import PICTURES_PER_S, SHARE_MOVING, SHARE_STILL, FixedSource, RenderLoop, TimeShare
from hashfield.viewer.pictures import canvas_of
from tests.viewer.fakes import Clock, Looker, SlowScene


def make_loop(seconds_per_pixel: float) -> tuple[RenderLoop, Clock, SlowScene]:
    """A loop whose time passes by drawing alone."""
    clock = Clock()
    scene = SlowScene(clock, seconds_per_pixel)
    return RenderLoop(FixedSource(scene), clock), clock, scene


def rest(loop: RenderLoop, clock: Clock, seconds: float = 1000.0) -> None:
    """Work until there is nothing to do."""
    end = clock() + seconds
    clock.now += 0.2
    while clock() < end:
        if not loop.work():
            return
    pytest.fail("there was something to do all the time")


@pytest.mark.parametrize("seconds_per_pixel", [1e-7, 1e-6, 1e-5, 1e-4, 5e-4])
def test_whoever_moves_gets_five_pictures_a_second_whatever_a_pixel_costs(seconds_per_pixel: float) -> None:
    loop, clock, _ = make_loop(seconds_per_pixel)
    looker = Looker(loop)
    for k in range(25):
        looker.ask(0.05 * k, rows=720)
        loop.work()
        clock.now += 0.01  # the way to the browser
    intervals = np.diff(looker.times)[4:]  # the first ones find out what a pixel costs
    assert intervals.max() <= 1 / PICTURES_PER_S
    # and the time is used: a picture is not smaller than it needs to be
    sizes = [shown.width * shown.height for shown in looker.shown[10:]]
    assert min(sizes) * seconds_per_pixel > 0.05 or looker.shown[-1].height == 720


def test_costs_that_jump_are_followed() -> None:
    loop, _clock, scene = make_loop(1e-6)
    looker = Looker(loop)
    for k in range(30):
        if k == 15:
            scene.seconds_per_pixel *= 20
        looker.ask(0.05 * k, rows=720)
        loop.work()
    intervals = np.diff(looker.times)
    assert (intervals > 1 / PICTURES_PER_S).sum() <= 1


def test_at_rest_the_picture_becomes_what_the_model_shows() -> None:
    loop, clock, scene = make_loop(2e-5)
    looker = Looker(loop)
    wish = looker.ask()
    rest(loop, clock)
    whole = canvas_of(scene, wish, wish.rows)
    assert looker.shown[-1].is_final and not looker.shown[0].is_final
    assert np.array_equal(looker.pictures[-1], whole.rows(0, whole.height))
    assert looker.pictures[0].shape[0] < 120
    assert not loop.work()  # nothing is drawn twice


@pytest.mark.parametrize("output", ["depth", "normals", "opacity"])
def test_strips_are_of_one_picture(output: str) -> None:
    loop, clock, scene = make_loop(3e-4)
    looker = Looker(loop)
    looker.ask(output=output, rows=60)
    rest(loop, clock)
    quick = looker.watcher.canvas
    assert looker.shown[-1].is_final and looker.shown[-1].height == 60
    wish = looker.watcher.wish
    assert wish is not None
    assert np.array_equal(looker.pictures[-1], canvas_of(scene, wish, 60, like=quick).rows(0, 60))


def test_a_new_wish_waits_for_one_strip_only() -> None:
    loop, clock, _ = make_loop(1e-4)
    looker = Looker(loop)
    looker.ask(rows=400)
    loop.work()
    clock.now += 0.2
    for _ in range(3):
        loop.work()
    asked = clock()
    looker.ask(1.0, rows=400)
    loop.work()
    assert clock() - asked < 0.2 and not looker.shown[-1].is_final


def test_only_the_newest_wish_counts() -> None:
    loop, _, scene = make_loop(0.0)
    looker = Looker(loop)
    for k in range(10):
        wish = looker.ask(0.3 * k)
    assert loop.work()
    assert len(looker.pictures) == 1
    canvas = canvas_of(scene, wish, looker.shown[0].height)
    assert np.array_equal(looker.pictures[0], canvas.rows(0, canvas.height))


def test_ten_who_look_are_served_in_turn() -> None:
    loop, clock, _ = make_loop(1e-5)
    lookers = [Looker(loop) for _ in range(10)]
    begun = clock()
    for k in range(300):
        for looker in lookers:
            if not looker.watcher.is_waiting:
                looker.ask(0.01 * k)
        loop.work()
    counts = [len(looker.pictures) for looker in lookers]
    assert max(counts) - min(counts) <= 1
    assert min(counts) / (clock() - begun) > PICTURES_PER_S
    rest(loop, clock)
    assert all(looker.shown[-1].is_final for looker in lookers)


def test_one_who_cannot_be_drawn_for_does_not_keep_others_waiting() -> None:
    loop, clock, _scene = make_loop(1e-6)
    bad, good = Looker(loop), Looker(loop)
    bad.ask(output="difference")  # no photos
    good.ask()
    rest(loop, clock)
    assert bad.lines == ["the photos are not read"] and good.shown[-1].is_final
    bad.ask()
    rest(loop, clock)
    assert bad.shown[-1].is_final


def test_an_error_of_the_model_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    loop, clock, scene = make_loop(1e-6)
    looker = Looker(loop)

    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("no")

    scene.render = broken  # type: ignore[method-assign, assignment]
    looker.ask()
    rest(loop, clock)
    assert len(looker.lines) == 1 and "ZeroDivisionError" in looker.lines[0] and not looker.pictures


def test_a_source_that_fails_does_not_end_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    loop, clock, _ = make_loop(1e-6)
    looker = Looker(loop)
    looker.ask()
    current = loop.source.current

    def broken() -> None:
        raise MemoryError

    loop.source.current = broken  # type: ignore[method-assign, assignment]
    assert not loop.work() and "the viewer failed" in caplog.text
    loop.source.current = current  # type: ignore[method-assign]
    rest(loop, clock)
    assert looker.shown[-1].is_final


def test_who_has_left_is_not_drawn_for() -> None:
    loop, _clock, _ = make_loop(1e-6)
    looker = Looker(loop)
    looker.ask()
    loop.remove(looker.watcher)
    loop.remove(looker.watcher)
    assert not loop.work() and not looker.pictures and not loop.is_needed


@pytest.mark.parametrize("leaves", ["at rest", "while the quick picture is drawn", "while the finished one is drawn"])
def test_who_has_left_holds_no_pictures(leaves: str) -> None:
    loop, clock, scene = make_loop(1e-5)
    looker = Looker(loop)
    looker.ask()
    render = scene.render

    def leave(*arguments):
        loop.remove(looker.watcher)
        return render(*arguments)

    if leaves == "while the quick picture is drawn":
        scene.render = leave  # type: ignore[method-assign]
    assert loop.work() and bool(looker.pictures) == (leaves != "while the quick picture is drawn")
    if leaves == "while the finished one is drawn":
        clock.now += 0.2
        assert loop.work() and looker.watcher.refining is not None
        scene.render = leave  # type: ignore[method-assign]
        assert loop.work()
    elif leaves == "at rest":
        rest(loop, clock)
        assert looker.watcher.picture is not None and looker.watcher.canvas is not None
        loop.remove(looker.watcher)
    watcher = looker.watcher
    assert watcher.picture is None and watcher.canvas is None and watcher.refining is None and not looker.lines
    assert not loop.work() and not loop.is_needed


def test_a_model_that_changes_is_drawn_again_without_a_step_back() -> None:
    loop, clock, scene = make_loop(1e-5)
    looker = Looker(loop)
    looker.ask()
    rest(loop, clock)
    before = len(looker.shown)
    scene.value = 1.0
    loop.source.current = lambda: (1, scene)  # type: ignore[method-assign]
    rest(loop, clock)
    assert {shown.height for shown in looker.shown[before:]} == {120}
    assert looker.pictures[-1][60, 90, 2] == 255


def test_a_job_is_done_between_and_can_be_left_off() -> None:
    loop, clock, _scene = make_loop(1e-4)
    looker = Looker(loop)
    wish = looker.ask(rows=200)
    found: list[np.ndarray] = []

    def work():
        yield from loop.painted(wish, 96, 64, found.append)

    loop.start(work())
    rest(loop, clock)
    assert found[0].shape == (64, 96, 3) and looker.shown[-1].is_final
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield
        finally:
            closed.set()

    job = endless()
    loop.start(job)
    for _ in range(4):
        assert loop.work()
    loop.cancel(job)
    rest(loop, clock)
    assert closed.is_set() and not loop._jobs


def test_a_job_that_fails_ends_alone(caplog: pytest.LogCaptureFixture) -> None:
    loop, clock, _ = make_loop(1e-6)

    def work():
        yield
        raise ConfigError("no")

    loop.start(work())
    rest(loop, clock)
    assert not loop._jobs and "failed" in caplog.text


class Steps:
    """A training whose steps take a while."""

    def __init__(self, seconds_per_pixel: float, step_seconds: float) -> None:
        self.loop, self.clock, self.scene = make_loop(seconds_per_pixel)
        self.loop.has_resting_limit = True
        self.share, self.seconds, self.version = TimeShare(self.loop), step_seconds, 0
        self.share.on_step = self._stepped
        self.loop.source.current = lambda: (self.version, self.scene)  # type: ignore[method-assign]

    def _stepped(self) -> None:
        self.version += 1

    def run(self, n_steps: int) -> float:
        """Seconds that some steps take, with what is drawn between."""
        begun = self.clock()
        for _ in range(n_steps):
            self.clock.now += self.seconds
            assert self.share.between_steps() == "go"
        return self.clock() - begun


@pytest.mark.parametrize("seconds_per_pixel", [1e-6, 3e-5, 3e-4])
@pytest.mark.parametrize("step_seconds", [0.004, 0.05])
def test_training_is_slowed_by_at_most_the_share(seconds_per_pixel: float, step_seconds: float) -> None:
    steps = Steps(seconds_per_pixel, step_seconds)
    n = round(20 / step_seconds)
    assert steps.run(n) == pytest.approx(n * step_seconds)  # nobody looks: nothing at all
    looker = Looker(steps.loop)
    looker.ask()
    total = steps.run(n)
    assert 1 - n * step_seconds / total <= SHARE_STILL + 0.02
    assert looker.pictures
    shown, begun = len(looker.pictures), steps.clock()
    total = 0.0
    for k in range(n):
        looker.ask(0.01 * k)
        total += steps.run(1)
    assert 1 - n * step_seconds / total <= SHARE_MOVING + 0.02
    assert (len(looker.pictures) - shown) / (steps.clock() - begun) >= PICTURES_PER_S


def test_a_training_can_be_paused_and_saved() -> None:
    steps = Steps(1e-5, 0.05)
    looker = Looker(steps.loop)
    looker.ask()
    steps.run(3)
    steps.share.is_paused = True
    steps.loop.has_resting_limit = False
    before = steps.version
    steps.clock.now += 1.0
    for _ in range(20):
        assert steps.share.between_steps() == "wait"
    assert steps.version == before and looker.shown[-1].is_final
    steps.share.wants_save, steps.share.is_paused = True, False
    assert steps.share.between_steps() == "save"
    assert steps.share.between_steps() == "go"


def test_a_thread_draws_and_ends() -> None:
    loop = RenderLoop(FixedSource(SlowScene()))
    looker = Looker(loop)
    thread = threading.Thread(target=loop.run)
    thread.start()
    done = threading.Event()
    looker.watcher.show = lambda picture, shown: done.set() if shown.is_final else None
    looker.ask()
    assert done.wait(20)
    loop.stop()
    thread.join(5)
    assert not thread.is_alive()
