"""The one table of tolerances, each with its reason. Nothing loosens them, on no machine.

The measure is rel = RMS(a - b) / RMS(b) over all elements, see tests/ops/compare.py.
"""

FAST_OUTPUT = 1e-5
"""Fast against reference, both float32: outputs, gradients to tables, matrices, colours, densities. Order of
summation and fused multiply-add (measured at most 2.4e-6 for the encoding up to resolution 131 071)."""

TWO_ROUNDINGS = 2.0**-23
"""Every element, where both sides compute in float64 and round once: their sums may fall on either side of the middle
between two float32 numbers, which are at most this far apart, relatively."""

FAST_POSITION_GRADIENT = 1e-4
"""The same for gradients to positions: differences of neighbouring entries cancel digits."""

FAST_OVER_FLOAT32 = 3.0
"""Error of a fast float32 backend against float64 may be this many times that of the float32 reference..."""

FLOAT64_FLOOR = 5e-6
"""...plus this: where the reference happens to be nearly exact, roundings of the fast backend are no fault
(measured at most 1.8e-6, the suffix sums of 300 composited samples)."""

SUBNORMAL = 2e-38
"""Absolute slack: kernels may flush subnormal numbers to zero (the smallest normal float32 is 1.2e-38)."""

ROW_PRESENCE = 1e-3
"""A gradient row of at least this share of the largest row may not be zero on one side only: a dropped
gradient is often too small for an RMS over everything to notice."""

FLOAT32_ENCODING_PER_CELL = 2.0**-23
"""float32 against float64 reference, times the level's resolution: the position's rounding is up to half an
ulp of q (measured 0.65 * N * 2^-24)."""

GOLDEN_RELATIVE = 1e-4
"""Against printed figures of the encoding: a sixth decimal, and fractions of an ulp at resolution 2048."""

COMPOSITE_IDENTITY = 1e-5
"""Weights and remaining transmittance sum to 1, float32."""

MARCH_FACE = 2e-3
"""Lattice points closer than this many cells to a cell face may be found on either side by a float32 march:
t spans up to a few thousand steps, each rounded to half an ulp."""

MARCH_T = 1e-5
"""Relative error of a float32 sample's t against the float64 lattice."""

MARCH_DT = 5e-4
"""The same for dt, where it is a difference of two rounded distances."""

FUSED_STEP = 3e-5
"""A whole training step in float32 against the float64 reference, where no hidden unit lies so close to zero
that rounding decides whether it passes (measured at most 6.4e-6; one flipped unit of one sample costs 1e-3)."""

BFLOAT16_OVER_REFERENCE = 2.0
"""Error of a fast bfloat16 backend against float32 may be this many times that of the bfloat16 reference, and three
times for gradients, whose layers' cotangents the fast backends round as well (measured at most 1.02 and 1.02)."""

BFLOAT16_FLIP = 1e-2
"""Fast against reference, both bfloat16: a sum in another order may round to the neighbouring bfloat16, 2^-8 away
(measured at most 3.4e-3)."""

REFERENCE_FLOAT32 = 1e-5
RENDER_CUT = 1e-5
RENDER_ELEMENT = 3e-5
SAME_NUMBER = 1e-6
FLOAT64 = 1e-12
FLOAT64_PLACE = 1e-9
FLOAT32_CAMERA = 2e-5
FLOAT32_RAYS = 2e-6
BFLOAT16_COLOR = 0.05
BFLOAT16_LOG_DENSITY = 0.1
BFLOAT16_LOSS_FLOOR = 1e-4
FLIPPED_UNIT = 1e-2
UNFUSED_LOSS = 1e-3
UNFUSED_OUTPUT = 1e-4
UNORDERED_SUM = 1e-4
ANY_PRECISION = 2e-3
FLOAT16_LOSS = 2e-3
FLOAT16_OUTPUT = 4e-3
FLOAT16_GRADIENT = 0.1
FIXED_POINT = 1e-6
TRACE = 1e-5
TRACE_NOISE = 4e-6
TRACE_SHADE = 1e-3
