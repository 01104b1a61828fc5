"""Which steps a run takes: on a device that is never waited for, where its kernels cover the run, else on a host."""

from hashfield.geometry.rays import PixelPool
from hashfield.nn.config import RadianceFieldConfig, RunPrecision
from hashfield.nn.fields import RadianceField
from hashfield.nn.networks import NetworkWithEncoding, encoded_network
from hashfield.ops.backend import runs_on_triton
from hashfield.steps.depth_teacher import DepthTeacher
from hashfield.steps.pixel_source import PictureSource
from hashfield.steps.points_host import HostPointSteps
from hashfield.steps.protocol import PointSteps, RaySteps
from hashfield.steps.rays_host import HostRaySteps
from hashfield.steps.recipes import PointRecipe, RayRecipe
from hashfield.steps.refinement import Refinement


def captures_rays(field: RadianceFieldConfig, *, sparsity: float, total_variation: float) -> bool:
    """Whether a device's captured steps cover a run on rays: a field of the usual shape, and no further loss.

    Args:
        field: Sizes of the field.
        sparsity, total_variation: Weights of losses that only hosts know.
    """
    has_usual_output = field.density_activation == "exp" and field.color_sees_density
    fits = max(field.density_network.n_neurons, field.color_network.n_neurons) <= 128
    return field.is_fused and has_usual_output and fits and sparsity == total_variation == 0.0


def ray_steps(
    field: RadianceField, recipe: RayRecipe, precision: RunPrecision, pool: PixelPool,
    refinement: Refinement | None = None, teacher: DepthTeacher | None = None,
) -> RaySteps:  # fmt: skip
    """The steps of a run on rays, where the field lies.

    Args:
        field: What is trained, in place.
        recipe: What stays the same in every step.
        precision: Number type of lookups and networks, as asked for.
        pool: Pixels to draw rays from.
        refinement: What is learned of the photos besides, on a host's steps only.
        teacher: What is known of depth, on a host's steps only.
    """
    device = next(field.parameters()).device
    covers = captures_rays(field.config, sparsity=recipe.sparsity, total_variation=recipe.total_variation)
    if runs_on_triton(device) and covers and refinement is None and teacher is None:
        from hashfield.steps.rays_device import DeviceRaySteps

        return DeviceRaySteps(field, recipe, precision, pool)
    return HostRaySteps(field, recipe, precision, pool, refinement, teacher)


def point_steps(
    field: NetworkWithEncoding, recipe: PointRecipe, precision: RunPrecision, source: PictureSource | None = None, *,
    draws_there: bool = False,
) -> PointSteps:  # fmt: skip
    """The steps of a run on points, where the network lies.

    Args:
        field: What is trained, in place.
        recipe: What stays the same in every step.
        precision: Number type of lookups and network, as asked for.
        source: Where batches come from; None where each step is given its own.
        draws_there: Whether the source lies where the network lies, so that a captured step may draw from it.
    """
    network = encoded_network(field, None, precision)
    if runs_on_triton(network.table.device) and network.is_fused and network.limit("triton") is None:
        from hashfield.steps.points_device import DevicePointSteps

        return DevicePointSteps(field, recipe, precision, source, draws_there=draws_there)
    return HostPointSteps(field, recipe, precision, source)
