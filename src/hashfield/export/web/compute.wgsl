@group(0) @binding(0) var<uniform> view: array<vec4f, 8>;
@group(0) @binding(1) var<storage, read> table: array<u32>;
@group(0) @binding(2) var<storage, read> cells: array<u32>;
@group(0) @binding(3) var<storage, read_write> picture: array<vec4f>;
$blocks
fn texel(i: u32) -> vec4f { return unpack4x8snorm(table[i]); }
fn cells_at(i: u32) -> u32 { return cells[i]; }

$body

@compute @workgroup_size(8, 8) fn main(@builtin(global_invocation_id) id: vec3u) {
  let row: u32 = id.y + u32(view[5].z);
  let width: u32 = u32(view[5].x);
  if (id.x >= width || id.y >= u32(view[5].w) || row >= u32(view[5].y)) { return; }
  let i: u32 = row * width + id.x;
  picture[i] = mix(picture[i], pixel(vec2f(f32(id.x), f32(row)) + view[4].xy), view[4].z);
}
