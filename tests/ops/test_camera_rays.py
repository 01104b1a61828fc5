"""Rays through pixels: what the op takes and refuses. Values for every lens: `cases.CAMERA_RAYS_CASES`."""

import math

import pytest
import torch
from torch import Tensor

from hashfield import ops
from hashfield.errors import BackendError, ShapeError
from hashfield.geometry.cameras import Camera, camera_table, pixel_centers
from hashfield.ops.backend import Backend, requested_backend
from tests import tolerances
from tests.ops.cases import one_of_each_lens


def pixels(n: int) -> tuple[Tensor, Tensor]:
    """Cameras and positions, some outside the picture, some exactly on the axis."""
    g = torch.Generator().manual_seed(3)
    index = torch.randint(5, (n,), generator=g)
    pixel = torch.rand(n, 2, generator=g, dtype=torch.float64) * torch.tensor([100.0, 80.0]) - 10.0
    pixel[::7] = torch.tensor([41.0, 29.5], dtype=torch.float64)
    return index, pixel


@pytest.mark.op("camera_rays")
def test_values_of_a_pinhole(backend: Backend) -> None:
    pose = torch.eye(4, dtype=torch.float64)[:3]
    pose[:, 3] = torch.tensor([1.0, 2.0, 3.0])
    table = camera_table([Camera(pose, 8, 6, 10.0, 10.0, 4.0, 3.0)])
    pixel = torch.tensor([[4.0, 3.0], [9.0, 3.0]], dtype=torch.float64)
    origin, direction = ops.camera_rays(table, torch.tensor([0, 0]), pixel, backend=backend)
    assert origin.tolist() == [[1.0, 2.0, 3.0]] * 2
    expected = torch.tensor([[0.0, 0.0, 1.0], [1 / math.sqrt(5), 0.0, 2 / math.sqrt(5)]])
    torch.testing.assert_close(direction, expected)


@pytest.mark.op("camera_rays")
def test_not_contiguous_and_float32_tables(backend: Backend) -> None:
    table, (index, pixel) = camera_table(one_of_each_lens()), pixels(65)
    expected = ops.camera_rays(table, index, pixel, backend=backend)
    found = ops.camera_rays(table.T.contiguous().T, index, pixel.T.contiguous().T, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    narrow = ops.camera_rays(table.float(), index, pixel.float(), backend=backend)
    for a, b in zip(narrow, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=tolerances.SAME_NUMBER, atol=tolerances.SAME_NUMBER)


def test_what_the_kernels_leave_to_the_reference() -> None:
    assert requested_backend() is None
    table, (index, pixel) = camera_table(one_of_each_lens()), pixels(5)
    with pytest.raises(BackendError, match="dtype float64, it gives float32"):
        ops.camera_rays(table, index, pixel, dtype=torch.float64, backend="numba")
    bare = table.clone()
    bare[:, 23] = 0.0
    with pytest.raises(BackendError, match="a lens lacks its limit"):
        ops.camera_rays(bare, index, pixel, backend="numba")
    for a, b in zip(ops.camera_rays(bare, index, pixel), ops.camera_rays(table, index, pixel), strict=True):
        torch.testing.assert_close(a, b)
    leaf = table.clone().requires_grad_()
    with pytest.raises(BackendError, match="a gradient is asked for"):
        ops.camera_rays(leaf, index, pixel, backend="numba")
    _, direction = ops.camera_rays(leaf, index, pixel)
    assert direction.dtype == torch.float32
    (gradient,) = torch.autograd.grad(direction.sum(), leaf)
    assert gradient.dtype == torch.float64 and bool(torch.isfinite(gradient).all())
    with torch.no_grad():  # nothing is recorded, so nothing is asked for
        assert not ops.camera_rays(leaf, index, pixel, backend="numba")[1].requires_grad


@pytest.mark.op("camera_rays")
@pytest.mark.parametrize("wrong", [-1, 5])
def test_cameras_that_do_not_exist_are_refused(backend: Backend, wrong: int) -> None:
    table, (index, pixel) = camera_table(one_of_each_lens()), pixels(5)
    index[3] = wrong
    with pytest.raises(ShapeError, match=f"^camera_rays: camera_index: expected 0 to 4, got {wrong}$"):
        ops.camera_rays(table, index, pixel, backend=backend)


@pytest.mark.op("camera_rays")
@pytest.mark.parametrize("lens", range(5))
def test_rays_of_a_view_are_those_of_its_pixels_in_the_box(backend: Backend, lens: int) -> None:
    camera = one_of_each_lens()[lens].resized(17, 13)
    table, box = camera_table([camera]), torch.tensor([-0.9, -1.0, -0.7, 0.8, 1.0, 1.0], dtype=torch.float64)
    found = ops.view_rays(table, 17, 13, box, first=5, n_rays=200, backend=backend)
    pixel = pixel_centers(17, 13)[5:205]
    origin, direction = ops.camera_rays(table, torch.zeros(200, dtype=torch.int64), pixel, backend="reference")
    t_min, t_max = ops.ray_box(origin, direction, box[:3].float(), box[3:].float())
    assert 10 < int((t_max > 0).sum()) < 200
    for mine, right in zip(
        (found.origin, found.direction, found.t_min, found.t_max), (origin, direction, t_min, t_max), strict=True
    ):
        torch.testing.assert_close(mine, right, rtol=tolerances.SAME_NUMBER, atol=tolerances.SAME_NUMBER)
    with pytest.raises(ShapeError, match="pixels within 17x13"):
        ops.view_rays(table, 17, 13, box, first=100, n_rays=200, backend=backend)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_rays_of_chosen_pixels_are_those_of_the_whole_view(backend: Backend):
    """Some of the pixels, in any order; a camera that looks along an axis from inside, outside and past the box."""
    pose = torch.eye(3, 4, dtype=torch.float64)
    chosen = torch.tensor([7, 0, 62, 7, 31])
    for x, z in ((0.5, 0.5), (0.5, -2.0), (4.0, 0.5), (0.0, -1.0)):
        pose[:, 3] = torch.tensor([x, 0.5, z])
        table = camera_table([Camera(pose.clone(), 9, 7, 8.0, 8.0, 4.5, 3.5)])  # the middle pixel looks along z exactly
        box = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
        whole = ops.view_rays(table, 9, 7, box, backend="reference")
        some = ops.view_rays(table, 9, 7, box, numbers=chosen, backend=backend)
        for name in ("origin", "direction", "t_min", "t_max"):
            mine, right = getattr(some, name), getattr(whole, name)[chosen]
            torch.testing.assert_close(mine, right, rtol=tolerances.SAME_NUMBER, atol=tolerances.SAME_NUMBER)
        few = ops.view_rays(table, 9, 7, box, first=3, n_rays=20, numbers=chosen[:2], backend=backend)
        torch.testing.assert_close(few.direction, whole.direction[chosen[:2] + 3], rtol=0, atol=tolerances.SAME_NUMBER)
    assert ops.view_rays(table, 9, 7, box, numbers=chosen[:0], backend=backend).n_rays == 0
