"""Steps that are never waited for: captured once in a CUDA graph, replayed, with random numbers of their own.

Everything such a step needs lies in buffers of a fixed size, and numbers that change from step to step (rates, step
lengths, counts) are read from the device's memory; a step then costs the host one launch. Under Triton's interpreter
the same code runs uncaptured on CPU tensors: that is how it is tested.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch

from hashfield.errors import CheckpointError

COMPUTE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types of the networks' numbers by the name of the precision."""
AHEAD = 4
"""Steps that may wait on the device. Enough that it never idles, few enough that the clock tells the truth."""


class CapturedSteps(ABC):
    """The steps of a run whose every buffer lies on a device."""

    def __init__(self, device: torch.device, seed: int) -> None:
        """Args:
        device: Where the buffers lie.
        seed: Seed of every random choice.
        """
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._is_warm = False
        self._events: list[torch.cuda.Event] = []

    @abstractmethod
    def _enqueue(self, due_interval: int = 1) -> None:
        """Launch one step."""

    def _run(self, due_interval: int = 1) -> None:
        """Launch one step, by its graph from the second one on; waits only where `AHEAD` steps are under way.

        Args:
            due_interval: What else than numbers in memory tells steps apart: each has a graph of its own.
        """
        if self.device.type != "cuda":
            self._enqueue(due_interval)
            return
        self._wait_for_room()
        if not self._is_warm:  # whatever is compiled or set up at a first call happens uncaptured
            self._is_warm = True
            self._enqueue(due_interval)
        else:
            if due_interval not in self._graphs:
                self._graphs[due_interval] = self._captured(due_interval)
            self._graphs[due_interval].replay()
        self._events[-1].record()

    def _wait_for_room(self) -> None:
        if len(self._events) < AHEAD:
            self._events.append(torch.cuda.Event())
            return
        oldest = self._events.pop(0)
        oldest.synchronize()
        self._events.append(oldest)

    def _captured(self, due_interval: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            self._enqueue(due_interval)
        return graph

    def _forget_graphs(self) -> None:
        """Capture anew: buffers that the graphs name have been replaced."""
        self._graphs.clear()

    def _random_state(self) -> list[int]:
        """State of the random numbers as JSON values."""
        return self.generator.get_state().tolist()

    def _restore_random(self, state: Any) -> None:
        """Put the random numbers into a saved state.

        Raises:
            CheckpointError: the state is not one of this device's generator.
        """
        try:
            self.generator.set_state(torch.tensor(state, dtype=torch.uint8))
        except (RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"checkpoint: device_random: not a generator's state: {error}") from error
