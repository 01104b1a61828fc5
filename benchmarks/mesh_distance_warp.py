"""Kernels of mesh_distance.py for Warp, which reads a kernel's source and so wants it in a file."""

import warp as wp


@wp.kernel
def no_sign(mesh: wp.uint64, points: wp.array(dtype=wp.vec3), out: wp.array(dtype=float)):
    """Distance."""
    i = wp.tid()
    found = wp.mesh_query_point_no_sign(mesh, points[i], 10.0)
    out[i] = wp.length(points[i] - wp.mesh_eval_position(mesh, found.face, found.u, found.v))


@wp.kernel
def sign_normal(mesh: wp.uint64, points: wp.array(dtype=wp.vec3), out: wp.array(dtype=float)):
    """Signed by angle-weighted normals."""
    i = wp.tid()
    found = wp.mesh_query_point_sign_normal(mesh, points[i], 10.0)
    out[i] = found.sign * wp.length(points[i] - wp.mesh_eval_position(mesh, found.face, found.u, found.v))


@wp.kernel
def sign_parity(mesh: wp.uint64, points: wp.array(dtype=wp.vec3), out: wp.array(dtype=float)):
    """Signed by the parity of rays."""
    i = wp.tid()
    found = wp.mesh_query_point_sign_parity(mesh, points[i], 10.0)
    out[i] = found.sign * wp.length(points[i] - wp.mesh_eval_position(mesh, found.face, found.u, found.v))


@wp.kernel
def sign_winding(mesh: wp.uint64, points: wp.array(dtype=wp.vec3), out: wp.array(dtype=float)):
    """Signed by winding numbers."""
    i = wp.tid()
    found = wp.mesh_query_point_sign_winding_number(mesh, points[i], 10.0)
    out[i] = found.sign * wp.length(points[i] - wp.mesh_eval_position(mesh, found.face, found.u, found.v))
