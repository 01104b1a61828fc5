"""Pixels to draw rays from where the photos are larger than the memory they may take.

A photo is cut into strips of whole rows. As many strips as fit are in memory, of all photos, in random order; each is
an image of its own in the pool, seen by its photo's camera moved down. For as many pixels as were drawn, strips make
way for new ones, so that over a run every pixel is as likely as if all were in memory, and no strip is drawn from much
more than others.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from hashfield.errors import CheckpointError, ConfigError, DataError
from hashfield.geometry.rays import PixelPool
from hashfield.ops.occupancy_update import silhouettes
from hashfield.steps.stored_photos import bytes_per_pixel, stored_rows

STRIP_PIXELS = 1 << 14
"""Pixels of a strip, about: 64 KiB, which a disk reads as fast as less."""
MOVED_AT_ONCE = 32
"""Strips that make way together, at least."""
_PRINCIPAL_Y = 15  # column of the camera table


class StreamedPool:
    """A pool of strips of photos, some of which are in memory at a time."""

    def __init__(
        self,
        files: Sequence[Path],
        sizes: Sequence[tuple[int, int]],
        table_scene: Float64[Tensor, "n_images 24"],
        n_bytes: int,
        *,
        seed: int,
        masks: Sequence[np.ndarray] | None = None,
        margin_px: int | None = None,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        """Args:
        files: The file of each photo, see `stored_photos`.
        sizes: Width and height of each photo.
        table_scene: Their cameras in scene space.
        n_bytes: Memory for strips; one strip is held in any case.
        seed: Seed of the order of the strips.
        masks: Where each photo may be drawn from, bool [height, width]; None: everywhere.
        margin_px: Draw only within so many pixels of what is not clear by alpha; None: everywhere.
        rank: Which share of the strips this pool has.
        n_ranks: Shares that there are; where there are fewer strips, every one has all.

        Raises:
            ConfigError: no pixel may be drawn from.
        """
        self._files, self._sizes, self._masks, self._margin = list(files), list(sizes), masks, margin_px
        self._table_of_photo = table_scene.double().numpy()
        self._slot = max(STRIP_PIXELS, max(width for width, _ in sizes))
        rows = np.array([max(1, self._slot // width) for width, _ in sizes])
        heights = np.array([height for _, height in sizes])
        counts = -(-heights // rows)
        self._photo = np.repeat(np.arange(len(sizes)), counts)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        self._top = (np.arange(len(self._photo)) - first) * rows[self._photo]
        self._n_rows = np.minimum(rows[self._photo], heights[self._photo] - self._top)
        order = np.random.default_rng((seed, 1)).permutation(len(self._photo))
        self._order = order[rank::n_ranks] if len(order) >= n_ranks else order
        n = min(len(self._order), max(1, n_bytes // (4 * self._slot)))
        self._pixels = np.zeros((n * self._slot, 4), np.uint8)
        self._starts = np.arange(n) * self._slot
        self._widths, self._heights = np.ones(n, np.int64), np.ones(n, np.int64)
        self._table = np.zeros((n, 24))
        self._spans: list[np.ndarray] = [np.zeros((0, 3), np.int64)] * n
        self.n_moved = 0
        """Strips that made way so far: together with the seed it tells which strips are in memory."""
        self._due = 0.0
        self.move_to(0)

    @property
    def n_strips(self) -> int:
        """Strips that are drawn from in their turn: those of all photos, or a share of them."""
        return len(self._order)

    @property
    def n_drawable(self) -> int:
        """Pixels of these strips that may be drawn from. To count them, photos may have to be read once."""
        if self.n_held == self.n_strips:
            return int(self._ends[-1])
        return sum(int(self._inside(strip)[1].sum()) for strip in np.sort(self._order).tolist())

    @property
    def n_held(self) -> int:
        """Strips in memory at a time."""
        return len(self._starts)

    def state(self) -> dict[str, float]:
        """Where the pool is, as JSON values: together with the seed all that it takes to go on from there."""
        return {"moved": self.n_moved, "due": self._due}

    def restore(self, values: object) -> None:
        """Go to where `state` was asked.

        Raises:
            CheckpointError: these are no such values.
        """
        moved, due = (values.get(name) for name in ("moved", "due")) if isinstance(values, dict) else (None, None)
        if not isinstance(moved, int) or not isinstance(due, int | float) or moved < 0 or not 0 <= due < 1e9:
            raise CheckpointError(f"checkpoint: state: strips: expected where the photos' strips are, got {values!r}")
        self.move_to(moved)
        self._due = float(due)

    def move_to(self, n_moved: int) -> None:
        """Hold the strips that are held after so many have made way, wherever the pool is now."""
        held = np.arange(n_moved, n_moved + self.n_held)
        # in the order of the files, which is how a disk likes to be read
        strips = self._order[held % self.n_strips]
        for k in np.lexsort((self._top[strips], self._photo[strips])).tolist():
            self._load(int(held[k]) % self.n_held, int(strips[k]))
        self.n_moved, self._due = n_moved, 0.0
        self._until_drawable()

    def advance(self, n_drawn: int) -> bool:
        """Count pixels that were drawn; whether strips were exchanged for it, so that `pool` is another one.

        Args:
            n_drawn: Pixels since the last call.
        """
        if self.n_held == self.n_strips:
            return False
        # where masks leave a part of a strip, only that part counts
        self._due += n_drawn * self.n_held / max(1, int(self._ends[-1]))
        if self._due < min(MOVED_AT_ONCE, self.n_held):
            return False
        n = min(int(self._due), self.n_held)
        self._due -= n
        self._move(n)
        self._until_drawable()
        return True

    def _move(self, n: int) -> None:
        for _ in range(n):
            self._load(self.n_moved % self.n_held, int(self._order[(self.n_moved + self.n_held) % self.n_strips]))
            self.n_moved += 1

    def _until_drawable(self) -> None:
        """Set the spans; where none of the strips in memory may be drawn from, go on to others."""
        for _ in range(0, self.n_strips + self.n_held, self.n_held):
            self._all_spans = np.concatenate(self._spans)
            if len(self._all_spans):
                self._ends = np.cumsum(self._all_spans[:, 2])
                return
            self._move(self.n_held)
        raise ConfigError("nothing to train: no pixel of any photo may be drawn from")

    def _rows(self, photo: int, top: int, n_rows: int) -> np.ndarray:
        try:
            return stored_rows(self._files[photo], self._sizes[photo][0], top, n_rows)
        except (OSError, ValueError) as error:
            raise DataError(f"{self._files[photo]}: a decoded photo is gone; go on with --resume") from error

    def _inside(self, strip: int) -> tuple[np.ndarray, np.ndarray]:
        """(pixels of a strip, which of them may be drawn from)."""
        photo, top, n_rows = int(self._photo[strip]), int(self._top[strip]), int(self._n_rows[strip])
        width, height = self._sizes[photo]
        margin = self._margin or 0
        above, below = min(margin, top), min(margin, height - top - n_rows)
        rows = self._rows(photo, top - above, above + n_rows + below)
        inside = np.ones((n_rows, width), np.bool_)
        if self._margin is not None:
            sides = (torch.zeros(1, dtype=torch.int64), torch.tensor([width]), torch.tensor([len(rows)]))
            grown = silhouettes(torch.from_numpy(rows.reshape(-1, 4)), *sides, margin).numpy().reshape(-1, width)
            inside &= grown[above : above + n_rows] != 0
        if self._masks is not None:
            inside &= self._masks[photo][top : top + n_rows]
        return rows[above : above + n_rows], inside

    def _load(self, slot: int, strip: int) -> None:
        rows, inside = self._inside(strip)
        photo, (n_rows, width) = int(self._photo[strip]), inside.shape
        start, count = int(self._starts[slot]), n_rows * width
        self._pixels[start : start + count] = rows.reshape(-1, 4)
        self._widths[slot], self._heights[slot] = width, n_rows
        self._table[slot] = self._table_of_photo[photo]
        self._table[slot, _PRINCIPAL_Y] -= self._top[strip]
        self._spans[slot] = _spans(inside, slot)

    def pool(self, device: torch.device | None = None) -> PixelPool:
        """The strips in memory. On the CPU it shares their memory, and changes with the next `advance`."""
        arrays = (self._pixels, self._starts, self._widths, self._heights, self._table, self._all_spans, self._ends)
        found = PixelPool(*map(torch.from_numpy, arrays))
        return found if device is None or device.type == "cpu" else found.to(device)


def _spans(inside: np.ndarray, slot: int) -> np.ndarray:
    """(slot, first pixel, length) of the runs of pixels within rows that are held; one run where all of them are."""
    if inside.all():
        return np.array([[slot, 0, inside.size]], np.int64)
    steps = np.diff(np.pad(inside, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, begin = np.nonzero(steps == 1)
    _, end = np.nonzero(steps == -1)
    return np.stack([np.full_like(rows, slot), rows * inside.shape[1] + begin, end - begin], 1).astype(np.int64)


def overview(
    files: Sequence[Path],
    sizes: Sequence[tuple[int, int]],
    table_scene: Float64[Tensor, "n_images 24"],
    *,
    n_bytes: int | None,
    masks: Sequence[np.ndarray] | None = None,
) -> tuple[PixelPool, int]:
    """The photos as carving sees them, and by what their sides are divided: shrunk until they fit, each pixel as opaque
    as the most opaque of its block, or wholly where a mask leaves out any of it.

    Args:
        files: The file of each photo, see `stored_photos`.
        sizes: Width and height of each photo.
        table_scene: Their cameras in scene space.
        n_bytes: Memory that they may take; None: pixels do not matter, and none are read.
        masks: What the photos' masks hold, bool [height, width].
    """
    factor, starts, pixels = 1, torch.zeros(len(sizes), dtype=torch.int64), torch.zeros(1, 4, dtype=torch.uint8)
    shrunk = list(sizes)
    if n_bytes is not None:
        while 4 * sum(-(-w // factor) * -(-h // factor) for w, h in sizes) > n_bytes and factor < 256:
            factor += 1
        shrunk = [(-(-width // factor), -(-height // factor)) for width, height in sizes]
        parts = []
        for k, (file, (width, height)) in enumerate(zip(files, sizes, strict=True)):
            is_opaque = bytes_per_pixel(file) == 3
            alpha = np.uint8(255) if is_opaque else stored_rows(file, width, 0, height)[..., 3]
            alpha = np.broadcast_to(alpha, (height, width))
            if masks is not None:
                alpha = np.where(masks[k], alpha, 255)
            edge = ((0, -height % factor), (0, -width % factor))
            # a block that reaches beyond the picture is opaque, as nothing is known of what lies there
            blocks = np.pad(alpha, edge, constant_values=255).reshape(
                -(-height // factor), factor, -(-width // factor), factor
            )
            small = np.zeros((shrunk[k][1] * shrunk[k][0], 4), np.uint8)
            small[:, 3] = blocks.max(axis=(1, 3)).reshape(-1)
            parts.append(small)
        pixels = torch.from_numpy(np.concatenate(parts))
        counts = torch.tensor([width * height for width, height in shrunk])
        starts = torch.cumsum(counts, 0) - counts
    table = table_scene.double().clone()
    table[:, 12:16] /= factor
    widths, heights = (torch.tensor([size[axis] for size in shrunk]) for axis in range(2))
    spans = torch.tensor([[0, 0, 1]])
    return PixelPool(pixels, starts, widths, heights, table, spans, torch.ones(1, dtype=torch.int64)), factor
