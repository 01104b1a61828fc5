// What one pixel of the canvas shows: rows of the full picture that are done, below them the quick one, enlarged.

fn shown(at: vec2f) -> vec4f {
  var c: vec4f = vec4f(0.0);
  if (at.y < view[2].z) {
    c = full_at(u32(at.x), u32(at.y));
  } else {
    let q: vec2f = clamp(at / view[2].xy * view[1].xy - vec2f(0.5), vec2f(0.0), view[1].xy - vec2f(1.0));
    let a: vec2f = floor(q);
    let b: vec2f = min(a + vec2f(1.0), view[1].xy - vec2f(1.0));
    let f: vec2f = q - a;
    c = mix(
      mix(quick_at(u32(a.x), u32(a.y)), quick_at(u32(b.x), u32(a.y)), f.x),
      mix(quick_at(u32(a.x), u32(b.y)), quick_at(u32(b.x), u32(b.y)), f.x), f.y);
  }
  return vec4f(c.xyz + (1.0 - c.w) * view[0].xyz, 1.0);
}
