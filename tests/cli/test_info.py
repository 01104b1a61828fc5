"""What `hashfield info` says about GPUs, and the figures written for TensorBoard: on machines that have neither."""

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from hashfield.cli import info, train
from hashfield.train.run_folder import RunFolder


def machine(monkeypatch: pytest.MonkeyPatch, **has: Any) -> list[str]:
    """The lines on a machine that has these: cards (name, capability), cuda, hip, triton, xpu, mps."""
    cards = has.get("cards", ())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: cards[0][1])

    def properties(k: int) -> SimpleNamespace:
        name, (major, minor) = cards[k]
        return SimpleNamespace(name=name, major=major, minor=minor, total_memory=80 * 2**30, multi_processor_count=132)

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.version, "cuda", has.get("cuda"))
    monkeypatch.setattr(torch.version, "hip", has.get("hip"))
    monkeypatch.setattr(torch.xpu, "is_available", lambda: has.get("xpu", False))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has.get("mps", False))
    monkeypatch.setattr(info, "version_of", lambda package: has.get(package, "not installed"))
    return info.about_gpus()


H100, OLD = ("NVIDIA H100", (9, 0)), ("Tesla T4", (7, 5))


def test_every_card_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = machine(monkeypatch, cards=(H100, OLD), cuda="12.8", triton="3.6.0")
    assert lines == [
        "GPU: NVIDIA H100, capability 9.0, 80.0 GiB, 132 multiprocessors",
        "GPU: Tesla T4, capability 7.5, 80.0 GiB, 132 multiprocessors",
    ]


@pytest.mark.parametrize(
    ("has", "words"),
    [
        ({"cards": (H100,), "cuda": "12.8"}, "need triton, which is not installed"),
        ({"cards": (OLD,), "cuda": "12.8", "triton": "3.6.0"}, "on this card they are untried"),
        ({"cuda": "12.8"}, "built for CUDA 12.8, so a driver is missing, or the card is hidden"),
        ({"hip": "6.4"}, "built for ROCm, so a driver is missing"),
        ({}, "this torch is built for CPUs; install its CUDA or ROCm build"),
        ({"xpu": True}, "--device xpu runs the plain torch reference"),
        ({"mps": True}, "it has no float64"),
    ],
)
def test_what_is_missing_is_said(has: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = machine(monkeypatch, **has)
    assert sum(words in line for line in lines) == 1
    assert words in lines[-1]


def test_an_old_card_of_another_maker_is_not_called_untried(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = machine(monkeypatch, cards=(("AMD Radeon", (7, 5)),), hip="6.4", triton="3.6.0")
    assert len(lines) == 1


def test_tensorboard_gets_every_figure_of_every_report_but_those_that_are_not_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written, opened = [], []

    class SummaryWriter:
        """Notes what it is given."""

        def __init__(self, folder: str) -> None:
            opened.append(folder)

        def __enter__(self) -> "SummaryWriter":
            return self

        def __exit__(self, *_: object) -> None:
            opened.append("closed")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

    stand_in = ModuleType("torch.utils.tensorboard")
    stand_in.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    run = RunFolder.create(tmp_path / "run", "toy")
    reports = [
        {"step": 10, "loss": 0.5, "psnr": 20.0, "rays_per_s": 1e5, "samples_per_s": 1e6, "elapsed_s": 1.0},
        {"step": 20, "loss": math.nan, "psnr": 21.0, "rays_per_s": 2e5, "samples_per_s": 2e6, "elapsed_s": 2.0},
    ]
    train.write_tensorboard(run, SimpleNamespace(history=reports))  # type: ignore[arg-type]
    assert opened == [str(run.path / "tensorboard"), "closed"]
    assert written == [
        ("loss", 0.5, 10), ("psnr", 20.0, 10), ("rays_per_s", 1e5, 10), ("samples_per_s", 1e6, 10),
        ("psnr", 21.0, 20), ("rays_per_s", 2e5, 20), ("samples_per_s", 2e6, 20),
    ]  # fmt: skip
