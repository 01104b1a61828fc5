"""Structure from motion by pycolmap: its stages as other processes, and what its database holds.

This process never imports pycolmap; the database of features and matches is read with sqlite3. A stage that is stopped
or killed loses at most a few seconds of work: what it has written to the database is found there by the next run.
"""

import importlib.util
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import numpy as np
from jaxtyping import Float32, Int64

from hashfield.errors import DataError

Report = Callable[[int, int], object]
"""Is called with what is done and what there is to do, in photos or pairs."""

_FULL: Final = 4 * 2**20  # bytes; where fewer are free and a stage failed, that is why
_WORKER: Final = Path(__file__).with_name("structure_worker.py")
_PAIR_BASE: Final = 2147483647
"""COLMAP numbers the pair of photos a < b as a * this + b."""
_VERIFIED: Final = range(2, 9)
"""Configurations of a pair that one motion of the camera, or a plane, explains."""


def require_pycolmap() -> None:
    """Raise ModuleNotFoundError, which the command line turns into what to install, where pycolmap is missing."""
    if not has_pycolmap():
        raise ModuleNotFoundError("structure from motion needs pycolmap", name="pycolmap")


def has_pycolmap() -> bool:
    """Whether features can be found and matched here."""
    return importlib.util.find_spec("pycolmap") is not None


@dataclass(frozen=True)
class Workshop:
    """A folder in which structure from motion works: small copies of photos, and the database."""

    folder: Path
    threads: int = -1
    """Threads of every stage; -1: one for each CPU."""
    seed: int = 0

    @property
    def database(self) -> Path:
        """Features and matches, in COLMAP's form."""
        return self.folder / "database.db"

    @property
    def photos(self) -> Path:
        """Small copies of the photos."""
        return self.folder / "photos"

    def run(self, stage: str, report: Report = lambda done, total: None, **job: Any) -> dict[str, Any]:
        """Run one stage of `structure_worker.py`: "probe", "features", "match", "solve" or "write".

        Args:
            stage: Name of a function there, whose docstring says what it does.
            report: Sees the progress.
            job: What that function reads of its job.

        Raises:
            DataError: the stage failed; the text says what to do.
        """
        require_pycolmap()
        given = {"stage": stage, "database": str(self.database), "photos": str(self.photos), "seed": self.seed}
        log = self.folder / "log.txt"
        with log.open("ab") as errors:
            # -P: the names of hashfield's own modules must not hide others. A session of its own: Ctrl-C reaches this
            # process alone, which then ends the other at once.
            worker = subprocess.Popen(
                [sys.executable, "-P", str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                text=True, encoding="utf-8", start_new_session=True,
            )  # fmt: skip
            answer: dict[str, Any] = {}
            assert worker.stdin is not None and worker.stdout is not None
            try:
                try:
                    worker.stdin.write(json.dumps({**given, "threads": self.threads, **job}))
                    worker.stdin.close()
                except BrokenPipeError:
                    pass  # it has ended already; why, the code below finds out
                for line in worker.stdout:
                    answer = json.loads(line)
                    if "done" in answer:
                        report(answer["done"], answer["total"])
            finally:
                if "result" not in answer:  # interrupted, or it says no more
                    worker.kill()
                worker.stdout.close()
                code = worker.wait()
        if "result" in answer:
            return answer["result"]
        raise DataError(_failure(self.folder, stage, answer.get("error"), code, log))


def _failure(folder: Path, stage: str, error: str | None, code: int, log: Path) -> str:
    """What to say about a stage that gave no result."""
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    told = error or (lines[-1] if lines else "")
    signs = ("disk is full", "no space left", "disk i/o error")
    if any(sign in told.lower() for sign in signs) or shutil.disk_usage(folder).free < _FULL:
        return f"{folder}: the disk is full: make room and run the same command again, it goes on where it stopped"
    if "malformed" in told or "not a database" in told:
        return f"{folder / 'database.db'}: is damaged: delete the folder {folder} and run the same command again"
    ended = told or f"exit code {code}"
    return f"structure from motion failed while it did '{stage}' ({' '.join(ended.split())}); the log is {log}"


# --- what the database holds


@dataclass(frozen=True)
class Pair:
    """Two photos that see the same things."""

    first: str
    second: str
    matches: Int64[np.ndarray, "n_matches 2"]
    """Numbers of the features that belong together."""


@dataclass(frozen=True)
class Matches:
    """Features of photos, and which of them are the same thing."""

    keypoints: dict[str, Float32[np.ndarray, "n_features 2"]] = field(default_factory=dict)
    """Pixels of the small copies, by name; (0, 0) is the upper left corner."""
    pairs: list[Pair] = field(default_factory=list)
    """Pairs that one motion of the camera explains, and only the matches that it does."""
    n_tried: int = 0
    """Pairs of photos that were compared."""

    def partners(self) -> dict[str, list[tuple[int, str]]]:
        """For each photo, (number of matches, other photo), the most first."""
        found: dict[str, list[tuple[int, str]]] = {name: [] for name in self.keypoints}
        for pair in self.pairs:
            found[pair.first].append((len(pair.matches), pair.second))
            found[pair.second].append((len(pair.matches), pair.first))
        return {name: sorted(others, reverse=True) for name, others in found.items()}


def _opened(database: Path) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(f"file:{quote(database.resolve().as_posix())}?mode=ro", uri=True))


def read_matches(database: Path) -> Matches:
    """Features and verified matches of a COLMAP database.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with _opened(database) as rows:
            names: dict[int, str] = dict(rows.execute("SELECT image_id, name FROM images"))
            keypoints = {
                names[k]: np.frombuffer(data or b"", np.float32).reshape(n, columns)[:, :2].copy()
                for k, n, columns, data in rows.execute("SELECT image_id, rows, cols, data FROM keypoints")
                if k in names
            }
            pairs, n_tried = [], 0
            for pair, n, data, kind in rows.execute("SELECT pair_id, rows, data, config FROM two_view_geometries"):
                n_tried += 1
                if kind in _VERIFIED and n:
                    first, second = names.get(pair // _PAIR_BASE, ""), names.get(pair % _PAIR_BASE, "")
                    matches = np.frombuffer(data, np.uint32).reshape(n, 2).astype(np.int64)
                    pairs.append(Pair(first, second, matches))
    except (sqlite3.Error, ValueError) as error:
        raise DataError(f"{database}: cannot be read: {error}") from error
    return Matches(keypoints, pairs, n_tried)


_CENTERS: Final = 64
_SAMPLED: Final = 200  # features of each photo that the centres are made from


def appearance_pairs(database: Path, n_partners: int) -> list[tuple[str, str]]:
    """Pairs of photos that look alike: for each photo those `n_partners` whose features are distributed most like its.

    Features are assigned to 64 centres (k-means); what a photo's deviate from them in the mean describes it (VLAD,
    Jégou et al. 2010).
    """
    with _opened(database) as rows:
        found = [
            (name, np.frombuffer(data or b"", np.uint8).reshape(n, columns).astype(np.float32) / 512)
            for name, n, columns, data in rows.execute(
                "SELECT name, rows, cols, data FROM descriptors JOIN images USING (image_id) ORDER BY name"
            )
            if n
        ]
    if len(found) < 2:
        return []
    random = np.random.default_rng(0)
    sample = np.concatenate([d[random.permutation(len(d))[:_SAMPLED]] for _, d in found])
    centers = sample[random.permutation(len(sample))[:_CENTERS]]
    for _ in range(8):
        nearest = _nearest(sample, centers)
        sums = np.zeros_like(centers)
        np.add.at(sums, nearest, sample)
        counts = np.bincount(nearest, minlength=len(centers))[:, None]
        centers = np.where(counts > 0, sums / np.maximum(counts, 1), centers)
    described = np.stack([_described(d, centers) for _, d in found])
    likeness = described @ described.T
    np.fill_diagonal(likeness, -np.inf)
    pairs = set()
    for row, others in enumerate(np.argsort(-likeness, axis=1)[:, :n_partners]):
        pairs.update((min(row, k), max(row, k)) for k in others.tolist() if k != row)
    return [(found[a][0], found[b][0]) for a, b in sorted(pairs)]


def _nearest(features: np.ndarray, centers: np.ndarray) -> np.ndarray:
    return np.argmin((centers**2).sum(axis=1) - 2 * features @ centers.T, axis=1)


def _described(features: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """One vector of length 1 for a photo's features."""
    nearest = _nearest(features, centers)
    sums = np.zeros_like(centers)
    np.add.at(sums, nearest, features - centers[nearest])
    sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
    return (sums / max(float(np.linalg.norm(sums)), 1e-9)).ravel()


_Name = TypeVar("_Name", bound=Hashable)


def connected(names: Iterable[_Name], links: Iterable[tuple[_Name, _Name]]) -> list[list[_Name]]:
    """The names in groups that links hold together, the largest group first.

    Args:
        names: All of them.
        links: Pairs of names.
    """
    root = {name: name for name in names}

    def find(name: _Name) -> _Name:
        while root[name] != name:
            root[name] = root[root[name]]
            name = root[name]
        return name

    for first, second in links:
        root[find(first)] = find(second)
    groups: dict[_Name, list[_Name]] = {}
    for name in root:
        groups.setdefault(find(name), []).append(name)
    return sorted(groups.values(), key=len, reverse=True)
