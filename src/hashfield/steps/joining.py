"""How the ranks come together, as the environment that `torchrun` sets tells them to, and part again.

Whoever does not fit, does not come or cannot be reached is found here, before anything is read or trained.
"""

import contextlib
import datetime
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any, Final

import torch

from hashfield._version import __version__
from hashfield.errors import ConfigError, HashfieldError, RanksError
from hashfield.steps.ranks import Ranks, using

JOIN_SECONDS: Final = 120.0
"""How long ranks wait for each other at the start."""
ANSWER_SECONDS: Final = 1800.0
"""How long an exchange waits for a rank that is there but says nothing: reading photos may take that long."""


@contextlib.contextmanager
def joined(patience: float = JOIN_SECONDS) -> Iterator[Ranks]:
    """Within the block, this process is one of those that the environment tells of; the `current` ranks.

    Args:
        patience: Seconds to wait for the others.

    Raises:
        RanksError: the others cannot be reached, do not come, or differ in version or number.
        ConfigError: the environment makes no sense.
    """
    rank, n = _numbers_of_environment()
    try:
        ranks = _meet(rank, n, patience)
    except RanksError as error:
        if error.is_said:
            raise SystemExit(2) from error
        raise
    with using(ranks):
        try:
            yield ranks
        except BaseException as error:
            is_known = isinstance(error, RanksError)
            if not is_known and not isinstance(error, SystemExit):
                ranks.leave(str(error) or type(error).__name__)
            if not ranks.speaks and isinstance(error, KeyboardInterrupt | HashfieldError | OSError | MemoryError):
                raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2) from error
            raise
        finally:
            _part(ranks)


def _numbers_of_environment() -> tuple[int, int]:
    """(rank, number of ranks)."""
    missing = [k for k in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if k not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE says that there are several ranks, but {', '.join(missing)} is not set: use torchrun"
        )
    try:
        rank, n = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except ValueError:
        rank, n = -1, -1
    if not 0 <= rank < n:
        raise ConfigError(
            f"RANK and WORLD_SIZE: expected a rank below the number of ranks, got {os.environ['RANK']!r} and "
            f"{os.environ['WORLD_SIZE']!r}"
        )
    return rank, n


def _meet(rank: int, n: int, patience: float) -> Ranks:
    """These ranks, connected."""
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    prefixed: Any = dist.PrefixStore  # pyright: ignore[reportPrivateImportUsage]
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    wait = datetime.timedelta(seconds=patience)
    try:
        store, _, _ = next(rendezvous("env://", rank, n, timeout=wait))
    except (RuntimeError, ValueError) as error:
        raise RanksError(f"rank {rank} cannot reach {place}, where the ranks meet: {_first_line(error)}") from error
    # torchrun keeps its store when it starts the ranks again after one was lost: what they noted before counts no more.
    store = prefixed(f"hashfield/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    try:
        names = _roll_call(store, rank, n, patience)
    except RanksError:
        raise
    except RuntimeError as error:
        raise RanksError(f"rank {rank} has lost {place}, where the ranks meet: {_first_line(error)}") from error
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(
            backend, store=prefixed("group", store), rank=rank, world_size=n,
            timeout=datetime.timedelta(seconds=ANSWER_SECONDS),
        )  # fmt: skip
    except RuntimeError as error:
        raise RanksError(f"{names[rank]} cannot connect to the others: {_first_line(error)}") from error
    return Ranks(rank, n, dist.group.WORLD, store, names)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _roll_call(store: Any, rank: int, n: int, patience: float, version: str = __version__) -> list[str]:
    """What messages call each rank, once all have come and fit together.

    Args:
        store: Takes notes.
        rank: Number of this process.
        n: Ranks that it expects.
        patience: Seconds to wait for them.
        version: Version of hashfield here.
    """
    own = {"n": n, "version": version, "host": socket.gethostname()}
    there: dict[int, dict[str, Any]] = {}

    def refused(text: str) -> RanksError:
        error = RanksError(text)
        error.is_said = min(there, default=rank) < rank  # all see the same; the first of those that came says it
        return error

    if store.add(f"claims/{rank}", 1) > 1:
        raise RanksError(f"two processes call themselves rank {rank}: each needs a RANK of its own")
    store.set(f"came/{rank}", json.dumps(own))
    deadline = time.monotonic() + patience
    while len(there) < n:
        for k in range(n):
            if k not in there and store.check([f"came/{k}"]):
                there[k] = json.loads(store.get(f"came/{k}"))
                for what, name in (("n", "number of ranks"), ("version", "version of hashfield")):
                    if there[k][what] != own[what]:
                        raise refused(
                            f"rank {k} ({there[k]['host']}) has another {name} than rank {rank} ({own['host']}): "
                            f"{there[k][what]} instead of {own[what]}"
                        )
        if len(there) < n and time.monotonic() > deadline:
            missing = ", ".join(str(k) for k in range(n) if k not in there)
            raise refused(f"{len(there)} of {n} ranks came within {patience:g} s; missing: {missing}")
        time.sleep(0.02)
    return [f"rank {k} ({there[k]['host']})" for k in range(n)]


def _part(ranks: Ranks) -> None:
    """Close the connections."""
    import torch.distributed as dist

    with contextlib.suppress(Exception):
        dist.destroy_process_group()
    ranks.group = None
