"""The point that cameras look at: found where there is one, and only there."""

import math

import pytest
import torch

from hashfield.geometry.focus import distances_to_focus, gaze
from hashfield.geometry.lenses import LENSES


def table_of(positions: torch.Tensor, forward: torch.Tensor) -> torch.Tensor:
    """A camera table with these positions and viewing directions; nothing else of it is read."""
    table = torch.zeros(len(positions), 24, dtype=torch.float64)
    table[:, [3, 7, 11]] = positions
    table[:, [2, 6, 10]] = torch.nn.functional.normalize(forward, dim=1)
    return table


def ring(n: int, radius: float) -> torch.Tensor:
    """Points on a circle around (1, 2, 3)."""
    angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
    return torch.stack([angle.cos(), angle.sin(), 0.2 * (3 * angle).sin()], 1) * radius + torch.tensor([1.0, 2.0, 3.0])


def shaken(directions: torch.Tensor, size: float) -> torch.Tensor:
    """Directions of unit length, each changed a little."""
    noise = torch.randn(directions.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.nn.functional.normalize(directions, dim=1) + size * noise


def test_orbit_has_a_focus() -> None:
    positions = ring(40, 2.5)
    distance = distances_to_focus(table_of(positions, shaken(torch.tensor([1.0, 2.0, 3.0]) - positions, 0.05)))
    assert distance is not None
    assert bool(((distance - 2.5).abs() < 0.25).all())


def test_photos_that_face_a_scene_have_a_focus() -> None:
    generator = torch.Generator().manual_seed(1)
    positions = torch.randn(20, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 1.0, 0.1])
    distance = distances_to_focus(table_of(positions, shaken(torch.tensor([0.0, 0, 8]) - positions, 0.01)))
    assert distance is not None
    assert bool(((distance - 8.0).abs() < 2.0).all())


def test_others_have_none() -> None:
    positions, ahead = ring(40, 2.5), torch.tensor([[1.0, 0, 0]], dtype=torch.float64).expand(40, 3)
    aside = shaken(ahead[:, [1, 0, 2]], 0.05)
    outward = shaken(positions - torch.tensor([1.0, 2.0, 3.0]), 0.05)
    line = torch.arange(40, dtype=torch.float64)[:, None] * torch.tensor([[1.0, 0, 0]])
    assert distances_to_focus(table_of(positions, outward)) is None
    assert distances_to_focus(table_of(positions.mean(0).expand(40, 3), outward)) is None  # a panorama
    assert distances_to_focus(table_of(line, shaken(ahead, 0.05))) is None  # a flight straight on
    assert distances_to_focus(table_of(line, aside)) is None  # along a street
    assert distances_to_focus(table_of(line, ahead)) is None
    assert distances_to_focus(table_of(line[:1], ahead[:1])) is None


def test_how_cameras_look() -> None:
    positions, ahead = ring(40, 2.5), torch.tensor([[1.0, 0, 0]], dtype=torch.float64).expand(40, 3)
    middle = torch.tensor([1.0, 2.0, 3.0])
    line = torch.arange(40, dtype=torch.float64)[:, None] * torch.tensor([[1.0, 0, 0]])
    spread = float((line - line.mean(0)).norm(dim=1).mean())
    inward = shaken(middle - positions, 0.05)
    assert gaze(table_of(positions, inward)).kind == "inward"
    assert gaze(table_of(positions, shaken(middle - positions, 0.6))).kind == "inward", "some look elsewhere"
    outward = shaken(positions - middle, 0.05)
    assert gaze(table_of(positions, outward)).kind == "outward"
    assert gaze(table_of(positions.mean(0).expand(40, 3), outward)).kind == "outward"
    along = gaze(table_of(line, shaken(ahead, 0.05)))
    aside = gaze(table_of(line, shaken(ahead[:, [1, 0, 2]], 0.05)))
    assert (along.kind, aside.kind) == ("one way", "one way")
    torch.testing.assert_close(along.axis, ahead[0], rtol=0, atol=0.05)
    assert along.depth == pytest.approx(2 * spread) and aside.depth == pytest.approx(8 * spread)
    panoramas = table_of(positions, inward)
    panoramas[:21, 16] = LENSES.index("equirectangular")
    assert gaze(panoramas).kind == "outward", "whatever their axes are"
    panoramas[1:, 16] = LENSES.index("pinhole")
    assert gaze(panoramas).kind == "inward"
    alone = gaze(table_of(line[:1], ahead[:1]))
    assert (alone.kind, alone.depth) == ("one way", 0.0)
