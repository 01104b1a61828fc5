"""Readers of posed photos. Each adds itself to `READERS`; `load_scene` finds the one that fits."""

from hashfield.data import colmap, llff, neus, transforms_json
from hashfield.data.dataset import READERS, PosedImages, Reader, ReadOptions, Scene, load_scene

# where a folder is of several forms, the first says most about its cameras
READERS.extend((transforms_json.READER, colmap.READER, llff.READER, neus.READER))

__all__ = ["READERS", "PosedImages", "ReadOptions", "Reader", "Scene", "load_scene"]
