"""The interface of tinycudann on any device: an independent implementation, see `hashfield.tcnn`."""

from hashfield.tcnn import (
    Encoding,
    Network,
    NetworkWithInputEncoding,
    free_temporary_memory,
    supports_jit_fusion,
)
from tinycudann import modules

__all__ = [
    "Encoding",
    "Network",
    "NetworkWithInputEncoding",
    "free_temporary_memory",
    "modules",
    "supports_jit_fusion",
]
