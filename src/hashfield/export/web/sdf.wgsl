// What one pixel of a signed distance shows: sphere tracing, normal, soft shadow, shading. Formulas and their sources:
// ops/sphere_trace, kernels/reference/sphere_trace, render/surface.

$encoding

fn to_surface(p: vec3f, zero: u32) -> f32 {
  let inside: vec3f = clamp(p, vec3f($box_low), vec3f($box_high));
  encode(inside);
  net(zero);
  return channels[0].x + length(p - inside);
}

fn not_zero(v: f32) -> f32 {
  if (abs(v) < 1e-20) { return 1e-20; }
  return v;
}

fn span(origin: vec3f, toward: vec3f) -> vec2f {  // where a ray enters the box and leaves it
  let inverse: vec3f = vec3f(1.0) / vec3f(not_zero(toward.x), not_zero(toward.y), not_zero(toward.z));
  let a: vec3f = (vec3f($box_low) - origin) * inverse;
  let b: vec3f = (vec3f($box_high) - origin) * inverse;
  let near: vec3f = min(a, b);
  let far: vec3f = max(a, b);
  return vec2f(max(0.0, max(near.x, max(near.y, near.z))), min(far.x, min(far.y, far.z)));
}

fn pixel(at: vec2f) -> vec4f {
  let zero: u32 = u32(view[4].w);
  let in_camera: vec3f = vec3f((at.x - view[3].z) / view[3].x, (at.y - view[3].w) / view[3].y, 1.0);
  let toward: vec3f = normalize(vec3f(
    dot(view[0].xyz, in_camera), dot(view[1].xyz, in_camera), dot(view[2].xyz, in_camera)));
  let origin: vec3f = vec3f(view[0].w, view[1].w, view[2].w);
  let part: vec2f = span(origin, toward);
  if (!(part.y > part.x)) { return vec4f(0.0); }
  var t: f32 = part.x;
  for (var steps: u32 = 0u; steps < $most_steps + zero; steps++) {
    let found: f32 = to_surface(origin + t * toward, zero);
    if (!(found >= $hit)) { break; }
    t += $step * found;
    if (t >= part.y) { return vec4f(0.0); }
  }
  let p: vec3f = origin + t * toward;
  var gradient: vec3f = vec3f(0.0);
  for (var k: u32 = 0u; k < 6u + zero; k++) {
    let sign_of_k: f32 = 1.0 - 2.0 * f32(k & 1u);
    let axis: vec3f = sign_of_k * vec3f(f32((k >> 1u) == 0u), f32((k >> 1u) == 1u), f32((k >> 1u) == 2u));
    gradient += axis * to_surface(p + $reach * axis, zero);
  }
  let n: vec3f = normalize(gradient);
  // the key light stands above the eye's left shoulder and turns with it: minus right, down and forward
  let light: vec3f = normalize(vec3f(
    dot(view[0].xyz, vec3f(-0.55, -0.75, -0.65)), dot(view[1].xyz, vec3f(-0.55, -0.75, -0.65)),
    dot(view[2].xyz, vec3f(-0.55, -0.75, -0.65))));
  let lifted: vec3f = p + $shadow_start * n;
  let end: f32 = span(lifted, light).y;
  var share: f32 = 1.0;
  var s: f32 = $shadow_start;
  for (var steps: u32 = 0u; steps < 64u + zero; steps++) {
    if (s >= end || share <= 1e-2) { break; }
    let found: f32 = to_surface(lifted + s * light, zero);
    share = min(share, clamp(found / (0.06 * s), 0.0, 1.0));
    s += max(found, 2e-3);
  }
  if (share <= 1e-2) { share = 0.0; }
  let diffuse: f32 = max(dot(n, light), 0.0) * share;
  let half_way: vec3f = normalize(light - toward);
  let gloss: f32 = 0.12 * pow(max(dot(n, half_way), 0.0), 40.0) * share;
  let fill: f32 = 0.16 * max(-dot(n, toward), 0.0) + 0.12;
  let linear: vec3f = clamp(vec3f(0.78, 0.74, 0.68) * (0.75 * diffuse + fill) + vec3f(gloss), vec3f(0.0), vec3f(1.0));
  let curved: vec3f = 1.055 * pow(max(linear, vec3f(0.0031308)), vec3f(1.0 / 2.4)) - vec3f(0.055);
  return vec4f(mix(linear * 12.92, curved, step(vec3f(0.0031308), linear)), 1.0);
}
