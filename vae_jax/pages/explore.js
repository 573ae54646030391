// The page of a latent space: see vae_jax/pages/explore.py for what `data` holds.
"use strict";

const explorer = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const make = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };
  const [height, width, channels] = data.shape;
  const { points, codes } = data;
  const size = codes ? codes.shape.reduce((a, b) => a * b, 1) : data.latent;
  const kind = codes ? "int" : "float";
  const inputs = Program.arrayOf(points.inputs, kind), xy = Program.arrayOf(points.xy, "float");
  const ofPoint = (number) => inputs.slice(number * size, (number + 1) * size);
  const nameOf = (label) => data.names[label] ?? String(label);
  const rounded = (number, digits = 2) => number.toFixed(digits).replace("-", "−");
  const PLURAL = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
  const DRAWN = 12, STEP = 0.02, FAR = 0.1, NEAR = 12; // NEAR in pixels; steps as shares of the map

  // --- The decoder ---------------------------------------------------------------------------------------------------

  const program = Program.prepared(data.program);
  const decode = (z, label = 0) => {
    program.inputs.z.set(z);
    program.inputs.label?.fill(label);
    return program.run()[0];
  };

  /** The largest difference between this page's pictures and the model's own. */
  const difference = () => {
    const z = Program.arrayOf(data.check.inputs, kind), wanted = Program.arrayOf(data.check.pictures, "float");
    let most = 0;
    for (let row = 0, n = 0; row * size < z.length; row++) {
      const made = decode(z.subarray(row * size, (row + 1) * size), data.check.labels?.[row]);
      for (let m = 0; m < made.length; m++) most = Math.max(most, Math.abs(made[m] - wanted[n++]));
    }
    return most;
  };

  const paint = (canvas, picture) => {
    canvas.width = width;
    canvas.height = height;
    const image = new ImageData(width, height);
    for (let n = 0; n < width * height; n++) {
      for (let c = 0; c < 3; c++) image.data[4 * n + c] = Math.round(255 * Math.min(1, Math.max(0, picture[n * channels + (c % channels)])));
      image.data[4 * n + 3] = 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  };

  // --- What is shown -------------------------------------------------------------------------------------------------

  const state = { z: ofPoint(0), label: points.labels?.[0] ?? 0, image: 0, place: "", a: null, b: null, milliseconds: 0 };

  let asked = false, speaking = 0;
  const say = (text) => {
    at("status").textContent = text;
    clearTimeout(speaking);
    speaking = setTimeout(() => { at("live").textContent = text; }, 400); // not every step of a drag
  };

  const describe = () => {
    const found = nearestTo(position());
    const near = found < 0 ? "" : `nearest test image ${points.numbers[found]}${labelled(found)}`;
    const of = state.image === null ? near : `test image ${points.numbers[state.image]}${labelled(state.image)}`;
    const given = data.classes ? `class ${nameOf(state.label)}` : "";
    return [state.place, of, given, `decoded in ${rounded(state.milliseconds, 1)} ms`].filter(Boolean).join("; ");
  };
  const labelled = (number) => (points.labels ? `, label ${nameOf(points.labels[number])}` : "");

  const show = () => {
    asked = false;
    const start = performance.now();
    const picture = decode(state.z, state.label);
    state.milliseconds = performance.now() - start;
    paint(at("picture"), picture);
    const text = describe();
    at("picture").setAttribute("aria-label", `decoded picture: ${text}`);
    say(text);
    for (const slider of sliders) slider.follow();
    follow();
    drawMarks();
  };

  /** Shows another z or other codes, once for each frame of the screen. */
  const take = (z, { label = state.label, image = null, place = "" } = {}) => {
    Object.assign(state, { z, label, image, place });
    if (data.classes) at("class").value = label;
    if (!asked) requestAnimationFrame(show);
    asked = true;
  };
  const takeImage = (number, place = "") => {
    take(ofPoint(number), { image: number, place, ...(data.classes && points.labels ? { label: points.labels[number] } : {}) });
  };

  // --- The map -------------------------------------------------------------------------------------------------------

  const map = at("map"), thumbnails = new Image(), only = new Set();
  thumbnails.src = points.thumbnails.picture;
  const middle = codes ? null : Program.arrayOf(data.middle, "float");
  const directions = codes ? null : Program.arrayOf(data.axes, "float");

  // An axis of the map is a direction of z, from an origin: coordinate = direction · (z − origin).
  const principal = (number) => ({
    name: `principal axis ${number + 1} (${Math.round(100 * data.shares[number])}%)`,
    direction: directions?.subarray(number * size, (number + 1) * size),
    origin: middle,
    points: Float32Array.from({ length: points.count }, (_, n) => xy[2 * n + number]),
  });
  const single = (number, use) => ({
    name: `z ${number} (${use})`,
    direction: Float32Array.from({ length: size }, (_, n) => (n === number ? 1 : 0)),
    origin: new Float32Array(size),
    points: Float32Array.from({ length: points.count }, (_, n) => inputs[n * size + number]),
  });
  const unit = data.dimensions?.by === "KL" ? " nats" : " variance";
  const choices = [principal(0), principal(1)];
  data.dimensions?.order.forEach((number, n) => choices.push(single(number, rounded(data.dimensions.use[n]) + unit)));
  const chosen = { across: 0, up: 1 };
  const range = (numbers) => {
    let low = Infinity, high = -Infinity;
    for (const number of numbers) { low = Math.min(low, number); high = Math.max(high, number); }
    const margin = 0.06 * (high - low) || 1;
    return { low: low - margin, high: high + margin };
  };
  const ranges = {};
  const axes = () => [choices[chosen.across], choices[chosen.up]];
  const dot = (a, b) => a.reduce((sum, x, n) => sum + x * b[n], 0);
  const coordinate = (axis) => dot(axis.direction, state.z) - dot(axis.direction, axis.origin);
  const position = () => {
    if (codes) return state.image === null ? null : axes().map((axis) => axis.points[state.image]);
    return axes().map(coordinate);
  };

  const shownPoint = (n) => !only.size || only.has(points.labels[n]);
  const scaled = () => {
    const box = map.getBoundingClientRect();
    const toX = (x) => ((x - ranges.across.low) / (ranges.across.high - ranges.across.low)) * box.width;
    const toY = (y) => (1 - (y - ranges.up.low) / (ranges.up.high - ranges.up.low)) * box.height;
    return { box, toX, toY };
  };
  const nearestTo = (place, within = Infinity) => {
    if (!place) return -1;
    const { toX, toY } = scaled(), [a, b] = axes();
    let best = -1, least = within * within;
    for (let n = 0; n < points.count; n++) {
      if (!shownPoint(n)) continue;
      const far = (toX(a.points[n]) - toX(place[0])) ** 2 + (toY(b.points[n]) - toY(place[1])) ** 2;
      if (far < least) { least = far; best = n; }
    }
    return best;
  };

  const COLOURS = ["#2f7ed8", "#e07b1f", "#2f9e44", "#d22f2f", "#8e5bd6", "#9c6644", "#17a2a8", "#c2a400", "#7a8088", "#ec7fc0"];
  const colourOf = (label) => (label < COLOURS.length ? COLOURS[label] : `hsl(${(label * 137.5) % 360} 60% 50%)`);

  // The points are drawn once and copied while the mark moves.
  const layer = document.createElement("canvas");
  const drawMap = () => {
    const { box, toX, toY } = scaled(), sharp = window.devicePixelRatio || 1, [a, b] = axes();
    layer.width = map.width = Math.max(1, Math.round(box.width * sharp));
    layer.height = map.height = Math.max(1, Math.round(box.height * sharp));
    const pen = layer.getContext("2d");
    pen.scale(sharp, sharp);
    for (let n = 0; n < points.count; n++) {
      pen.globalAlpha = shownPoint(n) ? 0.75 : 0.07;
      pen.fillStyle = points.labels ? colourOf(points.labels[n]) : COLOURS[0];
      pen.beginPath();
      pen.arc(toX(a.points[n]), toY(b.points[n]), 2.6, 0, 7);
      pen.fill();
    }
    drawMarks();
  };
  const drawMarks = () => {
    const { toX, toY } = scaled(), sharp = window.devicePixelRatio || 1;
    const pen = map.getContext("2d"), style = getComputedStyle(document.documentElement);
    const text = style.getPropertyValue("--text").trim();
    pen.resetTransform();
    pen.clearRect(0, 0, map.width, map.height);
    pen.drawImage(layer, 0, 0);
    pen.scale(sharp, sharp);
    pen.font = "600 14px system-ui, sans-serif";
    const mark = (place, letter) => {
      const [x, y] = [toX(place[0]), toY(place[1])];
      pen.lineWidth = 3;
      pen.strokeStyle = style.getPropertyValue("--ground").trim();
      pen.strokeText(letter, x + 7, y - 7);
      for (const [thick, colour] of [[5, pen.strokeStyle], [2, text]]) {
        pen.lineWidth = thick;
        pen.strokeStyle = colour;
        pen.beginPath();
        pen.arc(x, y, 5, 0, 7);
        pen.moveTo(x - 12, y); pen.lineTo(x - 5, y); pen.moveTo(x + 5, y); pen.lineTo(x + 12, y);
        pen.moveTo(x, y - 12); pen.lineTo(x, y - 5); pen.moveTo(x, y + 5); pen.lineTo(x, y + 12);
        pen.stroke();
      }
      pen.fillStyle = text;
      pen.fillText(letter, x + 7, y - 7);
    };
    for (const end of ["a", "b"]) if (state[end]) mark(axes().map((axis) => dot(axis.direction, state[end].z) - dot(axis.direction, axis.origin)), end.toUpperCase());
    const place = position();
    if (place) mark(place, "");
  };

  /** Moves z within the map's plane; what the map does not show of it stays. */
  const moveTo = (x, y) => {
    const [a, b] = axes(), z = state.z.slice();
    const u = x - coordinate(a), v = y - coordinate(b);
    const aa = dot(a.direction, a.direction), bb = dot(b.direction, b.direction), ab = dot(a.direction, b.direction);
    const volume = aa * bb - ab * ab;
    let [s, t] = [aa ? u / aa : 0, 0]; // of two equal axes, or one that the model lacks, the first alone moves
    if (volume > 1e-6) [s, t] = [(bb * u - ab * v) / volume, (aa * v - ab * u) / volume];
    for (let n = 0; n < size; n++) z[n] += s * a.direction[n] + t * b.direction[n];
    take(z, { place: `point (${rounded(x)}, ${rounded(y)})` });
  };

  const keep = (end, z, label, image) => {
    state[end] = { z: z.slice(), label };
    paint(at(end), decode(z, label));
    at(end).setAttribute("aria-label", `${end.toUpperCase()}: ${image === null ? "a point" : `test image ${points.numbers[image]}${labelled(image)}`}`);
    at("path").disabled = !(state.a && state.b);
    at("path").value = end === "a" ? 0 : 1;
    followPath();
    drawMarks();
  };
  const followPath = () => {
    at("path-help").textContent = state.a && state.b
      ? "The slider mixes the z of A and B" + (data.classes ? "; the class is that of the nearer end." : ".")
      : "Keep two pictures, or take images from the map as A and B.";
  };
  const act = (place, action) => {
    if (action === "decode") return moveTo(...place);
    const found = nearestTo(place);
    if (found < 0) return undefined;
    takeImage(found);
    if (action === "a" || action === "b") keep(action, ofPoint(found), state.label, found);
    return undefined;
  };
  const placeOf = (event) => {
    const { box } = scaled(), along = (range, share) => range.low + share * (range.high - range.low);
    return [along(ranges.across, (event.clientX - box.left) / box.width), along(ranges.up, 1 - (event.clientY - box.top) / box.height)];
  };
  const hover = (event) => {
    const found = nearestTo(placeOf(event), NEAR), { box } = scaled();
    at("hover").hidden = found < 0;
    if (found < 0) return;
    const { columns, height: tall, width: wide } = points.thumbnails, canvas = at("hover").firstElementChild;
    [canvas.width, canvas.height] = [wide, tall];
    canvas.getContext("2d").drawImage(thumbnails, (found % columns) * wide, Math.floor(found / columns) * tall, wide, tall, 0, 0, wide, tall);
    at("hover").lastElementChild.textContent = `image ${points.numbers[found]}${labelled(found)}`;
    const x = event.clientX - box.left, y = event.clientY - box.top;
    at("hover").style.left = `${x > box.width / 2 ? x - 110 : x + 16}px`;
    at("hover").style.top = `${Math.max(0, y - 50)}px`;
  };
  map.addEventListener("pointerdown", (event) => {
    map.setPointerCapture(event.pointerId);
    act(placeOf(event), at("action").value);
  });
  map.addEventListener("pointermove", (event) => {
    if (event.buttons & 1) act(placeOf(event), at("action").value);
    else hover(event);
  });
  map.addEventListener("pointerleave", () => { at("hover").hidden = true; });
  const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  map.addEventListener("keydown", (event) => {
    const place = position() ?? axes().map((axis) => axis.points[0]), action = at("action").value;
    if (event.key === "Enter" || event.key === " ") act(place, action === "decode" ? "nearest" : action);
    else if (KEYS[event.key]) {
      const by = event.shiftKey ? FAR : STEP, [x, y] = KEYS[event.key];
      const next = [place[0] + x * by * (ranges.across.high - ranges.across.low), place[1] + y * by * (ranges.up.high - ranges.up.low)];
      if (codes) walk(place, [x, y]);
      else moveTo(...next);
    } else return;
    event.preventDefault();
  });
  /** The nearest image in a direction, since there is nothing between images of codes. */
  const walk = (place, [x, y]) => {
    const { toX, toY } = scaled(), [a, b] = axes();
    let best = -1, least = Infinity;
    for (let n = 0; n < points.count; n++) {
      const right = toX(a.points[n]) - toX(place[0]), above = toY(place[1]) - toY(b.points[n]);
      const along = right * x + above * y, aside = Math.abs(right * y) + Math.abs(above * x);
      if (shownPoint(n) && along > 0 && along + 3 * aside < least) { least = along + 3 * aside; best = n; }
    }
    if (best >= 0) takeImage(best);
  };

  for (const name of ["across", "up"]) {
    choices.forEach((choice, n) => at(name).append(make("option", { value: n, textContent: choice.name })));
    const choose = () => {
      chosen[name] = Number(at(name).value);
      ranges[name] = range(choices[chosen[name]].points);
    };
    at(name).value = chosen[name];
    choose();
    at(name).addEventListener("change", () => { choose(); drawMap(); });
  }
  const labels = [...new Set(points.labels ?? [])].sort((a, b) => a - b);
  for (const label of labels) {
    const swatch = make("i");
    swatch.style.background = colourOf(label);
    const button = make("button", { type: "button" }, swatch, nameOf(label));
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      if (!only.delete(label)) only.add(label);
      button.setAttribute("aria-pressed", String(only.has(label)));
      drawMap();
    });
    at("legend").append(make("li", {}, button));
  }
  at("about").textContent = `${PLURAL(points.count, "point")}${points.count < points.all ? ` of ${points.all.toLocaleString("en")} test images, spread over them` : ": all test images"}. ` +
    `z has ${codes ? `${PLURAL(size, "code")} of ${PLURAL(codes.values, "value")}` : PLURAL(size, "dimension")}. The decoder runs in this page.`;

  // --- Sliders of z --------------------------------------------------------------------------------------------------

  const sliders = [], FIRST = 32;
  if (data.dimensions) {
    const { order, use, inert, low, high, by } = data.dimensions;
    at("dimensions-section").hidden = false;
    at("dimensions-help").textContent = by === "KL"
      ? "Sorted by the mean KL of the posterior from the prior, in nats."
      : "Sorted by the variance of the posterior's centre over the images: this model has no KL by dimension.";
    order.forEach((number, place) => {
      const name = `z ${number} · ${rounded(use[place])}${by === "KL" ? " nats" : ""}`;
      const slider = make("input", { type: "range", min: low[number], max: high[number], step: (high[number] - low[number]) / 400, id: `z${number}` });
      const value = make("output", { htmlFor: slider.id });
      const row = make("div", { className: "slider" }, make("label", { htmlFor: slider.id, textContent: name }), slider, value);
      slider.addEventListener("input", () => {
        const z = state.z.slice();
        z[number] = Number(slider.value);
        take(z, { place: `z ${number} = ${rounded(z[number])}` });
      });
      const group = inert[place] ? "inert" : sliders.length < FIRST ? "sliders" : "further";
      at(group).hidden = false;
      (group === "sliders" ? at(group) : at(group).lastElementChild).append(row);
      sliders.push({ group, follow: () => { slider.value = state.z[number]; value.textContent = rounded(state.z[number]); } });
    });
    const count = (group) => sliders.filter((slider) => slider.group === group).length;
    at("further").firstElementChild.textContent = `${PLURAL(count("further"), "further dimension")}`;
    const least = by === "KL" ? "a KL below 0.01 nats, next to nothing about the image" : "a variance below 0.01, nearly the same for every image";
    at("inert").firstElementChild.textContent = `${PLURAL(count("inert"), "inert dimension")}: ${least}`;
  }

  // --- Codes ---------------------------------------------------------------------------------------------------------

  let follow = () => {};
  if (codes) {
    for (const id of ["middle", "keep-a", "keep-b", "path-title", "path-help"]) at(id).hidden = true;
    document.querySelector(".path").style.display = "none";
    for (const option of [...at("action").options]) if (option.value !== "nearest") option.remove();
    at("codes-section").hidden = false;
    at("codes-help").textContent = "Choose a place, by arrow keys too, and move the slider to change its code. There is nothing between codes, so a click on the map takes an image's codes.";
    const columns = codes.shape.length > 1 ? size / codes.shape[0] : Math.min(size, 16);
    at("codes").style.gridTemplateColumns = `repeat(${columns}, auto)`;
    const placeOfCode = (number) => {
      const index = [];
      for (let axis = codes.shape.length - 1; axis >= 0; axis--) { index.unshift(number % codes.shape[axis]); number = Math.floor(number / codes.shape[axis]); }
      return index.join(", ");
    };
    const cells = Array.from({ length: size }, (_, number) => make("button", { type: "button", tabIndex: number ? -1 : 0 }));
    let selected = 0;
    const select = (number, focus = true) => {
      selected = number;
      if (focus) cells[number].focus();
      follow();
    };
    cells.forEach((cell, number) => {
      cell.addEventListener("click", () => select(number));
      cell.addEventListener("keydown", (event) => {
        const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
        if (!by) return;
        event.preventDefault();
        if (number + by >= 0 && number + by < size) select(number + by);
      });
    });
    at("codes").append(...cells);
    at("code").max = codes.values - 1;
    at("code").addEventListener("input", () => {
      const z = state.z.slice();
      z[selected] = Number(at("code").value);
      take(z, { place: `code ${z[selected]} at place ${placeOfCode(selected)}` });
    });
    follow = () => {
      cells.forEach((cell, number) => {
        cell.textContent = state.z[number];
        cell.tabIndex = number === selected ? 0 : -1;
        cell.setAttribute("aria-pressed", String(number === selected));
        cell.setAttribute("aria-label", `place ${placeOfCode(number)}: code ${state.z[number]}`);
      });
      at("code").value = state.z[selected];
      at("code").setAttribute("aria-label", `code at place ${placeOfCode(selected)}`);
      at("code-value").textContent = state.z[selected];
    };
  }
  at("map-help").textContent = codes
    ? "Click an image to take its codes; arrow keys walk from image to image. Hover to see images. Percentages are shares of the variance of z."
    : "Click or drag to decode a point of this plane; what the plane does not show of z stays. Arrow keys move, with Shift further; Enter takes the nearest image. Hover to see images. Percentages are shares of the variance of z.";

  // --- Class, A and B, samples ---------------------------------------------------------------------------------------

  if (data.classes) {
    at("class-label").hidden = false;
    for (let label = 0; label < data.classes; label++) at("class").append(make("option", { value: label, textContent: nameOf(label) }));
    at("class").addEventListener("change", () => take(state.z, { label: Number(at("class").value), image: state.image, place: state.place }));
  }
  at("middle").addEventListener("click", () => take(middle.slice(), { place: "the mean of z" }));
  at("nearest").addEventListener("click", () => act(position() ?? axes().map((axis) => axis.points[0]), "nearest"));
  for (const end of ["a", "b"]) at(`keep-${end}`).addEventListener("click", () => keep(end, state.z, state.label, state.image));
  at("path").addEventListener("input", () => {
    const t = Number(at("path").value), { a, b } = state;
    take(a.z.map((x, n) => (1 - t) * x + t * b.z[n]), { label: t <= 0.5 ? a.label : b.label, place: `${rounded(t)} of the way from A to B` });
  });
  followPath();

  const { prior } = data;
  const drawn = prior.kind === "drawn" ? Program.arrayOf(prior.inputs, kind) : null;
  const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  at("temperature").addEventListener("input", () => { at("temperature-value").textContent = rounded(Number(at("temperature").value)); });
  if (prior.kind !== "normal") at("temperature-label").hidden = true;
  if (prior.kind === "none") at("drawing").hidden = true;
  prior.temperatures?.forEach((one, n) => at("temperatures").append(make("option", { value: n, textContent: one, selected: n === prior.temperatures.length - 1 })));
  at("temperatures-label").hidden = !prior.temperatures;
  at("prior").textContent = {
    normal: "z = temperature × noise, from the prior N(0, I)" + (data.classes ? ", of the chosen class." : "."),
    drawn: `From the prior ${prior.name}: ${PLURAL(prior.count ?? 0, "draw")} made with this page` + (prior.labels ? ", here those of the chosen class." : "."),
    none: `None: ${prior.why}.`,
  }[prior.kind];
  const draw = () => {
    let found;
    if (prior.kind === "normal") {
      const temperature = Number(at("temperature").value);
      found = Array.from({ length: DRAWN }, () => Float32Array.from({ length: size }, () => temperature * normal()));
    } else {
      const first = Number(at("temperatures").value || 0) * prior.count;
      const rows = Array.from({ length: prior.count }, (_, n) => n).filter((n) => !prior.labels || prior.labels[n] === state.label);
      for (let n = rows.length - 1; n > 0; n--) { const m = Math.floor(Math.random() * (n + 1)); [rows[n], rows[m]] = [rows[m], rows[n]]; }
      found = rows.slice(0, DRAWN).map((n) => drawn.slice((first + n) * size, (first + n + 1) * size));
    }
    const label = state.label;
    at("samples").replaceChildren(...found.map((z, n) => {
      const canvas = make("canvas"), button = make("button", { type: "button" }, canvas);
      paint(canvas, decode(z, label));
      button.setAttribute("aria-label", `sample ${n + 1}: take it`);
      button.addEventListener("click", () => take(z, { label, place: `sample ${n + 1}` }));
      return button;
    }));
  };
  at("draw").addEventListener("click", () => { draw(); say(`${PLURAL(at("samples").children.length, "sample")} drawn`); });

  // --- Begin ---------------------------------------------------------------------------------------------------------

  const most = difference();
  if (!(most <= data.tolerance)) {
    at("alarm").hidden = false;
    at("alarm").textContent = `This browser's pictures differ from the model's by up to ${most}: do not trust them.`;
  }
  window.addEventListener("resize", drawMap);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);
  drawMap();
  takeImage(0);
  if (prior.kind !== "none") draw();

  return { data, state, decode, difference: most, take, takeImage, act };
})();
