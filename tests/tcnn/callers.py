"""What programs that import tinycudann build, in 23 rows, with the parameters that upstream has for them."""

from dataclasses import dataclass
from typing import Any

from hashfield import tcnn


def grid(n_levels: int, log2_size: int, base: int, scale: float, n_features: int = 2, **more: Any) -> dict[str, Any]:
    """A HashGrid configuration."""
    return {
        "otype": "HashGrid",
        "n_levels": n_levels,
        "n_features_per_level": n_features,
        "log2_hashmap_size": log2_size,
        "base_resolution": base,
        "per_level_scale": scale,
        **more,
    }


def mlp(width: int, depth: int, output: str | None = "None", otype: str = "FullyFusedMLP") -> dict[str, Any]:
    """A network configuration."""
    config: dict[str, Any] = {"otype": otype, "activation": "ReLU", "n_neurons": width, "n_hidden_layers": depth}
    return config if output is None else {**config, "output_activation": output}


HARMONICS = {"otype": "SphericalHarmonics", "degree": 4}


@dataclass(frozen=True)
class Caller:
    """One object that a program makes."""

    name: str
    """Row and program."""
    n_input: int
    """Components of an input."""
    n_params: int
    """Upstream's."""
    encoding: dict[str, Any] | None = None
    """Its configuration."""
    network: dict[str, Any] | None = None
    """Its configuration."""
    n_output: int = 0
    """Of a network."""
    n_encoded: int = 0
    """Of an encoding by itself."""
    more: tuple[tuple[str, Any], ...] = ()
    """Further arguments."""

    def make(self) -> tcnn.Module:
        """Build it as the program does."""
        more = dict(self.more)
        if self.network is None:
            return tcnn.Encoding(self.n_input, self.encoding, **more)
        if self.encoding is None:
            return tcnn.Network(self.n_input, self.n_output, self.network, **more)
        return tcnn.NetworkWithInputEncoding(self.n_input, self.n_output, self.encoding, self.network, **more)


def _nwie(name: str, n_output: int, n_params: int, encoding: dict[str, Any], network: dict[str, Any]) -> Caller:
    return Caller(name, 3, n_params, encoding, network, n_output)


def _net(name: str, n_input: int, n_output: int, n_params: int, network: dict[str, Any]) -> Caller:
    return Caller(name, n_input, n_params, None, network, n_output)


def _enc(name: str, n_encoded: int, n_params: int, encoding: dict[str, Any], n_input: int = 3, **more: Any) -> Caller:
    return Caller(name, n_input, n_params, encoding, n_encoded=n_encoded, more=tuple(more.items()))


def _float32() -> Any:
    import torch

    return torch.float32


def _scale(finest: float, n_levels: int = 16) -> float:
    return (finest / 16) ** (1 / (n_levels - 1))


CALLERS = [
    _nwie("1 nerfacto base", 16, 12_199_312, grid(16, 19, 16, 1.3819128800), mlp(64, 1)),
    _net("2 nerfacto head", 63, 3, 9_216, mlp(64, 2, "Sigmoid")),
    _net("3 nerfacto transient", 31, 64, 6_144, mlp(64, 1)),
    _net("3 nerfacto semantics", 15, 64, 5_120, mlp(64, 1)),
    _net("3 nerfacto normals", 27, 64, 10_240, mlp(64, 2)),
    _enc("4 nerfstudio harmonics", 16, 0, HARMONICS),
    _enc("4 nerfstudio frequency", 12, 0, {"otype": "Frequency", "n_frequencies": 2}),
    _enc("5 proposal grid 1", 10, 766_528, grid(5, 17, 16, 1.6817928305)),
    _enc("5 proposal grid 2", 10, 860_160, grid(5, 17, 16, 2.0)),
    _net("5 proposal network", 10, 1, 512, mlp(16, 1)),
    _enc("6 density grid", 16, 2_976_176, grid(8, 18, 16, 1.8114473285)),
    _net("6 density network", 16, 1, 2_048, mlp(64, 1)),
    _nwie("7 nerfacto-big base", 16, 45_137_184, grid(16, 21, 16, 1.4472692374), mlp(128, 1)),
    _net("7 nerfacto-big head", 159, 3, 38_912, mlp(128, 2, "Sigmoid")),
    _nwie("8 nerfacto-huge base", 16, 47_869_888, grid(16, 21, 16, 1.5157165665), mlp(256, 1, otype="CutlassMLP")),
    _net("8 nerfacto-huge head", 63, 3, 86_016, mlp(256, 2, "Sigmoid", "CutlassMLP")),
    _enc("8 huge proposal grid 1", 10, 913_264, grid(5, 17, 16, 2.3784142300)),
    _enc("8 huge proposal grid 2", 14, 1_412_224, grid(7, 17, 16, 2.2449240966)),
    _enc("9 sdf field smoothstep", 32, 12_196_240, grid(16, 19, 16, 1.3819128800, interpolation="Smoothstep")),
    _enc("9 sdf field linear", 32, 12_196_240, grid(16, 19, 16, 1.3819128800, interpolation="Linear")),
    _enc("10 generfacto grid", 32, 9_014_144, grid(16, 19, 16, 1.2030250361)),
    _net("10 generfacto 1", 32, 16, 3_072, mlp(64, 1)),
    _net("10 generfacto 2", 16, 3, 1_024, mlp(32, 1, "Sigmoid")),
    _net("10 generfacto 3", 15, 3, 6_144, mlp(64, 2, "Sigmoid")),
    _enc("11 nerfstudio test", 16, 512, grid(4, 5, 16, 4.0, 4)),
    _enc("12 nerfacc direction", 16, 0, {"otype": "Composite", "nested": [{"n_dims_to_encode": 3, **HARMONICS}]}),
    _nwie("12 nerfacc base", 16, 12_602_992, grid(16, 19, 16, 1.4472692374), mlp(64, 1)),
    _net("12 nerfacc head", 31, 3, 7_168, mlp(64, 2)),
    _nwie("13 nerfacc density", 1, 768_576, grid(5, 17, 16, 1.6817928305), mlp(64, 1)),
    *(
        _nwie(
            f"14 ngp_pl scale {scale}",
            16,
            count,
            grid(16, 19, 16, _scale(2048 * scale), otype="Grid", type="Hash", interpolation="Linear"),
            mlp(64, 1),
        )
        for scale, count in ((0.5, 11_448_112), (4, 13_077_984), (16, 13_626_256))
    ),
    _net("15 ngp_pl head", 32, 3, 7_168, mlp(64, 2, "Sigmoid")),
    _net("15 ngp_pl tonemapper", 1, 1, 2_048, mlp(64, 1, "Sigmoid")),
    _enc("16 torch-ngp grid", 32, 12_196_240, grid(16, 19, 16, _scale(2048))),
    _net("16 torch-ngp head", 31, 3, 7_168, mlp(64, 2)),
    _enc("17 torch-ngp sdf grid", 32, 12_196_240, grid(16, 19, 16, 1.3819)),
    _net("17 torch-ngp sdf network", 32, 1, 7_168, mlp(64, 2)),
    _net("17 torch-ngp ffmlp test", 16, 16, 6_144, mlp(64, 2)),
    _nwie("18 instant-nsr-pl nerf", 16, 12_602_992, grid(16, 19, 16, 1.447269237440378), mlp(64, 1, "none")),
    _net("18 instant-nsr-pl head", 32, 3, 7_168, mlp(64, 2, "Sigmoid")),
    _enc("19 instant-nsr-pl neus", 32, 13_969_152, grid(16, 19, 32, 1.3195079107728942, include_xyz=True)),
    _net("19 instant-nsr-pl texture", 32, 3, 7_168, mlp(64, 2, "none")),
    _enc("20 threestudio", 32, 12_599_920, grid(16, 19, 16, 1.447269237440378), dtype=_float32()),
    _enc(
        "20 threestudio textmesh",
        32,
        12_196_240,
        grid(16, 19, 16, 1.381912879967776, otype="Grid", type="Hash", start_level=4, n_masking_step=0),
        dtype=_float32(),
    ),
    _enc("21 threestudio space-time", 32, 15_474_688, grid(16, 19, 16, 1.447269237440378), 4, dtype=_float32()),
    _enc("22 threestudio direction", 9, 0, {"otype": "SphericalHarmonics", "degree": 3}, dtype=_float32()),
    _net("22 threestudio colour", 17, 3, 1_024, mlp(16, 2, None)),
    _nwie("23 sdfstudio ngp", 16, 12_602_992, grid(16, 19, 16, 1.4472692012786865), mlp(64, 1)),
    _nwie("23 sdfstudio density", 1, 2_978_224, grid(8, 18, 16, 1.8114473285), mlp(64, 1)),
]
