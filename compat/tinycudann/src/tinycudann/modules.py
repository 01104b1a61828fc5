"""The names of tinycudann.modules, from hashfield."""

import sys

from hashfield.tcnn import modules

sys.modules[__name__] = modules
