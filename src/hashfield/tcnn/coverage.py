"""Which of tinycudann's modules run in kernels on this machine, and why others do not."""

import torch

from hashfield.errors import BackendError
from hashfield.ops.backend import why_not
from hashfield.tcnn.native import NativeModule, create_encoding, create_network_with_input_encoding

_GRID = {"otype": "HashGrid", "n_levels": 2, "log2_hashmap_size": 4, "base_resolution": 4}
_NETWORK = {"n_neurons": 16, "n_hidden_layers": 1}
_TANH = {**_NETWORK, "activation": "Tanh"}


def coverage(device: torch.device | None = None) -> list[tuple[str, str]]:
    """What runs each kind of module: lines of its name and "numba", "triton" or the reason why plain torch does.

    Args:
        device: Where the modules lie; where they are born if None.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    harmonics = {"otype": "SphericalHarmonics"}
    kinds: list[tuple[str, NativeModule]] = [
        ("Grid, 2-D and 3-D", create_encoding(3, _GRID)),
        ("Grid, 1-D and 4-D to 7-D", create_encoding(4, _GRID)),
        ("Grid, other hashes", create_encoding(3, {**_GRID, "hash": "Prime"})),
        ("Grid, stochastic_interpolation", create_encoding(3, {**_GRID, "stochastic_interpolation": True})),
        ("SphericalHarmonics to degree 4", create_encoding(3, harmonics)),
        ("SphericalHarmonics from degree 5", create_encoding(3, {**harmonics, "degree": 5})),
        ("Frequency, TriangleWave, OneBlob, Identity", create_encoding(3, {"otype": "Frequency"})),
        ("network, ReLU", create_network_with_input_encoding(3, 1, _GRID, _NETWORK)),
        ("network, other activations", create_network_with_input_encoding(3, 1, _GRID, _TANH)),
    ]  # fmt: skip
    return [(name, _runs_in(native, device)) for name, native in kinds]


def _runs_in(native: NativeModule, device: torch.device) -> str:
    name = "triton" if device.type == "cuda" else "numba"
    op = "mlp" if native.network else {"Grid": "grid_encode"}.get(native.name(), "spherical_harmonics")
    if native.name() == "Frequency":
        return "plain torch on every device (a few instructions beside what follows)"
    try:
        reason = native.slow_part() or why_not(op, name, torch.empty(0, device=device))
    except BackendError as error:
        reason = str(error)
    return f"plain torch ({reason})" if reason else name
