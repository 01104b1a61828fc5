"""What the fused kernels ask of an encoding: four functions over an encoder, chosen by the encoder's type.

An encoder is a NamedTuple with at least the fields `table` (what its features are read from, one flat array),
`n_levels` and `n_features` (features to a level). Its file registers the functions below with `implements`, as
`grid_encode.py` does for grids; the kernels then compile for it as they are. Points are planes, one per axis in one
flat array, which go on for two blocks beyond the last point.
"""

from collections.abc import Callable

from hashfield.kernels.numba_cpu.common import overloaded

_IMPLEMENTATIONS: dict[tuple[str, type], Callable] = {}


def implements(name: str, encoder: type) -> Callable[[Callable], Callable]:
    """Register the decorated function, plain Python that Numba can compile, as `name` for encoders of a class."""

    def register(function: Callable) -> Callable:
        _IMPLEMENTATIONS[name, encoder] = function
        return function

    return register


@overloaded
def encoder_scratch(encoder):
    """Memory that a thread needs for the functions below, made once by each kernel."""
    return _IMPLEMENTATIONS["encoder_scratch", encoder.instance_class]


@overloaded
def encode_range(encoder, positions, begin, end, out, row, scratch):
    """Encode points begin to end, all levels in turn: the features of point i go to out[(i - begin)*row:]."""
    return _IMPLEMENTATIONS["encode_range", encoder.instance_class]


@overloaded
def add_gradient(encoder, positions, n, grad, level, piece, parts, cotangent, start, row, scratch):
    """Add what n points contribute to the table's gradient of one level, or of one of `parts` equal pieces of it.

    The gradient of point i's features of that level begins at cotangent[start + i*row]. The encoder's table is not read.
    """
    return _IMPLEMENTATIONS["add_gradient", encoder.instance_class]


@overloaded
def add_position_gradient(encoder, positions, begin, end, cotangent, start, level_step, row, grad, scratch):
    """Add the gradient to the positions of points begin to end, from all levels, to grad, laid out as positions.

    The gradient of point i's features of a level begins at cotangent[start + level*level_step + i*row]. What grad holds
    from `end` to the end of its block is changed, too.
    """
    return _IMPLEMENTATIONS["add_position_gradient", encoder.instance_class]
