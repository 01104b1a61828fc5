"""The one table of tolerances, each with its reason. Nothing loosens them, on no machine.

The measure is rel = RMS(a - b) / RMS(b) over all elements, see tests/ops/compare.py. "Measured" is what AVX-512 with
bfloat16 products reached. Figures printed elsewhere (test_golden.py) are held to half of their last digit, beside each.
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
"""The float32 reference against float64, where the op does not jump and no unit lies at the brink of zero: else a case
judges nothing (measured at most 4.7e-6, a network behind a grid; the encoding alone has a bound by its resolution)."""

SAME_NUMBER = 1e-6
"""A float32 number of order 1 reached in two ways of few roundings each: a formula, sums in other groups, weights of a
cell, a ray from a camera stored in float32 (measured at most 1.8e-7)."""

FLOAT64 = 1e-12
"""Two formulas of the same number in float64 (measured at most 1.3e-12 relatively, of numbers with 1e-12 of slack)."""

FLOAT64_PLACE = 1e-9
"""Differences of places along a ray in float64: they lose the digits that a distance of a thousand steps has."""

RENDER_ELEMENT = 3e-5
"""Every pixel of a fused rendering against float64, and of two float32 renderings, where no ray is cut a sample sooner
on one side (measured at most 1.3e-6)."""

FLIPPED_UNIT = 1e-2
"""Gradients of a step on two float32 sides where a hidden unit may lie at the brink of zero: one unit of one sample
that passes on one side only costs 1e-3 (seen 7e-3 at most; measured 6.6e-4 with the seeds of today)."""

BFLOAT16_LOSS_FLOOR = 1e-4
"""Of the loss: what bfloat16 may add where the bfloat16 reference happens to hit the float32 loss."""

BFLOAT16_COLOR = 0.05
"""A field in bfloat16 against float32: 2^-8 for each of seven roundings on the way to a colour..."""

BFLOAT16_LOG_DENSITY = 0.1
"""...and as much on the way to the density's logarithm, whose size is up to 4."""

ANY_PRECISION = 2e-3
"""Colours, cells and outputs under another lane count or path, in float32 or bfloat16, against the reference of the
same precision; the slow tests' only, which are there to find wrong instructions."""

FLOAT16_LOSS = 2e-3
"""A step of Triton's kernels in float16 against the float32 reference: 2^-11 for table, matrices and each layer..."""

FLOAT16_OUTPUT = 4e-3
"""...of the outputs..."""

FLOAT16_GRADIENT = 0.1
"""...and of gradients, of which hidden units that pass on one side only are most."""

UNORDERED_SUM = 1e-4
"""Gradients of one step run twice on a card, which adds in no fixed order."""

FIXED_POINT = 1e-6
"""Outputs where positions keep their fraction at 2^18 pixels a side (measured at most 6.5e-8); float32 positions are
off by 3.5e-3 there, and must be by a thousand times this."""

TRACE = 1e-5
"""Where a traced ray ends, against float64, in units of the box (measured at most 1.1e-6)."""

TRACE_NOISE = 4e-6
"""Of a distance in float32: rays that are on the brink of having arrived, by less than this, are not judged."""

TRACE_SHADE = 1e-3
"""Colours and normals of shaded points: they feel where on the surface a ray ended, times its curvature."""
