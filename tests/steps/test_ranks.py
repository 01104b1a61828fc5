"""Several ranks: their batches together lead to the parameters of one process, and they stay equal bit for bit; what
they tell each other, share out, and say when one of them fails.
"""

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from hashfield.data.demo_picture import save_demo_picture
from hashfield.data.pictures import read_picture
from hashfield.errors import ConfigError, RanksError
from hashfield.ops.touched_rows import summed_rows
from hashfield.steps import gradient_mean, rays_host
from hashfield.steps import ranks as ranks_module
from hashfield.steps.joining import _roll_call, joined
from hashfield.steps.ranks import Ranks, Turns
from hashfield.tasks.image import ImageTask
from hashfield.tasks.image_config import PRESETS as IMAGE_PRESETS
from hashfield.tasks.nerf import NerfTask
from hashfield.tasks.sdf import SdfTask
from hashfield.train.task import Task

from ..tasks.scenes import small_scene, tiny_config
from ..tasks.test_sdf import tiny_config as tiny_sdf
from ..tasks.test_sdf import torus_mesh
from ..threads_as_ranks import as_ranks

ROUNDED = 6e-3
"""Bound on a gradient's relative error where bfloat16 numbers were rounded otherwise: on the wire, or in the networks,
whose gradients are scaled by a number of rays that is another power of two, or none."""
SMALL_LEVEL = 2**10
"""Entries from which on levels travel as touched entries in these tests, whose tables are small."""


class Trained:
    """What some steps of a task led to."""

    def __init__(self, task: Task, n_steps: int, saved: "Trained | None" = None) -> None:
        """Args:
        task: Is trained.
        n_steps: So often.
        saved: What the task goes on from; None: it begins.
        """
        if saved is None:
            task.begin()
        else:
            task.restore(saved.tensors, saved.values)
        steps = [task.step(k, k / 100) for k in range(n_steps)]
        self.figures = [(s.loss, s.squared_error, s.n_rays, s.n_samples) for s in steps]
        tensors, self.values = task.state()
        self.tensors = {name: value.clone() for name, value in tensors.items()}
        model: Any = task.model()
        self.field = model


def nerf(**changes: Any) -> NerfTask:
    return NerfTask(tiny_config(**changes), small_scene(), seed=3)


def compare(alone: Trained, found: list[Trained], gradient: float) -> None:
    """All ranks hold the same bits and random numbers, and after one step the moments of one process.

    Args:
        alone: One process.
        found: Each rank.
        gradient: Bound on the relative error of each tensor's gradient.
    """
    for other in found:
        assert other.figures == found[0].figures
        assert {k: v for k, v in other.values.items() if k != "samples_per_ray"} == {
            k: v for k, v in found[0].values.items() if k != "samples_per_ray"
        }
        for name, value in other.tensors.items():
            assert torch.equal(value, found[0].tensors[name]), name
    assert found[0].values.get("random") == alone.values.get("random")
    assert found[0].values.get("n_rays") == alone.values.get("n_rays")
    assert found[0].figures[0] == pytest.approx(alone.figures[0], rel=1e-5, nan_ok=True)
    for name, value in alone.tensors.items():
        if name.endswith("moment1"):  # a tenth of the gradient
            assert float((found[0].tensors[name] - value).norm()) <= gradient * float(value.norm()), name


@pytest.mark.parametrize(
    ("n", "wire", "gradient"), [(2, "float32", 1e-5), (3, "float32", ROUNDED), (2, "bfloat16", ROUNDED)]
)
def test_batches_of_ranks_are_one_batch_of_rays(
    n: int, wire: str, gradient: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradient_mean, "LEAST_SPARSE", SMALL_LEVEL)
    found = as_ranks(n, lambda ranks: Trained(nerf(), 1), wire)
    compare(Trained(nerf(), 1), found, gradient)


def test_ranks_stay_equal_over_refreshes_of_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_mean, "LEAST_SPARSE", SMALL_LEVEL)
    found = as_ranks(3, lambda ranks: Trained(nerf(), 14), "bfloat16")
    assert found[0].values["n_refreshes"] >= 2
    for other in found[1:]:
        assert other.figures == found[0].figures
        for name, value in other.tensors.items():
            assert torch.equal(value, found[0].tensors[name]), name
    # One kept sample more or less, by rounding, changes the number of rays, and with it all random numbers that follow.
    # Where that number is held, ranks learn what one process does, until Adam, whose first steps are signs, has
    # amplified the rounding: by 0.35 % of the loss in these twelve steps, by 3.8 % in twenty.
    monkeypatch.setattr(rays_host, "next_rays", lambda *figures: 192)
    alone, held = Trained(nerf(), 12), as_ranks(3, lambda ranks: Trained(nerf(), 12), "bfloat16")
    assert alone.values["n_refreshes"] == held[0].values["n_refreshes"] >= 2
    losses = torch.tensor([[step[0] for step in run.figures] for run in (alone, held[0])])
    torch.testing.assert_close(losses[1], losses[0], rtol=0.01, atol=0.0)


def test_a_checkpoint_of_two_ranks_goes_on_with_three_or_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_mean, "LEAST_SPARSE", SMALL_LEVEL)
    saved = as_ranks(2, lambda ranks: Trained(nerf(), 3))[0]
    alone = Trained(nerf(), 1, saved)
    compare(alone, as_ranks(3, lambda ranks: Trained(nerf(), 1, saved)), ROUNDED)
    assert any(not torch.equal(alone.tensors[name], value) for name, value in saved.tensors.items())


@pytest.mark.parametrize("n", [2, 3])
def test_batches_of_ranks_are_one_batch_of_pixels(n: int, tmp_path: Path) -> None:
    preset = IMAGE_PRESETS["default"]
    with read_picture(save_demo_picture(tmp_path / "picture.png", 0, 256, 192)) as picture:

        def train(n_steps: int) -> Trained:
            return Trained(ImageTask(preset, picture, seed=1), n_steps)

        compare(train(1), as_ranks(n, lambda ranks: train(1)), 1e-5 if n == 2 else ROUNDED)


def sdf(n_steps: int) -> Trained:
    return Trained(SdfTask(tiny_sdf(), torus_mesh(), seed=1), n_steps)


def test_batches_of_ranks_are_one_batch_of_points_near_a_mesh() -> None:
    compare(sdf(1), as_ranks(2, lambda ranks: sdf(1)), 1e-5)


def scattered(ranks: Ranks, step: int) -> Tensor:
    """A rank's gradient of a table of three levels: of the first much is touched, of the others little."""
    g = torch.Generator().manual_seed(100 * step + ranks.rank)
    gradient = torch.zeros(512 + 2 * 2**15, 2)
    for rows, n in ((slice(0, 512), 400), (slice(512, 512 + 2**15), 900), (slice(512 + 2**15, 512 + 2**16), 30)):
        chosen = torch.randint(rows.start, rows.stop, (n,), generator=g)
        gradient[chosen] = torch.randn(n, 2, generator=g)
    return gradient


@pytest.mark.parametrize("wire", ["float32", "bfloat16"])
@pytest.mark.parametrize("n", [2, 3])
def test_sums_are_the_same_whichever_way_a_level_travels(n: int, wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_mean, "PROBE_STEPS", 2)
    levels = [slice(0, 512), slice(512, 512 + 2**15), slice(512 + 2**15, 512 + 2**16)]
    shares = [0.5, 0.25, 0.25][:n] if n == 3 else [0.25, 0.75]

    def work(ranks: Ranks) -> list[Any]:
        mean, found = gradient_mean.GradientMean(ranks, levels), []
        for step in range(4):
            table, matrix = scattered(ranks, step), torch.full((3, 2), 1.0 + ranks.rank)
            due = [slice(0, 512 + 2**15)] if step == 1 else [slice(0, 512 + 2**16)]
            mean.plan(table, due, round(100 * shares[ranks.rank]), 100)
            figures = mean.offer([1.0, ranks.rank], table)
            for part, rows_of in mean({"table": [table], "matrices": [matrix]}, due):
                assert not table[part].any()
                table[part] = summed_rows(rows_of(), (part.stop - part.start, 2))
            found.append((figures, table, matrix, list(mean.bytes_of_levels)))
            mean.is_whole = [step == 2, step == 0, False]  # others than the rule says, so that all ways are gone
        return found

    results = as_ranks(n, work, wire)
    # Of each share, which is below 4, a bfloat16 is off by 2^-9 at most.
    near = {"rtol": 1e-5, "atol": 1e-6} if wire == "float32" else {"rtol": 0.0, "atol": 4 * 2**-9}
    for step in range(4):
        wanted = sum(share * scattered(Ranks(k, n), step) for k, share in enumerate(shares))
        assert isinstance(wanted, Tensor)
        for rank, result in enumerate(results):
            figures, table, matrix, n_bytes = result[step]
            assert figures == [n, sum(range(n))]
            assert torch.equal(table, results[0][step][1]) or step == 1
            part = slice(0, 512 + 2**15) if step == 1 else slice(None)  # what is not due stays each rank's own
            torch.testing.assert_close(table[part], wanted[part], **near)
            if step == 1:
                assert torch.equal(table[512 + 2**15 :], scattered(Ranks(rank, n), step)[512 + 2**15 :])
                assert n_bytes[1] == 2**15 * 2 * 4 and n_bytes[2] == 0
            torch.testing.assert_close(matrix, torch.full((3, 2), sum(s * (1 + k) for k, s in enumerate(shares))))
    assert results[0][0][3][0] == 512 * 2 * 4 and 0 < results[0][0][3][2] < 2**15 // 8 + 31 * 8


def test_what_ranks_tell_each_other() -> None:
    def work(ranks: Ranks) -> Any:
        turns, seen = Turns(ranks), []
        for k in range(4):
            seen.append(turns(10.0 * k + ranks.rank, ranks.rank == 1 and k == 2))
        turns.end()
        tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(0, dtype=torch.uint8), "c": torch.tensor(3)}
        return {
            "numbers": ranks.gather([ranks.rank, 0.1]).tolist(),
            "texts": ranks.texts("äö" * ranks.rank),
            "json": ranks.from_first(lambda: {"rank": ranks.rank, "π": [1.5, None]}),
            "tensors": ranks.tensors_from_first(tensors if ranks.is_first else {}),
            "joined": ranks.joined_shares(torch.arange(8)[ranks.share(8)], 8).tolist(),
            "turns": seen,
        }

    for found in as_ranks(3, work):
        assert found["numbers"] == [[0, 0.1], [1, 0.1], [2, 0.1]]
        assert found["texts"] == ["", "äö", "äöäö"]
        assert found["json"] == {"rank": 0, "π": [1.5, None]}
        assert found["tensors"]["a"].tolist() == [[0, 1, 2], [3, 4, 5]] and int(found["tensors"]["c"]) == 3
        assert found["tensors"]["b"].dtype == torch.uint8 and not len(found["tensors"]["b"])
        assert found["joined"] == list(range(8))
        # The first one's clock and anyone's wish to stop, a step late.
        assert found["turns"] == [(0.0, False), (0.0, False), (10.0, False), (20.0, True)]


def test_one_process_tells_itself_the_same() -> None:
    alone = Ranks()
    assert alone.gather([1.0, 2.0]).tolist() == [[1.0, 2.0]] and alone.texts("x") == ["x"]
    assert alone.from_first(lambda: 3) == 3 and Turns(alone)(1.5, True) == (1.5, True)
    assert list(alone.deal(3, lambda k: k * k, lambda _: b"", lambda _: 0)) == [0, 1, 4]


def test_an_error_of_one_rank_is_that_of_all() -> None:
    def work(ranks: Ranks) -> None:
        with ranks.agreed():
            pass
        with ranks.agreed():
            if ranks.rank == 1:
                raise ConfigError("no such photos")

    errors: list[Any] = []
    as_ranks(3, work, errors=errors)
    assert [type(error) for error in errors] == [RanksError] * 3
    assert {str(error) for error in errors} == {"rank 1: no such photos"}


def test_a_difference_between_ranks_is_named() -> None:
    errors: list[Any] = []
    as_ranks(3, lambda ranks: ranks.check_same("data set", 7 if ranks.rank == 2 else 5), errors=errors)
    assert {str(error) for error in errors} == {"rank 2 has another data set than rank 0: 7 instead of 5"}


def swap(ranks: Ranks, number: int) -> None:
    """Exchange messages whose sizes differ from rank to rank."""
    own = torch.full((1000 * (ranks.rank + 1),), float(number + ranks.rank))
    found = [torch.empty(1000 * (k + 1)) for k in range(ranks.n)]
    ranks.swap_later(own, found, tag=number % 3)()
    for k, value in enumerate(found):
        assert k == ranks.rank or bool((value == number + k).all())


@pytest.mark.parametrize("exchange", [lambda ranks, k: ranks.gather([k]), swap])
def test_a_rank_that_is_gone_is_named_by_those_that_are_left(
    exchange: Callable[[Ranks, int], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks_module, "ROLL_CALL_SECONDS", 1.0)
    speaking: list[int] = []

    def work(ranks: Ranks) -> None:
        for k in range(100):
            if ranks.rank == 0 and k == 3:
                ranks.group.abort()
                ranks.group = None
                return
            try:
                exchange(ranks, k)
            except RanksError:
                if ranks.speaks:
                    speaking.append(ranks.rank)
                raise

    errors: list[Any] = []
    as_ranks(3, work, errors=errors)
    assert errors[0] is None
    assert [str(error) for error in errors[1:]] == ["rank 0 is gone: killed, or cut off from the network"] * 2
    assert speaking == [1]


def met(n: int, numbers: list[int], versions: list[str], claimed: list[int]) -> list[str]:
    """What each process is told when those with these numbers of ranks, versions and ranks meet."""
    store, found = dist.HashStore(), [""] * n

    def run(k: int) -> None:
        try:
            _roll_call(store, claimed[k], numbers[k], 0.5, versions[k])
        except RanksError as error:
            found[k] = str(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [text.replace(socket.gethostname(), "host") for text in found]


def test_ranks_that_do_not_fit_together_say_why() -> None:
    assert met(2, [2, 2], ["1", "1"], [0, 1]) == ["", ""]
    assert met(2, [3, 3], ["1", "1"], [0, 1]) == ["2 of 3 ranks came within 0.5 s; missing: 2"] * 2
    assert "rank 1 (host) has another number of ranks than rank 0 (host): 3 instead of 2" in met(
        2, [2, 3], ["1", "1"], [0, 1]
    )
    assert "rank 1 (host) has another version of hashfield than rank 0 (host): 2 instead of 1" in met(
        2, [2, 2], ["1", "2"], [0, 1]
    )
    assert "two processes call themselves rank 0: each needs a RANK of its own" in met(2, [2, 2], ["1", "1"], [0, 0])


def test_ranks_that_are_started_again_meet_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun keeps its store, and with it what ranks noted before they were lost."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    own = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port)}
    for name, value in {**own, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    for n_restarts in range(3):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(n_restarts))
        with joined(patience=5.0) as ranks:
            assert ranks.gather([3.0]).tolist() == [[3.0]]


def test_work_is_dealt_out_and_comes_back_in_order() -> None:
    made: list[tuple[int, int]] = []

    def work(ranks: Ranks) -> list[Any]:
        def make(k: int) -> list[int]:
            made.append((k, ranks.rank))
            time.sleep(0.05 + 0.02 * (k % 3))
            return [k, k * k]

        ranks.gather([0.0])  # all begin together
        first = list(ranks.deal(9, make, lambda x: json.dumps(x).encode(), json.loads))
        return first + list(ranks.deal(2, make, lambda x: json.dumps(x).encode(), json.loads))

    found = as_ranks(3, work)
    assert found == [[[k, k * k] for k in (*range(9), 0, 1)], [], []]
    assert sorted(k for k, _ in made) == sorted((*range(9), 0, 1)) and {rank for _, rank in made} == {0, 1, 2}


def test_a_rank_that_falls_silent_gives_its_work_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks_module, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(ranks_module, "BEAT_SECONDS", 0.05)

    def work(ranks: Ranks) -> list[int]:
        def make(k: int) -> int:
            if ranks.rank == 1:
                raise SystemExit  # as if it were killed: nothing is delivered, and no beat comes any more
            time.sleep(0.05)
            return 10 * k

        return list(ranks.deal(6, make, lambda x: str(x).encode(), int))

    errors: list[Any] = []
    found = as_ranks(2, work, errors=errors)
    assert found[0] == [0, 10, 20, 30, 40, 50] and isinstance(errors[1], SystemExit)


def test_an_error_in_dealt_work_ends_it() -> None:
    def work(ranks: Ranks) -> None:
        def make(k: int) -> int:
            if ranks.rank == 1:
                raise ConfigError("no room")
            time.sleep(0.05)
            return k

        list(ranks.deal(6, make, lambda x: str(x).encode(), int))

    errors: list[Any] = []
    as_ranks(2, work, errors=errors)
    assert str(errors[0]) == "rank 1: no room" and errors[1] is None
