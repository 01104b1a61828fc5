// Unpacks the model, listens to mouse, touch and keys, and keeps the picture up to date: quick and coarse while
// something moves, then whole, then with more points in each pixel. State for tests: the attribute data-state of <html>.
const root = document.documentElement, $ = (id) => document.getElementById(id);
const facts = JSON.parse($("described").textContent);
const wide = () => Math.max(1, innerWidth), high = () => Math.max(1, innerHeight);  // a hidden frame has neither
const MOST_PIXELS = 2 ** 22, FRAME_MS = 33, REST_MS = 150, PASSES = 8;

function fail(text) {
  if (root.dataset.state.startsWith("error")) return;
  root.dataset.state = "error: " + text;
  delete root.dataset.drawn;
  $("message").textContent = text;
  $("message").hidden = false;
}
addEventListener("error", (event) => fail("Something went wrong: " + event.message));
addEventListener("unhandledrejection", (event) => fail("Something went wrong: " + (event.reason && event.reason.message || event.reason)));

// --- the model's numbers

async function unpacked(text) {
  const raw = atob(text), packed = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) packed[i] = raw.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// --- what is looked at: a camera that moves around a point, or a part of a picture

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const add = (a, b, s) => [a[0] + s * b[0], a[1] + s * b[1], a[2] + s * b[2]];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const turned = (v, axis, angle) => {  // Rodrigues
  const c = Math.cos(angle), s = Math.sin(angle), across = cross(axis, v);
  return [0, 1, 2].map((i) => v[i] * c + across[i] * s + axis[i] * dot(axis, v) * (1 - c));
};

function cameraControls({ cameras, pivot, up }) {
  let right, down, forward, place, about, lens;
  const photo = (k) => {  // rows of the 3x4 pose, then fx, fy, cx, cy, width, height
    const c = cameras[k];
    [right, down, forward, place] = [0, 1, 2, 3].map((j) => [c[j], c[4 + j], c[8 + j]]);
    lens = c.slice(12);
    about = pivot;
  };
  const turn = (axis, angle) => {
    [right, down, forward] = [right, down, forward].map((v) => turned(v, axis, angle));
    place = add(about, turned(add(place, about, -1), axis, angle), 1);
  };
  const away = () => Math.max(1e-3, Math.abs(dot(add(about, place, -1), forward)));
  photo(0);
  return {
    n: cameras.length, photo,
    turn(dx, dy) {
      turn(up, -5 * dx);
      const steep = dot(forward, up), angle = -5 * dy, then = turned(forward, right, angle);
      if (Math.abs(dot(then, up)) < 0.99 || Math.abs(dot(then, up)) < Math.abs(steep)) turn(right, angle);
    },
    move(dx, dy) {
      const reach = away() / scale(lens, wide(), high())[0] * high();
      for (const [axis, d] of [[right, dx], [down, dy]]) {
        place = add(place, axis, -d * reach);
        about = add(about, axis, -d * reach);
      }
    },
    zoom(factor) { place = add(about, add(place, about, -1), factor); },
    fill(view, width, height) {
      const [fx, fy] = scale(lens, width, height), [, , cx, cy, w, h] = lens;
      [0, 1, 2].forEach((i) => view.set([right[i], down[i], forward[i], place[i]], 4 * i));
      view.set([fx, fy, width / 2 + (cx - w / 2) * fx / lens[0], height / 2 + (cy - h / 2) * fy / lens[1]], 12);
    },
    label: "a view to turn and move",
    help: ["Drag, one finger or arrow keys: turn around the scene", "Right button, two fingers or Shift + arrows: move",
      "Wheel, pinch or + and -: nearer and farther", "N and P: views of the photos; Home: the first view"],
  };
}

function scale([fx, fy, , , w, h], width, height) {  // focal lengths that show the whole of a w x h view
  const s = Math.min(width / w, height / h);
  return [fx * s, fy * s];
}

function pictureControls({ width, height }) {
  let x, y, s;  // the middle of the window in the picture's pixels; how many of them an own pixel is wide
  const whole = () => { [x, y, s] = [width / 2, height / 2, Math.max(width / wide(), height / high())]; };
  const move = (dx, dy) => { [x, y] = [x - dx * high() * s, y - dy * high() * s]; };
  whole();
  return {
    n: 1, photo: whole, turn: move, move,
    zoom(factor, [left, top] = [wide() / 2, high() / 2]) {  // the point under the pointer stays
      // float32 tells a picture's place to a part in 2^24 of its side
      const least = Math.max(1 / 256, Math.max(width, height) / 2 ** 22);
      const most = 4 * Math.max(width / wide(), height / high()), before = s;
      s = Math.max(least, Math.min(most, s * factor));
      x += (left - wide() / 2) * (before - s);
      y += (top - high() / 2) * (before - s);
    },
    fill(view, columns, rows) {
      const [across, down] = [s * wide() / columns, s * high() / rows];
      view.set([x - across * columns / 2, y - down * rows / 2, across, down]);
    },
    label: "a picture to move and enlarge",
    help: ["Drag, one finger or arrow keys: move", "Wheel, pinch or + and -: enlarge and shrink", "Home: the whole picture"],
  };
}

const kinds = { nerf: cameraControls, sdf: cameraControls, image: pictureControls };

// --- the page

async function start() {
  const view = kinds[facts.kind](facts.view), numbers = await unpacked($("data").textContent);
  const part = (name) => numbers.subarray(facts.parts[name][0], facts.parts[name][0] + facts.parts[name][1]);
  let canvas, gpu, quick, full, probe, isChanged = true, lastMove = 0, wake = null, photo = 0;
  let cost = { quick: 1, full: 1 }, done = 0, pass = 0, theme = 0;

  const changed = () => {
    isChanged = true;
    lastMove = performance.now();
    if (wake) wake();
  };

  async function open(ways) {
    for (const way of ways) {
      canvas = document.createElement("canvas");
      canvas.tabIndex = 0;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${facts.title}: ${view.label}, with the mouse, fingers or arrow keys`);
      $("stage").replaceChildren(canvas);
      try {
        gpu = await way(canvas, facts, part);
      } catch (error) {
        root.dataset.refused = error.message;  // the next way may do
        if (way === ways[ways.length - 1]) fail(`This cannot be drawn here, a still picture is shown: ${error.message}.`);
      }
      if (gpu) break;
    }
    if (!gpu) return false;
    const mine = gpu;
    mine.lost.then((why) => {
      if (gpu !== mine) return;
      gpu = quick = full = probe = null;
      if (mine.name === "WebGPU") open([webgl2]).then((found) => found || nothing());
      else fail("The graphics device was lost; load the page again.");
    });
    root.dataset.backend = gpu.name.toLowerCase();
    listen();
    fit();
    return true;
  }

  const nothing = () => fail("This browser offers neither WebGPU nor WebGL2 here, so the scene cannot be turned: a still picture is shown.");

  function fit() {
    const ratio = Math.min(2, devicePixelRatio || 1), s = Math.min(1, Math.sqrt(MOST_PIXELS / (wide() * high() * ratio * ratio)));
    canvas.width = Math.max(1, Math.round(wide() * ratio * s));
    canvas.height = Math.max(1, Math.round(high() * ratio * s));
    if (full) full.free();
    full = gpu.picture(canvas.width, canvas.height);
    changed();
  }

  // Draws rows of a picture; resolves to milliseconds for a pixel.
  async function draw(picture, { first = 0, rows = picture.height, jitter = [0.5, 0.5], share = 1, isQuick = false, camera } = {}) {
    const numbers = new Float32Array(32), before = performance.now();
    if (camera) numbers.set(camera.numbers);
    else view.fill(numbers, picture.width, picture.height);
    numbers.set([...jitter, share, 0, picture.width, picture.height, first, rows, ...(isQuick ? [1e-2, 4e-3] : [1e-4, 1e-5])], 16);
    const mine = gpu;
    await gpu.draw(picture, numbers).catch(async (error) => {
      await new Promise((resolve) => setTimeout(resolve, 100));  // a lost device is told apart from a mistake
      if (gpu === mine) throw error;
    });
    return (performance.now() - before) / (picture.width * rows);
  }

  function show(rows) {
    const color = facts.background || getComputedStyle(document.body).backgroundColor.match(/[\d.]+/g).slice(0, 3).map((v) => v / 255);
    gpu.present(quick, full, new Float32Array([...color, 1, quick.width, quick.height, full.width, full.height, canvas.width, canvas.height, rows, 0]));
    root.dataset.drawn = "";
  }

  async function loop() {
    for (;;) {
      await new Promise(requestAnimationFrame);
      if (!gpu || window.hashfield.hold) {
        if (root.dataset.state.startsWith("error")) return;
        continue;
      }
      const mine = gpu;
      if (isChanged) {
        isChanged = false;
        const s = Math.min(1, Math.max(24 / canvas.height, Math.sqrt(FRAME_MS / cost.quick / (canvas.width * canvas.height))));
        const width = Math.max(1, Math.round(canvas.width * s)), height = Math.max(1, Math.round(canvas.height * s));
        if (!quick || quick.width !== width || quick.height !== height) {
          if (quick) quick.free();
          quick = gpu.picture(width, height);
        }
        const found = await draw(quick, { isQuick: true });
        if (gpu !== mine) continue;
        cost.quick = cost.quick === 1 ? found : 0.4 * cost.quick + 0.6 * found;
        done = pass = 0;
        show(0);
        if (root.dataset.state === "loading") root.dataset.state = "ready";
        tell();
      } else if (pass < (gpu.onePass ? 1 : PASSES) && performance.now() - lastMove > REST_MS) {
        if (!pass && !done && cost.full === 1) cost.full = cost.quick;
        const rows = Math.min(canvas.height - done, Math.max(8, Math.floor(FRAME_MS / cost.full / canvas.width)));
        const jitter = pass ? [0, 1].map((k) => (0.5 + (pass + 1) * [0.7548777, 0.5698403][k]) % 1) : [0.5, 0.5];  // the R2 sequence
        const found = await draw(full, { first: done, rows, jitter, share: 1 / (pass + 1) });
        if (gpu !== mine) continue;
        cost.full = 0.4 * cost.full + 0.6 * found;
        done += rows;
        if (isChanged) continue;
        show(pass ? canvas.height : done);
        if (done >= canvas.height) [done, pass] = [0, pass + 1];
        root.dataset.passes = pass;
        tell();
      } else if (performance.now() - lastMove > REST_MS) {
        await new Promise((resolve) => { wake = resolve; });
        wake = null;
      }
    }
  }

  function tell() {
    const why = gpu && gpu.name === "WebGL2" && !isSecureContext ? ", as WebGPU needs https" : "";
    $("facts").textContent = gpu ? `${gpu.name}${why} · ${pass || done ? full.width : quick.width} × ${pass || done ? full.height : quick.height}` : "";
  }

  // --- mouse, touch, keys

  function listen() {
    const held = new Map();
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      held.set(event.pointerId, [event.clientX, event.clientY]);
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => held.delete(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      const before = held.get(event.pointerId), now = [event.clientX, event.clientY];
      if (!before) return;
      const [dx, dy] = [0, 1].map((k) => (now[k] - before[k]) / high());
      if (held.size === 1) {
        if (event.buttons & 6 || event.shiftKey) view.move(dx, dy);
        else view.turn(dx, dy);
      } else {
        const other = [...held].find(([id]) => id !== event.pointerId)[1];
        const apart = (a) => Math.max(8, Math.hypot(a[0] - other[0], a[1] - other[1]));
        view.zoom(apart(before) / apart(now), other);
        view.move(dx / 2, dy / 2);
      }
      held.set(event.pointerId, now);
      changed();
    });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => {
      if (window.top !== window && document.activeElement !== canvas) return;  // in a frame the page around scrolls
      event.preventDefault();
      view.zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY * (event.ctrlKey ? 0.01 : 0.001)))), [event.clientX, event.clientY]);
      changed();
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }, step = arrows[event.key];
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      if (step) (event.shiftKey ? view.move : view.turn)(step[0] * -0.02, step[1] * -0.02);
      else if (event.key === "+" || event.key === "=") view.zoom(0.9);
      else if (event.key === "-") view.zoom(1 / 0.9);
      else if (event.key === "Home") go(0);
      else if (event.key === "n" || event.key === "p") go(photo + (event.key === "n" ? 1 : -1));
      else return;
      event.preventDefault();
      changed();
    });
  }

  const go = (k) => {
    photo = (k + view.n) % view.n;
    view.photo(photo);
    changed();
  };
  $("reset").onclick = () => go(0);
  $("before").onclick = () => go(photo - 1);
  $("after").onclick = () => go(photo + 1);
  $("before").hidden = $("after").hidden = view.n < 2;
  $("theme").onclick = () => {
    const isDark = (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    root.dataset.theme = isDark ? "light" : "dark";
    changed();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  $("help").innerHTML = "<ul>" + view.help.map((line) => `<li>${line}</li>`).join("") + "</ul>";
  $("ask").onclick = () => {
    $("help").hidden = !$("help").hidden;
    $("ask").setAttribute("aria-expanded", String(!$("help").hidden));
  };
  addEventListener("resize", () => gpu && fit());

  window.hashfield = {  // for tests: a picture of any camera {numbers, width, height}, as premultiplied floats
    async render(camera) {
      if (probe) probe.free();
      probe = gpu.picture(camera.width, camera.height);
      return await draw(probe, { camera }) * camera.width * camera.height;
    },
    lose: () => gpu.lose(),
    seen() {  // the numbers of what the window shows now
      const numbers = new Float32Array(32);
      view.fill(numbers, canvas.width, canvas.height);
      return Array.from(numbers);
    },
    async read() { return Array.from(await gpu.read(probe)); },
  };
  const ways = location.hash === "#webgl2" ? [webgl2] : [webgpu, webgl2];
  if (await open(ways)) loop();
  else nothing();
}

start();
