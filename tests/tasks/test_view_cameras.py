"""The cameras from which a distance is shown: all around its box, a little above it, and all of it in the picture."""

import numpy as np
import pytest
import torch

from hashfield.geometry.cameras import camera_table, project
from hashfield.tasks.sdf import view_cameras

BOXES = {
    "cube": ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)),
    "far and flat": ((100.0, 20.0, -3.0), (104.0, 20.1, 9.0)),
    "tiny": ((0.0, 0.0, 0.0), (1e-3, 2e-3, 1e-3)),
}


@pytest.mark.parametrize("up", [(0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.6, 0.0, 0.8)])
@pytest.mark.parametrize("name", list(BOXES))
def test_every_view_sees_the_whole_box_from_above(name: str, up: tuple[float, float, float]) -> None:
    low, high = (np.array(corner) for corner in BOXES[name])
    views = view_cameras((low, high), up, n_views=5, size=200)
    corners = torch.tensor([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
    center, upward = torch.from_numpy(0.5 * (low + high)), torch.tensor(up, dtype=torch.float64)
    radius = 0.5 * float(np.linalg.norm(high - low))
    assert len(views) == 5 and all((v.width, v.height) == (200, 200) for v in views)
    table = camera_table(views)
    around = []
    for k in range(5):
        seen = project(table, torch.full((8,), k), corners)
        pixel, is_in_front = seen[0], seen[1]
        assert bool((is_in_front > 0).all())
        assert float(pixel.min()) >= 0 and float(pixel.max()) <= 200
        # ... and not as a speck: the sphere around the box nearly fills the picture, the box a good part of it.
        assert float((pixel.amax(0) - pixel.amin(0)).max()) > 80
        away = views[k].position - center
        height = float(away @ upward) / float(away.norm())
        assert float(away.norm()) > radius and 0.3 < height < 0.4  # 20 degrees above
        assert float(views[k].up @ upward) > 0.9
        flat = away - (away @ upward) * upward
        around.append(flat / flat.norm())
    # Evenly around: neighbours are a fifth of a turn apart.
    for a, b in zip(around, around[1:] + around[:1], strict=True):
        assert float(a @ b) == pytest.approx(float(np.cos(2 * np.pi / 5)), abs=1e-9)
