"""Encodings, networks and fields as `nn.Module`s with trainable parameters, over the ops."""

from hashfield.nn.config import EncodingConfig as EncodingConfig
from hashfield.nn.config import GridConfig as GridConfig
from hashfield.nn.config import MLPConfig as MLPConfig
from hashfield.nn.config import RadianceFieldConfig as RadianceFieldConfig
from hashfield.nn.encodings import CompositeEncoding as CompositeEncoding
from hashfield.nn.encodings import Encoding as Encoding
from hashfield.nn.encodings import FrequencyEncoding as FrequencyEncoding
from hashfield.nn.encodings import GridEncoding as GridEncoding
from hashfield.nn.encodings import IdentityEncoding as IdentityEncoding
from hashfield.nn.encodings import OneBlobEncoding as OneBlobEncoding
from hashfield.nn.encodings import SphericalHarmonicsEncoding as SphericalHarmonicsEncoding
from hashfield.nn.encodings import TriangleWaveEncoding as TriangleWaveEncoding
from hashfield.nn.encodings import encoding_from_config as encoding_from_config
from hashfield.nn.fields import RadianceField as RadianceField
from hashfield.nn.networks import MLP as MLP
from hashfield.nn.networks import NetworkWithEncoding as NetworkWithEncoding
