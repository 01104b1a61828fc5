"""`import tinycudann` on any machine: an independent implementation of its interface.

    from hashfield import tcnn                     # instead of: import tinycudann as tcnn
    hashfield.tcnn.install()                       # or: make every `import tinycudann` find this one

Same configurations, order and initial values of parameters, and functions; no CUDA, nothing compiled at install time,
true second derivatives. `docs/tinycudann.md` tells what differs.
"""

import importlib.util
import sys

from hashfield.errors import HashfieldError
from hashfield.tcnn import modules as modules
from hashfield.tcnn.modules import Encoding as Encoding
from hashfield.tcnn.modules import Module as Module
from hashfield.tcnn.modules import Network as Network
from hashfield.tcnn.modules import NetworkWithInputEncoding as NetworkWithInputEncoding
from hashfield.tcnn.modules import free_temporary_memory as free_temporary_memory
from hashfield.tcnn.modules import set_default_dtype as set_default_dtype
from hashfield.tcnn.modules import supports_jit_fusion as supports_jit_fusion
from hashfield.tcnn.weights import from_linear as from_linear
from hashfield.tcnn.weights import to_linear as to_linear

NAME = "tinycudann"


class AlreadyInstalledError(HashfieldError, RuntimeError):
    """Another package owns the name `tinycudann`."""


def install(*, force: bool = False) -> None:
    """Make `import tinycudann` give this module in this process.

    Args:
        force: Also where the real package is installed or imported already.

    Raises:
        AlreadyInstalledError: another `tinycudann` is there.
    """
    ours = sys.modules[__name__]
    present = sys.modules.get(NAME)
    if present is ours:
        return
    if not force and (present is not None or importlib.util.find_spec(NAME) is not None):
        raise AlreadyInstalledError(
            f"install: a package named {NAME} is there already; use that one, or install(force=True) to hide it"
        )
    sys.modules[NAME] = ours
    sys.modules[f"{NAME}.modules"] = modules
