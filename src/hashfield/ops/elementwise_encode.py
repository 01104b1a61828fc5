"""Encodings that treat each input component by itself: identity, frequency, triangle wave, one-blob.

Plain torch is their path on every device: they are a few arithmetic instructions beside the network that follows.
"""

from jaxtyping import Float
from torch import Tensor

from hashfield.ops.backend import Backend, choose
from hashfield.ops.checks import Checker, at_least


def identity_encode(
    x: Float[Tensor, "n n_dims"], *, scale: float = 1.0, offset: float = 0.0, backend: Backend | None = None
) -> Float[Tensor, "n n_dims"]:
    """The input itself, scaled and shifted: x * scale + offset.

    Args:
        x: Any numbers.
        scale: Factor of every component.
        offset: Added to every component.
        backend: "reference" or None.

    Raises:
        ShapeError: x has the wrong shape or dtype.

    Gradient:
        To x, any order.

    Source: tiny-cuda-nn include/tiny-cuda-nn/encodings/identity.h.
    """
    Checker("identity_encode")("x", x, ("n", "n_dims"))
    return choose("elementwise_encode", backend, x).kernels.identity_encode(x, float(scale), float(offset))


def frequency_encode(
    x: Float[Tensor, "n n_dims"], *, n_frequencies: int = 12, backend: Backend | None = None
) -> Float[Tensor, "n n_output"]:
    """Sines and cosines of x in octaves: sin(2^k pi x_j), cos(2^k pi x_j).

    Args:
        x: Positions in [0, 1] have their features repeat nowhere; other values are legal.
        n_frequencies: k runs from 0 to n_frequencies - 1.
        backend: "reference" or None.

    Returns:
        2 * n_dims * n_frequencies features: component by component, then k, then sine before cosine.

    Raises:
        ShapeError: x has the wrong shape or dtype, or there is no frequency.

    Gradient:
        To x, any order.

    Source: tiny-cuda-nn include/tiny-cuda-nn/encodings/frequency.h (with exact sines; the factor is pi, not 2 pi).

    >>> frequency_encode(torch.tensor([[0.5]]), n_frequencies=2).round(decimals=4)
    tensor([[ 1., -0., -0., -1.]])
    """
    Checker("frequency_encode")("x", x, ("n", "n_dims"))
    at_least("frequency_encode", "n_frequencies", n_frequencies, 1)
    return choose("elementwise_encode", backend, x).kernels.frequency_encode(x, n_frequencies)


def triangle_wave_encode(
    x: Float[Tensor, "n n_dims"], *, n_frequencies: int = 12, backend: Backend | None = None
) -> Float[Tensor, "n n_output"]:
    """Triangle waves of x in octaves: 4 |frac(v) - 1/2| - 1 with v = 2^(k-1) x_j + k/4.

    Args:
        x: Positions, usually in [0, 1].
        n_frequencies: k runs from 0 to n_frequencies - 1.
        backend: "reference" or None.

    Returns:
        n_dims * n_frequencies features in [-1, 1]: component by component, then k.

    Raises:
        ShapeError: x has the wrong shape or dtype, or there is no frequency.

    Gradient:
        To x: +-2^(k+1), on a kink that of the upper side. The second one is zero.

    Source: tiny-cuda-nn include/tiny-cuda-nn/encodings/triangle_wave.h.

    >>> triangle_wave_encode(torch.tensor([[0.25]]), n_frequencies=2)
    tensor([[ 0.5000, -1.0000]])
    """
    Checker("triangle_wave_encode")("x", x, ("n", "n_dims"))
    at_least("triangle_wave_encode", "n_frequencies", n_frequencies, 1)
    return choose("elementwise_encode", backend, x).kernels.triangle_wave_encode(x, n_frequencies)


def one_blob_encode(
    x: Float[Tensor, "n n_dims"], *, n_bins: int = 16, backend: Backend | None = None
) -> Float[Tensor, "n n_output"]:
    """The share of a smooth blob around each component that falls into each of n_bins bins of [0, 1].

    Args:
        x: In [0, 1]; the blob, one bin in radius, wraps around the interval.
        n_bins: Bins of a component; any number (tiny-cuda-nn takes powers of two).
        backend: "reference" or None.

    Returns:
        n_dims * n_bins features, component by component; those of a component sum to 1.

    Raises:
        ShapeError: x has the wrong shape or dtype, or there is no bin.

    Gradient:
        To x, first and second order.

    Source: tiny-cuda-nn include/tiny-cuda-nn/encodings/oneblob.h; Mueller et al. 2019, "Neural Importance Sampling",
    with a quartic kernel instead of a Gaussian.

    >>> one_blob_encode(torch.tensor([[0.375]]), n_bins=4)  # in the middle of bin 1
    tensor([[0.1035, 0.7930, 0.1035, 0.0000]])
    """
    Checker("one_blob_encode")("x", x, ("n", "n_dims"))
    at_least("one_blob_encode", "n_bins", n_bins, 1)
    return choose("elementwise_encode", backend, x).kernels.one_blob_encode(x, n_bins)
