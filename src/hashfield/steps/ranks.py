"""Several processes that train one model or share out work, on one machine or on many.

This module knows who they are and has everything that they tell each other. All of it travels through
`torch.distributed`, which `torchrun` starts; how the ranks come together is in `joining`. `current()` is this
process's place among them. One process alone runs the same code, in which every exchange is then the identity: nothing
is sent and nothing is waited for.

What keeps the ranks together: every rank draws the same random numbers and takes its share of what was drawn, gradients
are those of all ranks' batches together (`gradient_mean`), and whatever decides how a run goes on (the number of rays,
the clock, a wish to stop) is agreed on. All ranks therefore hold the same parameters bit for bit, which the training
loop verifies every so often.
"""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final, Literal, TypeVar

import torch
from jaxtyping import Float64
from torch import Tensor

from hashfield.errors import HashfieldError, RanksError

_T = TypeVar("_T")

Wire = Literal["bfloat16", "float32"]
"""Type in which gradients of a grid's sparse levels travel. A bfloat16 is off by 2^-9 of the number at most."""

ROLL_CALL_SECONDS: Final = 3.0
"""How long those that are left wait for each other's sign of life after an exchange has failed."""
BEAT_SECONDS: Final = 1.0
"""Time between two signs of life while work is dealt out."""
SILENCE_SECONDS: Final = 10.0
"""Silence after which work is taken back from a rank."""
_TEXT_BYTES: Final = 1024
_DONE, _FAILED = b"d", b"f"
"""First byte of the note about a piece of work."""


class Ranks:
    """This process's place among those that work together, and what they tell each other."""

    def __init__(self, rank: int = 0, n: int = 1, group: Any = None, store: Any = None, names: Sequence[str] = ()):
        """Args:
        rank: Number of this process, from 0.
        n: How many there are.
        group: torch.distributed's process group; None for one alone.
        store: What they leave notes for each other in, each note under a name of its own.
        names: What messages call each of them.
        """
        self.rank, self.n, self.group, self.store = rank, n, group, store
        self.names = list(names) or [f"rank {k}" for k in range(n)]
        self.speaks = rank == 0
        """Whether this process talks to the user: one does."""
        self.wire: Wire = "bfloat16"
        self.bytes_sent = 0
        """Bytes that this rank has handed over in exchanges, each counted once."""
        self._n_deals = 0

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the files."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This rank's part of n things that lie in order.

        >>> [Ranks(rank, 3).share(8) for rank in range(3)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
        """
        return slice(self.rank * n // self.n, (self.rank + 1) * n // self.n)

    # --- exchanges. All ranks call the same ones in the same order.

    def gather(self, values: Sequence[float]) -> Float64[Tensor, "n k"]:
        """Some numbers of every rank."""
        return self.gather_later(values)()

    def gather_later(self, values: Sequence[float]) -> Callable[[], Float64[Tensor, "n k"]]:
        """Begin to gather some numbers of every rank; the function returned waits for them."""
        own = torch.tensor(list(values), dtype=torch.float64)
        if self.n == 1:
            return lambda: own[None]
        found = [torch.empty_like(own) for _ in range(self.n)]
        wait = self._begin(lambda group: group.allgather([found], [own]))
        self.bytes_sent += own.nbytes

        def finish() -> Tensor:
            wait()
            return torch.stack(found)

        return finish

    def sum_later(self, values: Tensor) -> Callable[[], None]:
        """Begin to replace a tensor by the sum of every rank's, in place; the function returned waits for it."""
        if self.n == 1:
            return lambda: None
        self.bytes_sent += values.nbytes
        return self._begin(lambda group: group.allreduce([values]))

    def swap_later(self, own: Tensor, found: Sequence[Tensor], tag: int) -> Callable[[], None]:
        """Begin to send a tensor to every other rank, and to receive theirs; the function returned waits for all of it.

        Args:
            own: What this rank sends; must not be changed before the wait is over.
            found: Where that of each rank goes, as large as what it sends; this rank's own is left alone.
            tag: Tells exchanges apart that are on their way at the same time.
        """
        left = []
        for k, there in enumerate(found):
            if k != self.rank:
                left.append(self._begin(lambda group, there=there, k=k: group.recv([there], k, tag)))
        for k in range(self.n):
            if k != self.rank:
                left.append(self._begin(lambda group, k=k: group.send([own], k, tag)))
        self.bytes_sent += own.nbytes

        def finish() -> None:
            while left:
                left.pop(0)()

        return finish

    def gather_tensor(self, own: Tensor) -> list[Tensor]:
        """A tensor of every rank; all are of the same shape."""
        if self.n == 1:
            return [own]
        found = [torch.empty_like(own) for _ in range(self.n)]
        self._begin(lambda group: group.allgather([found], [own]))()
        self.bytes_sent += own.nbytes
        return found

    def joined_shares(self, own: Tensor, n: int) -> Tensor:
        """All n things, of which each rank has its `share`.

        Args:
            own: Those of this rank, along the first axis.
            n: Numbers that all ranks have together.
        """
        if self.n == 1:
            return own
        padded = own.new_zeros((-(-n // self.n), *own.shape[1:]))
        padded[: len(own)] = own
        found = self.gather_tensor(padded)
        counts = [Ranks(k, self.n).share(n) for k in range(self.n)]
        return torch.cat([x[: part.stop - part.start] for x, part in zip(found, counts, strict=True)])

    def texts(self, own: str) -> list[str]:
        """A short text of every rank; it is cut at a thousand bytes."""
        if self.n == 1:
            return [own]
        data = own.encode()[:_TEXT_BYTES]
        padded = torch.zeros(_TEXT_BYTES, dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[: len(data)]
        found = self.gather_tensor(padded)
        return [bytes(x.tolist()).rstrip(b"\0").decode(errors="ignore") for x in found]

    def from_first(self, make: Callable[[], _T]) -> _T:
        """What the first rank makes, a JSON value, on every rank; what it raises ends all.

        Raises:
            RanksError: the first rank failed.
        """
        if self.n == 1:
            return make()
        text = ""
        with self.agreed():
            if self.is_first:
                text = json.dumps(make())
        return json.loads(bytes(self._bytes_from_first(text.encode()).numpy()))

    def tensors_from_first(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first rank's tensors on every rank, on the host.

        Args:
            tensors: By name; read on the first rank only.
        """
        if self.n == 1:
            return dict(tensors)
        about = self.from_first(lambda: [[k, list(v.shape), str(v.dtype)[6:]] for k, v in tensors.items()])
        found = {}
        for name, shape, dtype in about:
            value = torch.empty(shape, dtype=getattr(torch, dtype))
            if self.is_first:
                value.copy_(tensors[name])
            if value.numel():
                self._broadcast(value.reshape(-1).view(torch.uint8))
            found[name] = value
        return found

    def _bytes_from_first(self, data: bytes) -> Tensor:
        size = torch.tensor([len(data)])
        self._broadcast(size)
        buffer = torch.zeros(int(size), dtype=torch.uint8)
        if self.is_first:
            buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        self._broadcast(buffer)
        return buffer

    def _broadcast(self, value: Tensor) -> None:
        self._begin(lambda group: group.broadcast([value]))()

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        """What any rank raises within the block is raised on all of them, so that none waits for one that has left.

        Raises:
            RanksError: another rank failed; the text names it and says why.
        """
        if self.n == 1:
            yield
            return
        raised: Exception | None = None
        try:
            yield
        except Exception as error:
            raised = error
        if isinstance(raised, RanksError):  # the others know already, or cannot be told
            raise raised
        found = self.texts("" if raised is None else str(raised) or type(raised).__name__)
        failed = [k for k, text in enumerate(found) if text]
        if not failed:
            return
        if raised is not None and ((failed == [self.rank] and self.is_first) or not _is_the_users(raised)):
            raise raised
        k = failed[0]
        raise RanksError(found[k] if k == 0 else f"{self.names[k]}: {found[k]}")

    def check_same(self, what: str, own: object) -> None:
        """Raise on every rank unless all say the same.

        Args:
            what: Named in the error.
            own: What is compared, by its text.

        Raises:
            RanksError: some rank says something else than the first one.
        """
        found = self.texts(str(own))
        for name, text in zip(self.names, found, strict=True):
            if text != found[0]:
                raise RanksError(f"{name} has another {what} than {self.names[0]}: {text} instead of {found[0]}")

    def _begin(self, launch: Callable[[Any], Any]) -> Callable[[], None]:
        """Begin an exchange; the function returned waits for its end. A failure of either names who is gone."""
        if self.group is None:
            raise RanksError("the ranks are not connected any more")
        try:
            work = launch(self.group)
        except RuntimeError as error:
            raise self._lost(error) from error

        def wait() -> None:
            try:
                work.wait()
            except RuntimeError as error:
                raise self._lost(error) from error

        return wait

    def _lost(self, error: RuntimeError) -> RanksError:
        """The error that names the rank which is gone, after a roll call of those that are left."""
        group, self.group = self.group, None
        with contextlib.suppress(Exception):
            if group is not None:
                group.abort()  # those who wait for this rank fail too now, and come to the roll call
        try:
            self.store.set(f"living/{self.rank}", "1")
            started = time.monotonic()
            living = {self.rank}
            while len(living) < self.n and time.monotonic() < started + ROLL_CALL_SECONDS:
                if len(living) >= self.n - 1 and time.monotonic() > started + 0.3 * ROLL_CALL_SECONDS:
                    break
                time.sleep(0.05)
                living |= {k for k in range(self.n) if self.store.check([f"living/{k}"])}
            gone = [k for k in range(self.n) if k not in living]
            self.speaks = self.rank == min(living)
            for k in gone:
                if self.store.check([f"left/{k}"]):
                    is_said, text = json.loads(self.store.get(f"left/{k}"))
                    self.speaks &= not is_said
                    return RanksError(f"{self.names[k]}: {text}")
        except RuntimeError:
            self.speaks = True
            return RanksError(f"{self.names[0]} is gone, or the machine where the ranks meet")
        if not gone:
            return RanksError(f"the connection between the ranks broke: {str(error).splitlines()[0]}")
        are = "is" if len(gone) == 1 else "are"
        return RanksError(f"{', '.join(self.names[k] for k in gone)} {are} gone: killed, or cut off from the network")

    def leave(self, text: str) -> None:
        """Tell the others why this rank goes, for whoever misses it."""
        if self.store is not None:
            with contextlib.suppress(RuntimeError):
                self.store.set(f"left/{self.rank}", json.dumps([self.speaks, text]))

    # --- sharing out work

    def deal(
        self, n: int, make: Callable[[int], _T], pack: Callable[[_T], bytes], unpack: Callable[[bytes], _T]
    ) -> Iterator[_T]:
        """Deal n pieces of work out to the ranks: each takes the next when it has done its last.

        The first rank gets all results in order; on the others the iterator ends without any, once nothing is left.
        What a rank has taken but not delivered when it falls silent is done by the first one.

        Args:
            n: Pieces of work.
            make: Does the piece with a number; the same on whichever rank.
            pack, unpack: A result as bytes, and back.

        Raises:
            RanksError: another rank met an error of the user's; the text is that of the error.
        """
        if self.n == 1:
            yield from map(make, range(n))
            return
        self._n_deals += 1
        key = f"deal/{self._n_deals}"
        if not self.is_first:
            with self._beating(f"{key}/beat/{self.rank}"):
                while (k := self._taken(key)) < n:
                    try:
                        result = _DONE + pack(make(k))
                    except HashfieldError as error:
                        self._note(f"{key}/{k}", _FAILED + str(error).encode())
                        return
                    self._note(f"{key}/{k}", result)
            return
        ready: dict[int, _T] = {}
        watch, is_all_taken = _Watch(self.store, key), False
        for wanted in range(n):
            while wanted not in ready:
                if self.store.check([f"{key}/{wanted}"]):
                    note = self.store.get(f"{key}/{wanted}")
                    self.store.delete_key(f"{key}/{wanted}")
                    if note[:1] == _FAILED:
                        raise RanksError(f"{self._owner(key, wanted)}: {note[1:].decode()}")
                    ready[wanted] = unpack(note[1:])
                elif not is_all_taken:
                    k = self.store.add(f"{key}/next", 1) - 1
                    is_all_taken = k >= n
                    if not is_all_taken:
                        ready[k] = make(k)
                elif watch.is_silent(wanted):
                    ready[wanted] = make(wanted)
                else:
                    time.sleep(0.01)
            yield ready.pop(wanted)

    def _taken(self, key: str) -> int:
        """Number of the piece of work that this rank takes next; more than there are where nobody wants it any more."""
        try:
            k = self.store.add(f"{key}/next", 1) - 1
            self.store.set(f"{key}/owner/{k}", str(self.rank))
        except RuntimeError:  # once the first rank has all that it wants it may be gone, and the notes with it
            return sys.maxsize
        return k

    def _note(self, key: str, value: bytes) -> None:
        with contextlib.suppress(RuntimeError):  # as above: then nobody wants it any more
            self.store.set(key, value)

    def _owner(self, key: str, number: int) -> str:
        return self.names[int(self.store.get(f"{key}/owner/{number}"))]

    @contextlib.contextmanager
    def _beating(self, key: str) -> Iterator[None]:
        """Within the block, signs of life of this rank."""
        ended = threading.Event()

        def beat() -> None:
            count = 0
            with contextlib.suppress(RuntimeError):
                while not ended.is_set():
                    count += 1
                    self.store.set(key, str(count))
                    ended.wait(BEAT_SECONDS)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class _Watch:
    """Whether those who have taken work still give signs of life."""

    def __init__(self, store: Any, key: str) -> None:
        self.store, self.key = store, key
        self._seen: dict[str, tuple[bytes, float]] = {}

    def is_silent(self, number: int) -> bool:
        """Whether whoever took this piece of work has been silent for too long."""
        owner = self._note(f"{self.key}/owner/{number}").decode()
        beat, now = self._note(f"{self.key}/beat/{owner}"), time.monotonic()
        before, since = self._seen.get(owner, (b"", now))
        if beat != before or owner not in self._seen:
            self._seen[owner] = (beat, now)
            return False
        return now > since + SILENCE_SECONDS

    def _note(self, name: str) -> bytes:
        return self.store.get(name) if self.store.check([name]) else b""


def _is_the_users(error: Exception) -> bool:
    """Whether an error is one that a line says all about; of a bug, the traceback is wanted."""
    return isinstance(error, HashfieldError | OSError | MemoryError)


class Turns:
    """What the ranks tell each other at each step of a loop, one step late, so that nobody waits for it."""

    def __init__(self, ranks: Ranks) -> None:
        """Args: ranks: Those that tell each other."""
        self.ranks = ranks
        self._told: Callable[[], Tensor] | None = None

    def __call__(self, elapsed: float, wants_to_stop: bool) -> tuple[float, bool]:
        """(seconds of training, whether to stop) as all ranks see them: the first one's clock, anyone's wish.

        Args:
            elapsed: By this rank's clock.
            wants_to_stop: Whether this rank was asked to end the run.
        """
        if self.ranks.n == 1:
            return elapsed, wants_to_stop
        before, self._told = self._told, self.ranks.gather_later([elapsed, float(wants_to_stop)])
        found = (before or self._told)()
        return float(found[0, 0]), bool(found[:, 1].any())

    def end(self) -> None:
        """Wait for what was told last."""
        if self._told is not None:
            self._told()
            self._told = None


ALONE: Final = Ranks()
_current: ContextVar[Ranks] = ContextVar("hashfield_ranks", default=ALONE)


def current() -> Ranks:
    """This process's place among those that work together; alone where nothing else was said."""
    return _current.get()


@contextlib.contextmanager
def using(ranks: Ranks) -> Iterator[Ranks]:
    """Within the block these are the `current` ranks."""
    token = _current.set(ranks)
    try:
        yield ranks
    finally:
        _current.reset(token)


@contextlib.contextmanager
def working_alone() -> Iterator[None]:
    """Within the block this process trains by itself; it talks to the user only if it did before."""
    alone = Ranks()
    alone.speaks = current().speaks
    with using(alone):
        yield
