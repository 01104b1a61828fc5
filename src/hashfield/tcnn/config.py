"""What tiny-cuda-nn's JSON configurations mean: read, checked, with its defaults and its canonical spelling.

Keys are case-sensitive, the words that are values are not, unknown keys are ignored. Any mapping, sequence and
scalar of numpy is taken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hashfield.errors import ConfigError, HashfieldError
from hashfield.geometry.grid_layout import GridLayout, GridType, HashType
from hashfield.nn.config import MLPConfig
from hashfield.nn.encodings import (
    CompositeEncoding,
    Encoding,
    FrequencyEncoding,
    GridEncoding,
    IdentityEncoding,
    OneBlobEncoding,
    Reduction,
    TriangleWaveEncoding,
)
from hashfield.ops.grid_encode import Interpolation
from hashfield.ops.mlp import Activation
from hashfield.tcnn.encodings import EmptyEncoding, StochasticGridEncoding, UnitHarmonicsEncoding

ALIGNMENT = 16
"""Widths of a network's input and output are multiples of this."""


class TcnnError(HashfieldError, RuntimeError, ValueError):
    """A configuration or a call that tiny-cuda-nn, too, answers with a RuntimeError."""


_ACTIVATIONS: dict[str, tuple[str, Activation]] = {
    "none": ("None", "none"),
    "relu": ("ReLU", "relu"),
    "leakyrelu": ("LeakyReLU", "leaky_relu"),
    "leaky relu": ("LeakyReLU", "leaky_relu"),  # as nerfstudio spells it
    "silu": ("SiLU", "silu"),
    "exponential": ("Exponential", "exp"),
    "sine": ("Sine", "sine"),
    "sigmoid": ("Sigmoid", "sigmoid"),
    "squareplus": ("Squareplus", "squareplus"),
    "softplus": ("Softplus", "softplus"),
    "tanh": ("Tanh", "tanh"),
}
_NETWORKS = {"fullyfusedmlp": "FullyFusedMLP", "megakernelmlp": "FullyFusedMLP", "cutlassmlp": "CutlassMLP",
             "mlp": "CutlassMLP"}  # fmt: skip
_TYPES: dict[str, GridType] = {"hash": "Hash", "dense": "Dense", "tiled": "Tiled", "tile": "Tiled"}
_INTERPOLATIONS: dict[str, tuple[str, Interpolation]] = {
    "nearest": ("Nearest", "nearest"),
    "linear": ("Linear", "linear"),
    "smoothstep": ("Smoothstep", "smoothstep"),
}
_HASHES: dict[str, HashType] = {
    "coherentprime": "CoherentPrime",
    "prime": "Prime",
    "reversedprime": "ReversedPrime",
    "rng": "Rng",
    "baseconvert": "BaseConvert",
}
_REDUCTIONS: dict[str, Reduction] = {"concatenation": "concatenation", "sum": "sum", "product": "product"}
_GRIDS: dict[str, GridType] = {"grid": "Hash", "hashgrid": "Hash", "tiledgrid": "Tiled", "densegrid": "Dense"}


@dataclass(frozen=True)
class EncodingSpec:
    """An encoding and what it calls itself."""

    module: Encoding
    """Without tables of its own: they are given at each call."""
    hyperparams: dict[str, Any]
    """Canonical spelling, keys in alphabetical order."""


@dataclass(frozen=True)
class NetworkSpec:
    """A network's shapes, padding included, and activations."""

    shapes: tuple[tuple[int, int], ...]
    """[n_out, n_in] of each matrix."""
    activation: Activation
    """Between the layers."""
    output_activation: Activation
    """After the last."""
    hyperparams: dict[str, Any]
    """Canonical spelling, keys in alphabetical order."""

    @property
    def n_parameters(self) -> int:
        """Numbers in the matrices."""
        return sum(rows * columns for rows, columns in self.shapes)


def read_encoding(n_input: int, config: Any) -> EncodingSpec:
    """The encoding that a configuration describes.

    Args:
        n_input: Components of an input.
        config: As tiny-cuda-nn's JSON; without an otype it is OneBlob.

    Raises:
        TcnnError: the configuration is not one.
    """
    config = _mapping("encoding", config)
    otype = _text(config, "otype", "OneBlob")
    name = otype.lower()
    try:
        if name in _GRIDS:
            return _grid(n_input, config, _GRIDS[name])
        if name == "composite":
            return _composite(n_input, config)
        if name in ("nrc", "oneblobfrequency"):
            return _nrc(n_input, config)
        if name == "sphericalharmonics":
            if n_input != 3:
                raise TcnnError(f"SphericalHarmonics: can only encode 3D directions, got {n_input} dimensions")
            degree = _integer(config, "degree", 4)
            if not 1 <= degree <= 8:
                raise TcnnError(f"SphericalHarmonics: degree: expected 1 to 8, got {degree}")
            return EncodingSpec(UnitHarmonicsEncoding(degree), {"degree": degree, "otype": "SphericalHarmonics"})
        if name == "identity":
            scale, offset = _number(config, "scale", 1.0), _number(config, "offset", 0.0)
            hyperparams = {"offset": offset, "otype": "Identity", "scale": scale}
            return EncodingSpec(IdentityEncoding(n_input, scale=scale, offset=offset), hyperparams)
        if name == "empty":
            return EncodingSpec(EmptyEncoding(n_input), {"otype": "Empty"})
        if name in ("frequency", "trianglewave"):
            n = _integer(config, "n_frequencies", 12)
            kind, label = (
                (FrequencyEncoding, "Frequency") if name == "frequency" else (TriangleWaveEncoding, "TriangleWave")
            )
            return EncodingSpec(kind(n_input, n), {"n_frequencies": n, "otype": label})
        if name == "oneblob":
            n = _integer(config, "n_bins", 16)
            if n < 1 or n & (n - 1):
                raise TcnnError(f"OneBlob: n_bins: expected a power of two, got {n}")
            return EncodingSpec(OneBlobEncoding(n_input, n), {"n_bins": n, "otype": "OneBlob"})
    except ConfigError as error:
        raise TcnnError(f"{otype}: {error}") from error
    raise TcnnError(f"Encoding '{otype}' not found")


def read_network(n_input: int, n_output: int, config: Any) -> NetworkSpec:
    """The network that a configuration describes.

    Args:
        n_input: Width of the encoded input, before padding.
        n_output: Outputs, before padding.
        config: As tiny-cuda-nn's JSON; without an otype it is an MLP.

    Raises:
        TcnnError: the configuration is not one.
    """
    config = _mapping("network", config)
    otype = _text(config, "otype", "MLP")
    kind = _NETWORKS.get(otype.lower())
    if kind is None:
        raise TcnnError(f"Invalid network type: {otype}")
    width, depth = _integer(config, "n_neurons", 128), _integer(config, "n_hidden_layers", 5)
    if kind == "FullyFusedMLP" and width not in (16, 32, 64, 128):
        raise TcnnError(f"FullyFusedMLP only supports 16, 32, 64, and 128 neurons, but got {width}. "
                        "Use CutlassMLP instead if this is a requirement.")  # fmt: skip
    if depth < (1 if kind == "FullyFusedMLP" else 0):
        raise TcnnError(f"{kind} requires at least 1 hidden layer (3 layers in total).")
    if n_output < 1:
        raise TcnnError(f"n_output_dims: expected at least 1, got {n_output}")
    hidden, between = _activation(_text(config, "activation", "ReLU"))
    last, after = _activation(_text(config, "output_activation", "None"))
    try:
        shapes = MLPConfig(width, depth).shapes(padded(n_input), padded(n_output))
    except ConfigError as error:
        raise TcnnError(f"{kind}: {error}") from error
    hyperparams = {"activation": hidden, "n_hidden_layers": depth, "n_neurons": width, "otype": kind,
                   "output_activation": last}  # fmt: skip
    return NetworkSpec(tuple(shapes), between, after, hyperparams)


def padded(width: int) -> int:
    """The next multiple of 16; an encoding without features counts as one."""
    return max(1, -(-width // ALIGNMENT)) * ALIGNMENT


def _grid(n_input: int, config: Mapping[str, Any], default_type: GridType) -> EncodingSpec:
    n_features = _integer(config, "n_features_per_level", 2)
    total = [config[key] for key in ("n_features", "n_grid_features") if key in config]
    if n_features not in (1, 2, 4, 8):
        raise TcnnError(f"GridEncoding: n_features_per_level must be 1, 2, 4, or 8, got {n_features}")
    if total:
        if "n_levels" in config:
            raise TcnnError("GridEncoding: cannot specify both n_features and n_levels")
        width = int(total[0])
        if width % n_features:
            raise TcnnError(f"GridEncoding: n_features {width} is no multiple of n_features_per_level {n_features}")
        n_levels = width // n_features
    else:
        n_levels = _integer(config, "n_levels", 16)
    kind = _word(config, "type", default_type, _TYPES, "grid type")
    base = _integer(config, "base_resolution", 16)
    scale = 2.0
    if kind == "Dense":
        # With one level the formula divides by zero; the scale of a single level does not matter.
        scale = float(np.exp2(np.log2(np.float32(256) / base) / np.float32(n_levels - 1))) if n_levels > 1 else 1.0
    scale = float(np.float32(_number(config, "per_level_scale", scale)))
    label, interpolation = _word(config, "interpolation", "Linear", _INTERPOLATIONS, "interpolation type")
    hashing = _word(config, "hash", "CoherentPrime", _HASHES, "hash type")
    is_stochastic = bool(config.get("stochastic_interpolation", False))
    log2_size = _integer(config, "log2_hashmap_size", 19)
    options: dict[str, Any] = {
        "type": kind,
        "n_levels": n_levels,
        "n_features_per_level": n_features,
        "log2_hashmap_size": log2_size,
        "base_resolution": base,
        "per_level_scale": scale,
        "interpolation": interpolation,
        "hash": hashing,
        "has_table": False,
    }
    module = (StochasticGridEncoding if is_stochastic else GridEncoding)(n_input, **options)
    hyperparams: dict[str, Any] = {"base_resolution": base, "hash": hashing, "interpolation": label}
    if kind == "Hash":
        hyperparams["log2_hashmap_size"] = log2_size
    hyperparams |= {"n_features_per_level": n_features, "n_levels": n_levels, "otype": "Grid",
                    "per_level_scale": scale, "type": kind}  # fmt: skip
    return EncodingSpec(module, hyperparams)


def _composite(n_input: int, config: Mapping[str, Any]) -> EncodingSpec:
    nested = config.get("nested")
    if not isinstance(nested, Sequence) or isinstance(nested, str) or not nested:
        raise TcnnError("Composite: nested: expected a list of at least one encoding")
    reduction = _word(config, "reduction", "Concatenation", _REDUCTIONS, "reduction type")
    configs = [_mapping("nested encoding", each) for each in nested]
    has_begins = any("dims_to_encode_begin" in each for each in configs)
    stated = [None if each.get("n_dims_to_encode") is None else int(each["n_dims_to_encode"]) for each in configs]
    if has_begins and None in stated:
        raise TcnnError("Composite: n_dims_to_encode is needed everywhere once dims_to_encode_begin is given")
    if stated.count(None) > 1:
        raise TcnnError("Composite: may only leave 'n_dims_to_encode' unspecified for a single nested encoding")
    used = sum(n for n in stated if n is not None)
    if not has_begins and used > n_input:
        raise TcnnError(f"Composite: nested encodings take {used} dimensions, the input has {n_input}")
    specs: list[EncodingSpec] = []
    begins: list[int] = []
    begin = 0
    for each, n in zip(configs, stated, strict=True):
        n = n_input - used if n is None else n
        begin = int(each.get("dims_to_encode_begin", begin))
        if n < 0 or begin < 0 or begin + n > n_input:
            raise TcnnError(f"Composite: dimensions {begin} to {begin + n} lie outside the input's {n_input}")
        if n > 0:
            specs.append(read_encoding(n, each))
            begins.append(begin)
        begin += n
    hyperparams = {"nested": [spec.hyperparams for spec in specs], "otype": "Composite"}
    if not specs:
        return EncodingSpec(EmptyEncoding(n_input), hyperparams)
    module = CompositeEncoding([spec.module for spec in specs], begins=begins, reduction=reduction)
    return EncodingSpec(module, hyperparams)


def _nrc(n_input: int, config: Mapping[str, Any]) -> EncodingSpec:
    # The encoding of the neural radiance cache: position, then five numbers of direction and roughness, then the rest.
    if n_input < 8:
        raise TcnnError(f"OneBlobFrequency: expected at least 8 dimensions, got {n_input}")
    nested = [
        {"otype": "TriangleWave", "n_dims_to_encode": 3, "n_frequencies": _integer(config, "n_frequencies", 12)},
        {"otype": "OneBlob", "n_dims_to_encode": 5, "n_bins": _integer(config, "n_bins", 4)},
        {"otype": "Identity"},
    ]
    return _composite(n_input, {"nested": nested})


def _activation(name: str) -> tuple[str, Activation]:
    if name.lower() not in _ACTIVATIONS:
        raise TcnnError(f"Invalid activation name: {name}")
    return _ACTIVATIONS[name.lower()]


def _word(config: Mapping[str, Any], key: str, default: str, words: Mapping[str, Any], what: str) -> Any:
    text = _text(config, key, default)
    if text.lower() not in words:
        raise TcnnError(f"Invalid {what}: {text}")
    return words[text.lower()]


def _text(config: Mapping[str, Any], key: str, default: str) -> str:
    value = config.get(key, default)
    if not isinstance(value, str):
        raise TcnnError(f"{key}: expected a string, got {value!r}")
    return value


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TcnnError(f"{key}: expected a number, got {value!r}") from None
    if not np.isfinite(number):
        raise TcnnError(f"{key}: expected a finite number, got {value!r}")
    return number


def _integer(config: Mapping[str, Any], key: str, default: int) -> int:
    return int(_number(config, key, default))  # truncated, as JSON's numbers are there


def _mapping(what: str, config: Any) -> Mapping[str, Any]:
    if not isinstance(config, Mapping):
        raise TcnnError(f"{what} config: expected a dictionary, got {type(config).__name__}")
    return config


def layouts_of(encoding: Encoding) -> list[GridLayout]:
    """The layouts of all grids in an encoding, in the order of their tables."""
    if isinstance(encoding, GridEncoding):
        return [encoding.layout]
    if isinstance(encoding, StochasticGridEncoding):
        return [encoding.grid.layout]
    if isinstance(encoding, CompositeEncoding):
        return [layout for each in encoding.encodings for layout in layouts_of(each)]  # pyright: ignore[reportArgumentType]
    return []
