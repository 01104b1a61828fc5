"""Readers of posed photos. Each adds itself to `READERS`; `load_scene` finds the one that fits."""

from hashfield.data import transforms_json
from hashfield.data.dataset import READERS, PosedImages, Reader, ReadOptions, Scene, load_scene

READERS.append(transforms_json.READER)

__all__ = ["READERS", "PosedImages", "ReadOptions", "Reader", "Scene", "load_scene"]
