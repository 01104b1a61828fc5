"""What a training step of 2^18 samples, pixels or points costs a GPU at least: bytes, atomics and operations of every
stage, and the time they take on three cards. Arithmetic only, nothing is measured.

python benchmarks/gpu_limits.py            prints the tables of docs/gpu_limits.md
python benchmarks/gpu_limits.py --write    puts them into the page
"""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hashfield.geometry.grid_layout import GridLayout, per_level_scale_between

PAGE = Path(__file__).parents[1] / "docs" / "gpu_limits.md"
N = 2**18
SECTOR = 32  # bytes that a cache moves at least


@dataclass(frozen=True)
class Card:
    """Ceilings of a card: specifications, except the L2 bandwidth, which vendors do not publish."""

    name: str
    arch: int
    l2_mb: float
    dram_gbs: float
    l2_gbs: float
    tflops: float


# fp16 products with float32 sums, dense.
CARDS = (
    Card("RTX 3090", 86, 6, 936, 2000, 71),
    Card("RTX 4090", 89, 72, 1008, 5000, 165),
    Card("H100 SXM", 90, 50, 3350, 5500, 989),
)
PRODUCTS_REACH = 0.3
"""Share of the products' peak that small fused networks reach."""

LAYOUTS = {
    "L16 F2": GridLayout(n_levels=16, n_features_per_level=2, per_level_scale=per_level_scale_between(16, 2048, 16)),
    "L8 F4": GridLayout(),
}
# The presets `gpu` of pictures, at 4096 pixels a side, and of distances: grid, outputs, and whether pixels are drawn.
POINTS = {
    "A picture of 4096x4096, L6 F4, T 2^22": (
        GridLayout(2, 6, 4, 22, 16, per_level_scale_between(16, 4096, 6)),
        3,
        True,
    ),
    "A signed distance, L8 F4, T 2^19": (GridLayout(), 1, False),
}


@dataclass(frozen=True)
class Stage:
    """What one kernel moves and computes for a step."""

    name: str
    dram: float
    """Bytes to and from memory, if nothing is found in a cache that does not have to be."""
    table: float = 0.0
    """Bytes of table entries, or of their gradients, in whole sectors; from L2 where what is used of the table at a
    time fits, else from memory."""
    resident: float = 0.0
    """Bytes of the table, or of its gradient, that are in use at a time."""
    atomics: float = 0.0
    """Atomic instructions of single threads."""
    operations: float = 0.0
    """Floating-point operations in products, an addition and a multiplication being two."""

    def seconds(self, card: Card) -> tuple[float, str]:
        """The least time on a card, and what sets it."""
        fits = self.resident <= card.l2_mb * 1e6
        dram = self.dram + (0.0 if fits else self.table)
        times = {
            "memory": dram / (card.dram_gbs * 1e9),
            "L2": (self.table + self.dram) / (card.l2_gbs * 1e9),
            "products": self.operations / (card.tflops * PRODUCTS_REACH * 1e12),
        }
        limit = max(times, key=lambda name: times[name])
        return times[limit], limit


def sectors_of(layout: GridLayout, entry_bytes: int) -> float:
    """Sectors that a sample's corners touch on all levels: neighbours in x mostly share one."""
    per_sector = max(1, SECTOR // entry_bytes)
    return layout.n_levels * 2 ** (layout.n_dims - 1) * (1 + 1 / per_sector)


def scatter(layout: GridLayout, arch: int, grad_bytes: int) -> Stage:
    """The table's gradient, level by level, so that one level's is in use at a time. An atomic reads and writes."""
    f = layout.n_features_per_level
    entry = grad_bytes * f
    vectors = arch >= 90 or grad_bytes == 2  # there is no vector form of float32 atomics before sm_90
    widest = 16 if arch >= 90 else 4
    instructions = 2**layout.n_dims * layout.n_levels * max(1, entry // widest)
    # Atomics of one instruction's threads share a sector as lookups do; those of several instructions do not.
    sectors = sectors_of(layout, entry) * max(1, entry // widest) if vectors else instructions
    name = "scatter to the table, " + ("float32 gradient" if grad_bytes == 4 else "float16 gradient")
    return Stage(
        name, N * layout.n_levels * (4 * layout.n_dims + 2 * f), 2 * N * sectors * SECTOR, max(layout.entries.tolist()) * entry,
        N * instructions,
    )  # fmt: skip


def stages(layout: GridLayout, card: Card) -> list[Stage]:
    """The kernels of a training step that follow the march, in order, as they run on a card; the last two are not
    part of the sums."""
    f, n_features = layout.n_features_per_level, layout.n_output
    table_bytes = layout.n_parameters * 2
    in_place = table_bytes <= card.l2_mb * 1e6  # else level by level, and the features once more through memory
    lookups = N * sectors_of(layout, 2 * f) * SECTOR
    level = max(layout.entries.tolist())
    density, color = n_features * 64 + 64 * 16, 32 * 64 + 64 * 64 + 64 * 16
    kept = 2 * n_features
    per_atomic = 4 if card.arch >= 90 else 1
    return [
        Stage(
            "encode + networks, forward",
            N * (24 + 16 + kept) + (0 if in_place else N * (12 * layout.n_levels + kept)),
            lookups, table_bytes if in_place else level * 2 * f, 0, N * 2 * (density + color),
        ),
        # Both recompute their network; the gradients of inputs and of matrices cost as much again each.
        Stage(
            "colour network, backward", N * (kept + 12 + 16 + 32), 0, 0, 2 * 132 * color / per_atomic,
            N * 2 * (density + 3 * color),
        ),
        Stage(
            "density network, backward", N * (2 * kept + 32), 0, 0, 4 * 132 * density / per_atomic,
            N * 2 * (64 * n_features + 2 * density),
        ),
        scatter(layout, card.arch, 4),
        Stage("compositing and loss", N * 40),
        # float32 value and two moments read and written, short copy written, gradient read and cleared.
        Stage("Adam, every entry touched", layout.n_parameters * (24 + 2 + 8)),
        Stage("Adam, no entry touched", layout.n_parameters * 4),
        scatter(layout, card.arch, 2),
    ]  # fmt: skip


def point_stages(layout: GridLayout, n_outputs: int, draws_pixels: bool, card: Card) -> list[Stage]:
    """The kernels of a step of images or distances, in order; the last one is not part of the sums. Two hidden layers."""
    f, n_features, d = layout.n_features_per_level, layout.n_output, layout.n_dims
    macs = n_features * 64 + 64 * 64 + 64 * 16
    given = 4 * (d + n_outputs)  # bytes of position and target
    # Random bits written and read, a sector of the picture; or a copy of the batch.
    draw = Stage("draw pixels", N * (16 + SECTOR + given)) if draws_pixels else Stage("copy the batch", N * 2 * given)
    return [
        draw,
        Stage(
            "encode", N * (4 * d * layout.n_levels + 2 * n_features), N * sectors_of(layout, 2 * f) * SECTOR,
            max(layout.entries.tolist()) * 2 * f,
        ),
        # Forward, and the gradients of inputs and of matrices; features are read, their cotangents written.
        Stage(
            "network, loss, backward", N * (4 * n_features + 4 * n_outputs), 0, 0,
            2 * 132 * macs / (4 if card.arch >= 90 else 1), N * 2 * 3 * macs,
        ),
        scatter(layout, card.arch, 4),
        Stage("Adam, every entry touched", layout.n_parameters * (24 + 2 + 8)),
        Stage("Adam, no entry touched", layout.n_parameters * 4),
    ]  # fmt: skip


def table_of(title: str, stages_on: Callable[[Card], list[Stage]], sums: Sequence[tuple[str, slice]]) -> list[str]:
    """Lines of one section: stages, their least times, and sums of some of them."""
    lines = [title, "", f"On the {CARDS[-1].name}:", ""]
    lines += ["| stage | memory | table sectors | atomics | products |", "|---|---|---|---|---|"]
    for stage in stages_on(CARDS[-1]):
        lines.append(
            f"| {stage.name} | {stage.dram / 1e6:,.0f} MB | {stage.table / 1e6:,.0f} MB | "
            f"{stage.atomics / 1e6:.1f} M | {stage.operations / 1e9:.1f} G |"
        )
    lines += ["", "| stage: least time, and what sets it | " + " | ".join(c.name for c in CARDS) + " |"]
    lines += ["|---|" + "---|" * len(CARDS)]
    rows = {card.name: stages_on(card) for card in CARDS}
    for i, stage in enumerate(rows[CARDS[0].name]):
        cells = []
        for card in CARDS:
            seconds, limit = rows[card.name][i].seconds(card)
            cells.append(f"{seconds * 1e6:,.0f} µs {limit}")
        lines.append(f"| {stage.name} | " + " | ".join(cells) + " |")
    for label, chosen in sums:
        totals = [sum(s.seconds(card)[0] for s in rows[card.name][chosen]) for card in CARDS]
        cells = [f"{t * 1e6:,.0f} µs, {N / t / 1e6:,.0f} M/s" for t in totals]
        lines.append(f"| **{label}** | " + " | ".join(cells) + " |")
    return [*lines, ""]


def tables() -> str:
    """The page's tables in Markdown."""
    lines = []
    for name, layout in LAYOUTS.items():
        lines += table_of(
            f"### {name}, T 2^19: {layout.n_parameters:,} numbers",
            lambda card, layout=layout: stages(layout, card),
            (("encode + networks, forward and backward", slice(0, 4)), ("step after the march", slice(0, 6))),
        )
    for name, (layout, n_outputs, draws) in POINTS.items():
        lines += table_of(
            f"### {name}: {layout.n_parameters:,} numbers",
            lambda card, layout=layout, n=n_outputs, draws=draws: point_stages(layout, n, draws, card),
            (("step, every entry touched", slice(0, 5)),),
        )
    return "\n".join(lines)


def main() -> None:
    """Print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(with_tables(PAGE.read_text()))
    else:
        print(tables())


def with_tables(page: str) -> str:
    """The page with the tables between its marks replaced."""
    return re.sub(r"(<!-- tables -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}\n{tables()}\n{m[2]}", page, flags=re.S)


if __name__ == "__main__":
    main()
