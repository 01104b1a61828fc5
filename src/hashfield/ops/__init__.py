"""The public functions: checks, choice of implementation, autograd. One file per op.

`hashfield.ops.grid_encode` is the function; its file is imported with it, under the same name.
"""

from hashfield.ops.adam import adam as adam
from hashfield.ops.backend import Backend as Backend
from hashfield.ops.backend import available_backends as available_backends
from hashfield.ops.backend import use_backend as use_backend
from hashfield.ops.backend import why_not as why_not
from hashfield.ops.camera_rays import camera_rays as camera_rays
from hashfield.ops.camera_rays import view_rays as view_rays
from hashfield.ops.color_mlp import color_mlp as color_mlp
from hashfield.ops.composite import CompositeResult as CompositeResult
from hashfield.ops.composite import composite as composite
from hashfield.ops.elementwise_encode import frequency_encode as frequency_encode
from hashfield.ops.elementwise_encode import identity_encode as identity_encode
from hashfield.ops.elementwise_encode import one_blob_encode as one_blob_encode
from hashfield.ops.elementwise_encode import triangle_wave_encode as triangle_wave_encode
from hashfield.ops.encoded_mlp import encoded_mlp as encoded_mlp
from hashfield.ops.grid_encode import Interpolation as Interpolation
from hashfield.ops.grid_encode import Precision as Precision
from hashfield.ops.grid_encode import grid_encode as grid_encode
from hashfield.ops.march import march as march
from hashfield.ops.mlp import Activation as Activation
from hashfield.ops.mlp import mlp as mlp
from hashfield.ops.occupancy import is_occupied as is_occupied
from hashfield.ops.occupancy import morton3 as morton3
from hashfield.ops.occupancy import morton3_inverse as morton3_inverse
from hashfield.ops.occupancy import pack_bits as pack_bits
from hashfield.ops.radiance_field import RadianceFieldResult as RadianceFieldResult
from hashfield.ops.radiance_field import radiance_field as radiance_field
from hashfield.ops.ray_box import ray_box as ray_box
from hashfield.ops.sphere_trace import DistanceField as DistanceField
from hashfield.ops.sphere_trace import SphereTraceResult as SphereTraceResult
from hashfield.ops.sphere_trace import sphere_trace as sphere_trace
from hashfield.ops.spherical_harmonics import spherical_harmonics as spherical_harmonics
from hashfield.ops.total_variation import total_variation as total_variation
