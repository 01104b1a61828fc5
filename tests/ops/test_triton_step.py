"""The GPU's training step, frames and grid upkeep against the reference: in Triton's interpreter, or on a card."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hashfield.geometry.cameras import camera_table
from hashfield.geometry.rays import Rays
from hashfield.ops.adam import adam, adam_table
from hashfield.ops.backend import INTERPRETER_VARIABLE, Backend
from hashfield.ops.occupancy import CELLS_PER_CASCADE, morton3_inverse, pack_bits
from hashfield.ops.render_rays import FieldParameters, MarchOptions, render_rays
from hashfield.ops.train_rays import TrainWorkspace
from hashfield.ops.training_rays import training_rays
from hashfield.steps.pixel_source import masked_pool, pixel_pool
from tests import tolerances
from tests.conftest import backend_params
from tests.ops.cases import TRAIN_RAYS, one_of_each_lens
from tests.ops.compare import relative_error
from tests.ops.fused import LAYOUTS, Batch, batch, field, in_double, step
from tests.ops.memory import checked_memory

# Numpy, which the interpreter computes with, warns of infinities that kernels meet and handle.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
INTERPRETED = os.environ.get(INTERPRETER_VARIABLE) == "1"
on_triton = pytest.mark.parametrize("backend", backend_params("train_rays", ("triton",)))


@pytest.fixture(autouse=True)
def within_bounds() -> Iterator[None]:
    """No kernel may touch memory that is not its own; on a card that is the hardware's to tell."""
    with checked_memory() if INTERPRETED else nullcontext():
        yield


def device() -> torch.device:
    """Where Triton runs here: on a card, or interpreted."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_device(parameters: FieldParameters, case: Batch) -> tuple[FieldParameters, Batch]:
    """The same field and rays on the device."""
    there = device()
    rays, *rest = case

    def moved(table: Tensor | None) -> Tensor | None:
        return None if table is None else table.to(there)

    parameters = replace(
        parameters,
        table=parameters.table.to(there),
        table_bf16=moved(parameters.table_bf16),
        table_fp16=moved(parameters.table_fp16),
        density_weights=tuple(w.to(there) for w in parameters.density_weights),
        color_weights=tuple(w.to(there) for w in parameters.color_weights),
    )
    rays = type(rays)(*(x.to(there) for x in (rays.origin, rays.direction, rays.t_min, rays.t_max)))
    return parameters, (rays, *(x.to(there) for x in rest))


# Not "cone_odd_bf16": with nine rays its sample 377 has a hidden unit of the colour network 5e-7 above zero in float64,
# which float32 may see below. The table's gradient then is off by 9.5e-3; with that one unit of the float64 reference
# switched off it agrees to 4e-6, and so do the matrices'.
@on_triton
@pytest.mark.parametrize(
    ("name", "bf16"),
    [("odd", False), ("odd", True), ("cone_huber", False), ("faint", False), ("distortion_cone", False)],
)
def test_step_agrees_with_float64(backend: Backend, name: str, bf16: bool) -> None:
    one = TRAIN_RAYS[name]
    options, parameters, case = one.options, one.field(bf16=bf16), one.rays(9)
    there, own = on_device(parameters, case)
    more = {"huber": one.huber, "distortion": one.distortion, "nearness": one.nearness}
    found, grads = step(there, own, options, TrainWorkspace(there, 2**12, backend), **more)
    wide, wide_case = in_double(parameters, case)
    exact, exact_grads = step(wide, wide_case, options, TrainWorkspace(wide, 2**15, "reference"), **more)
    assert (found.n_rays, found.n_kept) == (exact.n_rays, exact.n_kept) and found.n_kept > 30
    assert found.loss == pytest.approx(exact.loss, rel=tolerances.FAST_OUTPUT)
    assert found.squared_error == pytest.approx(exact.squared_error, rel=tolerances.FAST_OUTPUT)
    for mine, right in zip(grads, exact_grads, strict=True):
        assert relative_error(mine.cpu(), right) < tolerances.FUSED_STEP


@on_triton
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_step_in_half_precision_stays_close(backend: Backend, precision: str) -> None:
    one = TRAIN_RAYS["odd"]
    options, huber, plain, case = one.options, one.huber, one.field(), one.rays(9)
    table = plain.table
    rounded = replace(plain, precision=precision, table_bf16=table.bfloat16(), table_fp16=table.half())  # type: ignore[arg-type]
    there, own = on_device(rounded, case)
    found, grads = step(there, own, options, TrainWorkspace(there, 2**12, backend), huber)
    exact, exact_grads = step(plain, case, options, TrainWorkspace(plain, 2**15, "reference"), huber)
    assert found.n_rays == exact.n_rays
    bound = {"float16": 0.02, "bfloat16": 0.15}[precision]
    assert found.loss == pytest.approx(exact.loss, rel=bound)
    for mine, right in zip(grads, exact_grads, strict=True):
        assert 0 < relative_error(mine.cpu(), right) < bound


@on_triton
def test_full_buffers_drop_the_last_rays(backend: Backend) -> None:
    """In fog every ray keeps all its samples; where they do not fit, whole rays at the batch's end are left out."""
    parameters, case = field(LAYOUTS["L5F2"], 32, bias=-4.0), batch(24)
    case = (case[0], torch.full_like(case[1], 255), *case[2:])
    there, own = on_device(parameters, case)
    options = MarchOptions(1, 0.0, 16.0, 1e-4)
    whole, _ = step(there, own, options, TrainWorkspace(there, 2**12, backend))
    workspace = TrainWorkspace(there, 256, backend)
    found, grads = step(there, own, options, workspace)
    assert whole.n_rays == 24 and whole.n_kept > 256
    assert 0 < found.n_rays < 24 and 0 < found.n_kept <= 256
    fewer = replace_rays(case, found.n_rays)
    right, right_grads = step(parameters, fewer, options, TrainWorkspace(parameters, 2**15, "reference"))
    assert found.n_kept == right.n_kept
    assert found.loss == pytest.approx(right.loss, rel=tolerances.FAST_OUTPUT)
    for mine, theirs in zip(grads, right_grads, strict=True):  # of the sum, divided by the rays given
        assert relative_error(mine.cpu() * 24 / found.n_rays, theirs) < 1e-3


def replace_rays(case: Batch, n: int) -> Batch:
    """The first n rays of a batch."""
    rays, bits, target, background, jitter = case
    fewer = type(rays)(rays.origin[:n], rays.direction[:n], rays.t_min[:n], rays.t_max[:n])
    return fewer, bits, target[:n], background[:n], jitter[:n]


@on_triton
@pytest.mark.parametrize("aabb_scale", [1, 4])
def test_frames_agree_with_the_reference(backend: Backend, aabb_scale: int) -> None:
    parameters, case = field(LAYOUTS["L5F2"], 32), batch(33, aabb_scale)
    options = MarchOptions(aabb_scale, 0.0 if aabb_scale == 1 else 1 / 256, 16.0, 1e-4)
    there, own = on_device(parameters, case)
    found = render_rays(there, own[0], own[1], options, jitter=own[4], backend=backend)
    right = render_rays(parameters, case[0], case[1], options, jitter=case[4], backend="reference")
    for mine, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, atol=1e-4, rtol=1e-4)
    missed = case[0].t_max <= case[0].t_min
    assert bool((found.opacity.cpu()[missed] == 0).all())


@on_triton
def test_a_frame_is_the_same_however_its_waves_are_cut(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few samples a wave and little room for them: more waves than a frame has of its own, and the same picture."""
    from hashfield.kernels.triton_gpu import render_rays as kernels

    parameters, case = field(LAYOUTS["L5F2"], 32), batch(17)
    options = MarchOptions(1, 0.0, 32.0, 1e-4)
    there, own = on_device(parameters, case)
    pictures = []
    for waves, most in ((kernels.WAVES, kernels.MOST_SAMPLES), ((2, 5), 2**23), ((64,), 100)):
        monkeypatch.setattr(kernels, "WAVES", waves)
        monkeypatch.setattr(kernels, "MOST_SAMPLES", most)
        kernels._frame_of.cache_clear()
        pictures.append(render_rays(there, own[0], own[1], options, jitter=own[4], backend=backend))
    kernels._frame_of.cache_clear()
    assert float(pictures[0].opacity.max()) > 0.5
    for other in pictures[1:]:
        for mine, theirs in zip(other, pictures[0], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


@on_triton
def test_a_frame_sees_what_it_is_given(backend: Backend) -> None:
    """Buffers are kept from call to call: another field of the same sizes, other rays and bits must arrive in them."""
    options = MarchOptions(1, 0.0, 16.0, 1e-4)
    for seed in (0, 1):
        parameters, case = field(LAYOUTS["L5F2"], 32, seed=seed), batch(9, seed=seed)
        there, own = on_device(parameters, case)
        found = render_rays(there, own[0], own[1], options, jitter=own[4], backend=backend)
        right = render_rays(parameters, case[0], case[1], options, jitter=case[4], backend="reference")
        for mine, theirs in zip(found, right, strict=True):
            torch.testing.assert_close(mine.cpu(), theirs, atol=1e-4, rtol=1e-4)


@on_triton
@pytest.mark.skipif(not INTERPRETED, reason="a card has graphs of its own")
def test_a_frame_is_captured_the_second_time_and_replayed(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of things, with a graph that runs its waves again; that a card can capture them is not shown here."""
    from hashfield.kernels.triton_gpu import render_rays as kernels

    happened = []

    class Graph:
        def replay(self) -> None:
            happened.append("replayed")
            frame._enqueue()

    @contextmanager
    def graph(_: Graph) -> Iterator[None]:
        happened.append("captured")
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    options = MarchOptions(1, 0.0, 16.0, 1e-4)
    parameters, case = field(LAYOUTS["L5F2"], 32), batch(9)
    right = render_rays(parameters, case[0], case[1], options, jitter=case[4], backend=backend)
    frame = kernels.Frame(kernels.device_field(parameters), 9, options, case[1].numel())
    frame.is_cuda = True
    for expected in ([], ["captured", "replayed"], ["replayed"]):
        found = frame.render(kernels.device_field(parameters), case[0], case[1], case[4])
        assert happened == expected
        assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))
        happened.clear()


@on_triton
@pytest.mark.parametrize("aabb_scale", [1, 4])
def test_a_sample_on_the_face_of_the_box_is_taken(backend: Backend, aabb_scale: int) -> None:
    """Without jitter the first point of a ray is where it enters. Only the cells at that face are occupied, and steps
    are longer than they: were it rounded to before the face, the ray would have no sample."""
    options = MarchOptions(aabb_scale, 0.0 if aabb_scale == 1 else 1 / 256, 8.0, 1e-4)
    values = torch.zeros(options.aabb_scale.bit_length(), CELLS_PER_CASCADE)
    cells = torch.arange(CELLS_PER_CASCADE)[morton3_inverse(torch.arange(CELLS_PER_CASCADE))[:, 0] == 0]
    values[-1, cells] = 1.0
    entry = torch.linspace(1.2, 1.9, 77)
    face = 0.5 - 0.5 * aabb_scale
    origin = torch.stack([face - entry, *(torch.full_like(entry, 0.5 + 0.1 / 128 * aabb_scale),) * 2], 1)
    entry = face - origin[:, 0]  # exactly, as a float32 difference of neighbours is
    rays = Rays(origin, torch.tensor([[1.0, 0, 0]]).expand(77, 3).contiguous(), entry, entry + aabb_scale)
    assert bool((origin[:, 0] + entry == face).all())
    case = (rays, pack_bits(values.flatten(), 0.5), torch.rand(77, 4), torch.rand(77, 3), torch.zeros(77))
    parameters, own = on_device(field(LAYOUTS["L5F2"], 32, bias=6.0), case)
    seen = render_rays(parameters, own[0], own[1], options, jitter=own[4], backend=backend)
    assert bool((seen.opacity > 0).all())
    torch.testing.assert_close((seen.depth / seen.opacity).cpu(), entry, rtol=1e-6, atol=0)
    found, _ = step(parameters, own, options, TrainWorkspace(parameters, 2**12, backend))
    assert found.n_rays == found.n_kept == 77


@on_triton
def test_optimiser_agrees_with_the_reference(backend: Backend) -> None:
    start = torch.randn(101, 4, generator=torch.Generator().manual_seed(0))
    found = {}
    for name, there in ((backend, device()), ("reference", torch.device("cpu"))):
        g = torch.Generator().manual_seed(1)
        param, m, v = start.to(there, copy=True), torch.zeros(101, 4, device=there), torch.zeros(101, 4, device=there)
        short = param.bfloat16()
        for k in range(1, 4):
            grad = torch.randn(101, 4, generator=g) * (torch.rand(101, 1, generator=g) < 0.5)
            cleared = grad.to(there, copy=True)
            adam_table(param, cleared, m, v, short, step=k, learning_rate=0.01, backend=name)  # type: ignore[arg-type]
            # (the interpreter rounds to bfloat16 towards zero)
            assert not bool(cleared.any()) and bool(((short - param).abs() <= 2**-7 * param.abs()).all())
            adam(
                param, grad.to(there), m, v, step=k, learning_rate=0.01, l2=1e-2, skip_zero_gradient=False, backend=name
            )  # type: ignore[call-overload]
        found[name] = (param.cpu(), m.cpu(), v.cpu())
    for mine, theirs in zip(found[backend], found["reference"], strict=True):
        assert relative_error(mine, theirs) < tolerances.FAST_OUTPUT


@on_triton
def test_batches_agree_with_the_reference(backend: Backend) -> None:
    g = torch.Generator().manual_seed(0)
    views = one_of_each_lens()
    images = [torch.randint(0, 256, (c.height, c.width, 4), generator=g).byte().numpy() for c in views]
    pool = pixel_pool(images, camera_table(views))
    pool = masked_pool(pool, (torch.rand(len(pool.pixels), generator=g) < 0.002).byte())
    chosen = torch.randint(0, pool.n_pool, (200,), generator=g)
    chosen[:2] = torch.tensor([0, pool.n_pool - 1])
    box = torch.tensor([-1.0, -1, -1, 1, 1, 1], dtype=torch.float64)
    there, extra = device(), {"jitter": torch.rand(200, generator=g), "background": torch.rand(200, 3, generator=g)}
    own = {name: x.to(there) for name, x in extra.items()}
    found = training_rays(chosen.to(there), pool.to(there), box.to(there), **own, backend=backend)
    right = training_rays(chosen, pool, box, **extra, backend="reference")
    assert found.jitter is own["jitter"] and found.background is own["background"]
    torch.testing.assert_close(found.target.cpu(), right.target, rtol=2e-7, atol=0.0)
    for name in ("origin", "direction", "t_min", "t_max", "image_index"):
        mine, theirs = getattr(found.rays, name).cpu(), getattr(right.rays, name)
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
