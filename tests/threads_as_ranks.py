"""Ranks for tests: threads of one process, each with a process group of its own over the loopback.

Gloo is the same as between machines, and nothing has to be started.
"""

import datetime
import threading
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from hashfield.steps.ranks import Ranks, using


def as_ranks(n: int, work: Callable[[Ranks], Any], wire: Any = "float32", errors: list[Any] | None = None) -> list[Any]:
    """What `work` returns on each of n ranks.

    Args:
        n: Ranks.
        work: What each of them does.
        wire: Type in which gradients travel.
        errors: Filled with what each rank raises; None: the first that is raised by any is raised here.
    """
    store = dist.HashStore()
    found: list[Any] = [None] * n
    raised: list[BaseException | None] = [None] * n

    def run(rank: int) -> None:
        try:
            group = dist.ProcessGroupGloo(store, rank, n, datetime.timedelta(seconds=60))
            ranks = Ranks(rank, n, group, dist.PrefixStore("notes", store))
            ranks.wire = wire
            with using(ranks):
                found[rank] = work(ranks)
        except BaseException as error:
            raised[rank] = error

    threads = [threading.Thread(target=run, args=(k,)) for k in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors is not None:
        errors.extend(raised)
        return found
    for error in raised:
        if error is not None:
            raise error
    return found
