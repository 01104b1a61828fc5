// What one pixel of a trained picture shows. Formulas: kernels/reference (grid_encode, mlp).

$encoding

fn pixel(at: vec2f) -> vec4f {
  let zero: u32 = u32(view[4].w);
  let place: vec2f = view[0].xy + at * view[0].zw;  // in the picture's own pixels
  if (min(place.x, place.y) < 0.0 || place.x >= $width || place.y >= $height) { return vec4f(0.0); }
  encode(place / vec2f($width, $height));
  net(zero);
  let c: vec4f = channels[0];
  return $color;
}
