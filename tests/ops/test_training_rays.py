"""A training batch against the pool's own definition, written out; `test_backends.py` compares the backends."""

import pytest
import torch

from hashfield import ops
from hashfield.geometry.cameras import camera_table
from hashfield.geometry.rays import PixelPool
from hashfield.ops.backend import Backend
from hashfield.ops.training_rays import training_rays
from tests import tolerances
from tests.ops.cases import BOX, one_of_each_lens, random_pool


def places(pool: PixelPool) -> list[tuple[int, int]]:
    """(image, pixel within the image) of every pixel of a pool, in order."""
    return [(image, first + k) for image, first, length in pool.spans.tolist() for k in range(length)]


@pytest.mark.op("training_rays")
@pytest.mark.parametrize("held", [0.3, 1.0])
def test_number_k_is_the_kth_pixel_of_the_pool(backend: Backend, held: float, generator: torch.Generator) -> None:
    sizes = ((11, 6), (5, 7), (1, 9), (23, 1), (8, 4))
    cameras = [c.resized(*size) for c, size in zip(one_of_each_lens(), sizes, strict=True)]
    pool = random_pool(generator, cameras, held)
    wanted, box = places(pool), torch.tensor(BOX, dtype=torch.float64)
    n = len(wanted)
    assert n == pool.n_pool > 20
    jitter, background = torch.rand(n, generator=generator), torch.rand(n, 3, generator=generator)
    batch = training_rays(torch.arange(n), pool, box, jitter=jitter, background=background, backend=backend)
    assert torch.equal(batch.jitter, jitter) and torch.equal(batch.background, background) and batch.weight is None
    assert batch.rays.image_index is not None and batch.rays.image_index.tolist() == [image for image, _ in wanted]
    exact = [(pool.pixels[int(pool.starts[image]) + at].double() / 255) for image, at in wanted]
    torch.testing.assert_close(batch.target.double(), torch.stack(exact), rtol=tolerances.TWO_ROUNDINGS, atol=0.0)
    index = torch.tensor([image for image, _ in wanted])
    centre = torch.tensor([(at % sizes[image][0] + 0.5, at // sizes[image][0] + 0.5) for image, at in wanted]).double()
    origin, direction = ops.camera_rays(
        camera_table(cameras), index, centre, dtype=torch.float64, backend="reference"
    )  # fmt: skip
    t_min, t_max = ops.ray_box(origin, direction, box[:3], box[3:])
    assert 0 < int((t_max == 0).sum()) < n
    right = {"origin": origin, "direction": direction, "t_min": t_min, "t_max": t_max}
    for name, value in right.items():
        found = getattr(batch.rays, name)
        assert found.dtype == torch.float32
        torch.testing.assert_close(
            found.double(), value, rtol=tolerances.TWO_ROUNDINGS, atol=tolerances.TWO_ROUNDINGS
        )  # fmt: skip
