"""The paper's two comparisons as lists of settings: encodings (figure 2), and F x L x T (figures 4 and 5).

A setting is an encoding with the networks behind it, in words that every task understands; how it becomes a task's own
configuration is the task's command's to say.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from hashfield.errors import ConfigError
from hashfield.nn.config import EncodingConfig


@dataclass(frozen=True)
class Setting:
    """One encoding with the size of the networks behind it."""

    name: str
    """Short, for a folder."""
    columns: Mapping[str, Any]
    """What distinguishes it in its study's table."""
    encoding: EncodingConfig
    """Encoding of the positions; its per_level_scale follows from `finest`."""
    finest: int
    """Vertices per axis of the last level over the whole box or picture."""
    n_neurons: int = 64
    """Neurons of each hidden layer."""
    is_deep: bool = False
    """Whether a deep network does the work that the encoding does not: seven hidden layers; a NeRF's colour network has
    one."""
    learning_rate: float | None = None
    """Adam's rate where a deep network needs a lower one than the task's own; else None."""
    paper: Mapping[str, Any] = field(default_factory=dict)
    """The paper's figures for this row."""


# Paper figure 2: a NeRF after 11,000 steps on a GPU, seconds of training and PSNR.
_PAPER: Final[Mapping[str, Mapping[str, Any]]] = {
    "none": {"paper_parameters": "411 k + 0", "paper_psnr": 18.56, "paper_seconds": 688},
    "frequency": {"paper_parameters": "438 k + 0", "paper_psnr": 22.90, "paper_seconds": 765},
    "dense-single": {"paper_parameters": "10 k + 33.6 M", "paper_psnr": 22.35, "paper_seconds": 69},
    "dense-multi": {"paper_parameters": "10 k + 16.3 M", "paper_psnr": 23.62, "paper_seconds": 86},
    "hash-14": {"paper_parameters": "10 k + 494 k", "paper_psnr": 22.61, "paper_seconds": 108},
    "hash-19": {"paper_parameters": "10 k + 12.6 M", "paper_psnr": 24.58, "paper_seconds": 107},
}


def encodings_study(n_dims: int, finest: int) -> list[Setting]:
    """The six rows of the paper's figure 2: none, frequency, dense on one level, dense on eight, hash small and large.

    In three dimensions the encodings have the paper's numbers of parameters (33,554,432; 16,312,048; 494,592 and
    12,599,920, the last two with a finest resolution of 4096). In two, the dense ones are made as large as there; a
    hash grid needs what it needs.

    Args:
        n_dims: Dimensions of a position, 2 or 3.
        finest: Resolution of the hash grids' last level.

    Source: paper figure 2; instant-ngp configs/nerf/{none,frequency,densegrid_1res,densegrid,base_14,base}.json.
    """
    if n_dims not in (2, 3):
        raise ConfigError(f"n_dims: expected 2 or 3, got {n_dims}")
    side, dense = (128, 173) if n_dims == 3 else (1448, 2490)
    grid = EncodingConfig(n_levels=16, n_features_per_level=2)
    deep: dict[str, Any] = {"n_neurons": 256, "is_deep": True, "learning_rate": 1e-3, "finest": finest}
    single = EncodingConfig(type="Tiled", n_levels=2, n_features_per_level=8, base_resolution=side)
    multi = EncodingConfig(type="Dense", n_levels=8, n_features_per_level=2)
    rows = [
        ("none", "none", EncodingConfig(otype="Identity"), deep),
        ("frequency", "frequency, 16 octaves", EncodingConfig(otype="Frequency", n_frequencies=16), deep),
        ("dense-single", f"dense grid, {side} a side, 16 features", single, {"finest": side}),
        ("dense-multi", f"dense grids, 8 levels to {dense}, F 2", multi, {"finest": dense}),
        ("hash-14", "hash grid, L 16, F 2, T 2^14", replace(grid, log2_hashmap_size=14), {"finest": finest}),
        ("hash-19", "hash grid, L 16, F 2, T 2^19", replace(grid, log2_hashmap_size=19), {"finest": finest}),
    ]
    return [
        Setting(name, {"encoding": words}, encoding, paper=_PAPER[name], **more) for name, words, encoding, more in rows
    ]


def grid_study(
    features: Sequence[int], levels: Sequence[int], log2_hashmap_sizes: Sequence[int], finest: int
) -> list[Setting]:
    """Every combination of F, L and log2 T of a hash grid up to a finest resolution.

    Args:
        features: Values of F, features of a level.
        levels: Values of L, levels.
        log2_hashmap_sizes: Values of log2 T, where T is the most entries of a level.
        finest: Vertices per axis of the last level over the whole box or picture.

    Source: paper section 3 and figures 4 and 5, whose points can only be read off pictures.
    """
    return [
        Setting(
            f"F{f}-L{l}-T{t}",
            {"F": f, "L": l, "log2_T": t},
            EncodingConfig(n_levels=l, n_features_per_level=f, log2_hashmap_size=t),
            finest,
        )
        for t, l, f in itertools.product(log2_hashmap_sizes, levels, features)
    ]
