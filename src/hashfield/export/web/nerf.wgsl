// What one pixel of a radiance field shows: march through the occupied cells, grid, two networks, compositing.
// Every declaration states its type, so that a few replacements make GLSL of this text (gpu.js). Names behind a dollar sign are filled in
// by web_shaders.py. Formulas and their sources: kernels/reference (march, occupancy, grid_encode, color_mlp, composite).

$encoding

fn spread(v: u32) -> u32 {  // bits of 0..127 to every third place
  var x: u32 = (v | (v << 8u)) & 0x0300F00Fu;
  x = (x | (x << 4u)) & 0x030C30C3u;
  return (x | (x << 2u)) & 0x09249249u;
}

fn exponent(v: f32) -> i32 {  // e of v = f * 2^e with f in [0.5, 1)
  return i32((bitcast<u32>(v) >> 23u) & 255u) - 126;
}

$lattice

fn cascade(p: vec3f, size_of_step: f32) -> i32 {  // the finest that holds p and whose cells are more than two steps wide
  let a: vec3f = abs(p - vec3f(0.5));
  let of_place: i32 = exponent(max(a.x, max(a.y, a.z))) + 1;
  return clamp(max(of_place, exponent(size_of_step * 256.0)), 0, $last_cascade);
}

fn to_exit(q: vec3f, cell: vec3f, size: f32, inverse: vec3f) -> f32 {  // cells along the ray to the block's far face
  let low: vec3f = floor(cell / size) * size;
  let face: vec3f = low + step(vec3f(0.0), inverse) * size;
  let along: vec3f = (face - q) * inverse;
  return max(0.0, min(along.x, min(along.y, along.z)));
}

fn not_zero(v: f32) -> f32 {
  if (abs(v) < 1e-20) { return 1e-20; }
  return v;
}

fn pixel(at: vec2f) -> vec4f {
  let zero: u32 = u32(view[4].w);  // loops that the compiler cannot count are not unrolled
  let in_camera: vec3f = vec3f((at.x - view[3].z) / view[3].x, (at.y - view[3].w) / view[3].y, 1.0);
  let toward: vec3f = normalize(vec3f(
    dot(view[0].xyz, in_camera), dot(view[1].xyz, in_camera), dot(view[2].xyz, in_camera)));
  let origin: vec3f = vec3f(view[0].w, view[1].w, view[2].w);
  let inverse: vec3f = vec3f(1.0) / vec3f(not_zero(toward.x), not_zero(toward.y), not_zero(toward.z));
  let to_low: vec3f = (vec3f($box_low) - origin) * inverse;
  let to_high: vec3f = (vec3f($box_high) - origin) * inverse;
  let near: vec3f = min(to_low, to_high);
  let far: vec3f = max(to_low, to_high);
  let t_start: f32 = max(0.0, max(near.x, max(near.y, near.z)));
  let t_end: f32 = min(far.x, min(far.y, far.z));
  harmonics(toward);
  var n: f32 = steps_at(t_start, t_start) + 0.5;
  var light: f32 = 1.0;
  var color: vec3f = vec3f(0.0);
  for (var samples: u32 = 0u; samples < 4096u; samples++) {
    var t: f32 = 0.0;
    var size_of_step: f32 = 0.0;
    var is_found: bool = false;
    for (var jumps: u32 = 0u; jumps < 4096u; jumps++) {  // to the next step that begins in an occupied cell
      t = distance_at(n, t_start);
      if (!(t < t_end)) { break; }
      size_of_step = step_length(n, t);
      let p: vec3f = origin + t * toward;
      let mip: i32 = cascade(p, size_of_step);
      let side: f32 = f32(1u << u32(mip));
      let q: vec3f = ((p - vec3f(0.5)) / side + vec3f(0.5)) * 128.0;
      let cell: vec3f = floor(q);
      var size: f32 = 1.0;
      if (min(cell.x, min(cell.y, cell.z)) >= 0.0 && max(cell.x, max(cell.y, cell.z)) < 128.0) {
        let number: u32 = spread(u32(cell.x)) | (spread(u32(cell.y)) << 1u) | (spread(u32(cell.z)) << 2u);
        let place: u32 = u32(mip) * 65536u + (number >> 5u);
        let word: u32 = cells_at(place);
        if (((word >> (number & 31u)) & 1u) == 1u) {
          is_found = true;
          break;
        }
        if ((word | cells_at(place ^ 1u)) == 0u) { size = 4.0; }  // two words are a block of 4x4x4 cells
      }
      var leave: f32 = to_exit(q, cell, size, inverse) * side / 128.0;
      $block_check
      // a little less, since a step too early is only asked again
      n += max(1.0, ceil(steps_at(t + leave, t_start) - n - 1e-3));
    }
    if (!is_found) { break; }
    geometry((origin + t * toward - vec3f($scene_low)) * $inverse_side, zero);
    let raw: f32 = min(seen[0].x + $density_bias, 80.0);
    let alpha: f32 = 1.0 - exp(-$density * size_of_step);
    let weight: f32 = light * alpha;
    if (weight > view[6].y) { color += weight * radiance(zero); }
    light -= weight;
    if (light < view[6].x) { break; }
    n += 1.0;
  }
  return vec4f(color, 1.0 - light);
}
