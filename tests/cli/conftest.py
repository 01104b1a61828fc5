"""A small run that several files look at, trained once."""

import shutil
from pathlib import Path

import pytest

from hashfield.cli.main import run
from hashfield.data.demo_scene import make_demo_scene, save_nerf_synthetic

QUICK = ["--encoding.log2-hashmap-size", "13", "--finest-resolution", "256", "--train.batch", "4096"]
QUICK += ["--occupancy.max-cells", "65536"]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo scene at 48x48, on disk."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    save_nerf_synthetic(make_demo_scene(size=48, n_train=10, n_test=2)[0], folder)
    return folder


@pytest.fixture(scope="session")
def trained_once(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 200 steps, whose report shows the views smaller than they are, as it does with photos of usual sizes."""
    out = tmp_path_factory.mktemp("runs") / "toy"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hashfield.cli.nerf.SHEET_SIDE", 32)
        assert run(["train", "nerf", str(photos), "--out", str(out), "--n-steps", "200", "--seed", "3", *QUICK]) == 0
    return out


@pytest.fixture(scope="module")
def trained(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, a copy for each file."""
    return shutil.copytree(trained_once, tmp_path_factory.mktemp("copies") / "toy")
