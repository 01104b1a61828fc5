"""Neural graphics primitives that install with pip and train on any computer.

The short public list; everything else is in the sub-packages. Importing this loads neither torch nor numba.
"""

from typing import TYPE_CHECKING, Any

from hashfield._version import __version__

if TYPE_CHECKING:
    from hashfield.api import load
    from hashfield.data.dataset import load_scene
    from hashfield.geometry.cameras import Camera
    from hashfield.nn.encodings import GridEncoding
    from hashfield.nn.fields import RadianceField
    from hashfield.nn.networks import MLP

__all__ = ["MLP", "Camera", "GridEncoding", "RadianceField", "__version__", "load", "load_scene"]

_HOME = {
    "MLP": "hashfield.nn.networks",
    "Camera": "hashfield.geometry.cameras",
    "GridEncoding": "hashfield.nn.encodings",
    "RadianceField": "hashfield.nn.fields",
    "load": "hashfield.api",
    "load_scene": "hashfield.data",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'hashfield' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
