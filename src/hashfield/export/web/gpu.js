// The two ways to fill a picture: WebGPU's compute shaders, WebGL2's fragment shaders. Both are {name, picture, draw,
// read, present, lost, lose}: a picture is a width, a height and memory for premultiplied float RGBA.
"use strict";

// GLSL of the shaders' common text, in which every declaration states its type.
function glslOf(text) {
  const types = { f32: "float", u32: "uint", i32: "int", vec2f: "vec2", vec3f: "vec3", vec4f: "vec4", vec2u: "uvec2",
    vec3u: "uvec3", mat2x4f: "mat2x4" };
  return text
    .replace(/var<private> (\w+): array<(\w+), (\d+)>;/g, "$2 $1[$3];")
    .replace(/fn (\w+)\(([^)]*)\)(?: -> (\w+))? \{/g, (_, name, parameters, type) =>
      `${type || "void"} ${name}(${parameters.replace(/(\w+): (\w+)/g, "$2 $1")}) {`)
    .replace(/\b(?:let|var) (\w+): (\w+)/g, "$2 $1")
    .replace(/bitcast<u32>/g, "floatBitsToUint")
    .replace(/\b(f32|u32|i32|vec[234][fu]|mat2x4f)\b/g, (word) => types[word]);
}

async function webgpu(canvas, facts, part) {
  const adapter = navigator.gpu && await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) return null;
  const requiredLimits = {}, bytes = part("table").length;
  if (bytes > 2 ** 27) {  // a device has 128 MiB unless it asks for more
    if (adapter.limits.maxStorageBufferBindingSize < bytes || adapter.limits.maxBufferSize < bytes) return null;
    requiredLimits.maxStorageBufferBindingSize = requiredLimits.maxBufferSize = bytes;
  }
  const device = await adapter.requestDevice({ requiredLimits });
  device.onuncapturederror = (event) => fail("The graphics device refuses: " + event.error.message);
  const context = canvas.getContext("webgpu"), format = navigator.gpu.getPreferredCanvasFormat();
  if (!context) return null;
  context.configure({ device, format, alphaMode: "opaque" });
  const { UNIFORM, STORAGE, COPY_DST, COPY_SRC, MAP_READ } = GPUBufferUsage;
  const buffer = (size, usage, data) => {
    const made = device.createBuffer({ size: Math.max(16, (size + 3) & ~3), usage: usage | COPY_DST });
    if (data) device.queue.writeBuffer(made, 0, data, 0, data.length & ~3);
    return made;
  };
  const table = part("table"), cells = part("cells");
  const fixed = [buffer(table.length + 4, STORAGE, padded(table)), buffer(cells.length, STORAGE, cells)];
  const blocks = facts.blocks.map((_, k) => buffer(part("w" + k).length, UNIFORM, part("w" + k)));
  const uniforms = buffer(128, UNIFORM), shownUniforms = buffer(48, UNIFORM);
  const types = ["uniform", "read-only-storage", "read-only-storage", "storage", ...blocks.map(() => "uniform")];
  const group = device.createBindGroupLayout({ entries: types.map((type, binding) => (
    { binding, visibility: GPUShaderStage.COMPUTE, buffer: { type } })) });
  const pipeline = await device.createComputePipelineAsync({
    layout: device.createPipelineLayout({ bindGroupLayouts: [group] }), compute: { module: device.createShaderModule({ code: facts.wgsl }), entryPoint: "main" } });
  const code = `@group(0) @binding(0) var<uniform> view: array<vec4f, 3>;
@group(0) @binding(1) var<storage, read> quick: array<vec4f>;
@group(0) @binding(2) var<storage, read> full: array<vec4f>;
fn quick_at(x: u32, y: u32) -> vec4f { return quick[y * u32(view[1].x) + x]; }
fn full_at(x: u32, y: u32) -> vec4f { return full[y * u32(view[1].z) + x]; }
${facts.present}
@vertex fn corners(@builtin(vertex_index) i: u32) -> @builtin(position) vec4f {
  return vec4f(f32(i & 1u) * 4.0 - 1.0, f32(i >> 1u) * 4.0 - 1.0, 0.0, 1.0);
}
@fragment fn main(@builtin(position) at: vec4f) -> @location(0) vec4f { return shown(at.xy); }`;
  const module = device.createShaderModule({ code });
  const showing = await device.createRenderPipelineAsync({
    layout: "auto", vertex: { module, entryPoint: "corners" },
    fragment: { module, entryPoint: "main", targets: [{ format }] } });
  const bound = (layout, buffers) => device.createBindGroup({
    layout, entries: buffers.map((b, binding) => ({ binding, resource: { buffer: b } })) });
  return {
    name: "WebGPU",
    lost: device.lost,
    lose: () => device.destroy(),
    picture(width, height) {
      const memory = buffer(16 * width * height, STORAGE | COPY_SRC);
      return { width, height, memory, group: bound(group, [uniforms, ...fixed, memory, ...blocks]), free: () => memory.destroy() };
    },
    async draw(picture, view) {
      device.queue.writeBuffer(uniforms, 0, view);
      const encoder = device.createCommandEncoder(), pass = encoder.beginComputePass();
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, picture.group);
      pass.dispatchWorkgroups(Math.ceil(picture.width / 8), Math.ceil(view[23] / 8));
      pass.end();
      device.queue.submit([encoder.finish()]);
      await device.queue.onSubmittedWorkDone();
    },
    async read(picture) {
      const size = 16 * picture.width * picture.height;
      const target = device.createBuffer({ size, usage: COPY_DST | MAP_READ });
      const encoder = device.createCommandEncoder();
      encoder.copyBufferToBuffer(picture.memory, 0, target, 0, size);
      device.queue.submit([encoder.finish()]);
      await target.mapAsync(GPUMapMode.READ);
      const found = new Float32Array(target.getMappedRange().slice(0));
      target.destroy();
      return found;
    },
    present(quick, full, view) {
      device.queue.writeBuffer(shownUniforms, 0, view);
      const encoder = device.createCommandEncoder();
      const pass = encoder.beginRenderPass({ colorAttachments: [
        { view: context.getCurrentTexture().createView(), loadOp: "clear", storeOp: "store" }] });
      pass.setPipeline(showing);
      pass.setBindGroup(0, bound(showing.getBindGroupLayout(0), [shownUniforms, quick.memory, full.memory]));
      pass.draw(3);
      pass.end();
      device.queue.submit([encoder.finish()]);
    },
  };
}

function padded(bytes) {  // to whole words
  if (bytes.length % 4 === 0) return bytes;
  const found = new Uint8Array((bytes.length + 3) & ~3);
  found.set(bytes);
  return found;
}

function webgl2(canvas, facts, part) {
  const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, powerPreference: "high-performance" });
  if (!gl) return null;
  const most = gl.getParameter(gl.MAX_TEXTURE_SIZE), shift = most >= 4096 ? 12 : 11, width = 2 ** shift;
  const isFloat = gl.getExtension("EXT_color_buffer_float"), canBlend = isFloat && gl.getExtension("EXT_float_blend");
  const [internal, type] = canBlend ? [gl.RGBA32F, gl.FLOAT] : isFloat ? [gl.RGBA16F, gl.HALF_FLOAT] : [gl.RGBA8, gl.UNSIGNED_BYTE];
  const texture = (format) => {
    const made = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, made);
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);
    for (const name of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, name, gl.CLAMP_TO_EDGE);
    if (format) gl.texStorage2D(gl.TEXTURE_2D, 1, ...format);
    return made;
  };
  gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  const list = (data, internal, format, kind) => {  // numbers in rows of `width` texels
    const n = data.length / (format === gl.RGBA ? 4 : 1), rows = Math.max(1, Math.ceil(n / width));
    if (rows > most) throw new Error(`the model is larger than this browser's WebGL2 takes; a browser with WebGPU may show it`);
    const made = texture([internal, width, rows]), whole = Math.floor(n / width), rest = n - whole * width;
    if (whole) gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, width, whole, format, kind, data);
    if (rest) gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, whole, rest, 1, format, kind, data.subarray(data.length - rest * (data.length / n)));
    return made;
  };
  const bytes = padded(part("table")), words = part("cells");
  const table = list(new Int8Array(bytes.buffer, bytes.byteOffset, bytes.length), gl.RGBA8_SNORM, gl.RGBA, gl.BYTE);
  const cells = list(new Uint32Array(words.buffer, words.byteOffset, words.length / 4), gl.R32UI, gl.RED_INTEGER, gl.UNSIGNED_INT);
  const head = "#version 300 es\nprecision highp float;\nprecision highp int;\n#define fma(a, b, c) ((a) * (b) + (c))\n";
  const program = (text, blocks) => {
    const made = gl.createProgram();
    const vertex = "#version 300 es\nvoid main() { gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0.0, 1.0); }";
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, head + text]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(made, shader);
    }
    gl.linkProgram(made);
    if (!gl.getProgramParameter(made, gl.LINK_STATUS)) {
      const logs = gl.getAttachedShaders(made).map((s) => gl.getShaderInfoLog(s));
      if (gl.isContextLost()) throw new Error("the graphics device was lost");
      throw new Error("this browser's WebGL2 refuses the shader: " + (gl.getProgramInfoLog(made) || "") + logs.join(" "));
    }
    blocks.forEach((numbers, k) => {
      const index = gl.getUniformBlockIndex(made, "W" + k);
      if (index === gl.INVALID_INDEX) return;
      gl.uniformBlockBinding(made, index, k);
      const block = gl.createBuffer();
      gl.bindBufferBase(gl.UNIFORM_BUFFER, k, block);
      gl.bufferData(gl.UNIFORM_BUFFER, numbers, gl.STATIC_DRAW);
    });
    return made;
  };
  const drawing = program(`uniform vec4 view[8];
uniform highp sampler2D table;
uniform highp usampler2D cells;
${facts.blocks.map((n, k) => `layout(std140) uniform W${k} { vec4 w${k}[${n}]; };`).join("\n")}
vec4 texel(uint i) { return texelFetch(table, ivec2(int(i & ${width - 1}u), int(i >> ${shift}u)), 0); }
uint cells_at(uint i) { return texelFetch(cells, ivec2(int(i & ${width - 1}u), int(i >> ${shift}u)), 0).x; }
${glslOf(facts.body)}
out vec4 found;
void main() { found = pixel(floor(gl_FragCoord.xy) + view[4].xy); }`, facts.blocks.map((_, k) => part("w" + k)));
  const showing = program(`uniform vec4 view[3];
uniform highp sampler2D quick;
uniform highp sampler2D full;
vec4 quick_at(uint x, uint y) { return texelFetch(quick, ivec2(int(x), int(y)), 0); }
vec4 full_at(uint x, uint y) { return texelFetch(full, ivec2(int(x), int(y)), 0); }
${glslOf(facts.present)}
out vec4 found;
void main() { found = shown(vec2(gl_FragCoord.x, view[2].y - gl_FragCoord.y)); }`, []);
  const use = (made, view, textures) => {
    gl.useProgram(made);
    gl.uniform4fv(gl.getUniformLocation(made, "view"), view);
    Object.entries(textures).forEach(([name, from], k) => {
      gl.activeTexture(gl.TEXTURE0 + k);
      gl.bindTexture(gl.TEXTURE_2D, from);
      gl.uniform1i(gl.getUniformLocation(made, name), k);
    });
  };
  gl.bindVertexArray(gl.createVertexArray());
  const ended = () => new Promise((resolve) => {
    const fence = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
    gl.flush();
    const look = () => {
      if (fence && gl.clientWaitSync(fence, 0, 0) === gl.TIMEOUT_EXPIRED) setTimeout(look, 1);
      else resolve(gl.deleteSync(fence));
    };
    setTimeout(look, 0);
  });
  const lost = new Promise((resolve) => canvas.addEventListener("webglcontextlost", () => resolve({ message: "" })));
  return {
    name: "WebGL2",
    lost,
    lose: () => gl.getExtension("WEBGL_lose_context").loseContext(),
    onePass: !isFloat,
    picture(width, height) {
      const memory = texture([internal, width, height]), frame = gl.createFramebuffer();
      gl.bindFramebuffer(gl.FRAMEBUFFER, frame);
      gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, memory, 0);
      return { width, height, memory, frame, free: () => { gl.deleteTexture(memory); gl.deleteFramebuffer(frame); } };
    },
    async draw(picture, view) {
      gl.bindFramebuffer(gl.FRAMEBUFFER, picture.frame);
      gl.viewport(0, 0, picture.width, picture.height);
      gl.enable(gl.SCISSOR_TEST);
      gl.scissor(0, view[22], picture.width, view[23]);
      if (view[18] < 1) {
        gl.enable(gl.BLEND);
        gl.blendColor(0, 0, 0, view[18]);
        gl.blendFunc(gl.CONSTANT_ALPHA, gl.ONE_MINUS_CONSTANT_ALPHA);
      }
      use(drawing, view, { table, cells });
      gl.drawArrays(gl.TRIANGLES, 0, 3);
      gl.disable(gl.BLEND);
      gl.disable(gl.SCISSOR_TEST);
      await ended();
    },
    async read(picture) {
      const n = 4 * picture.width * picture.height, found = isFloat ? new Float32Array(n) : new Uint8Array(n);
      gl.bindFramebuffer(gl.FRAMEBUFFER, picture.frame);
      gl.readPixels(0, 0, picture.width, picture.height, gl.RGBA, isFloat ? gl.FLOAT : gl.UNSIGNED_BYTE, found);
      return isFloat ? found : Float32Array.from(found, (v) => v / 255);
    },
    present(quick, full, view) {
      gl.bindFramebuffer(gl.FRAMEBUFFER, null);
      gl.viewport(0, 0, canvas.width, canvas.height);
      use(showing, view, { quick: quick.memory, full: full.memory });
      gl.drawArrays(gl.TRIANGLES, 0, 3);
    },
  };
}
