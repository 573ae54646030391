// The map of a latent space: test images as points, and a mark where z is.
"use strict";

/**
 * Draws the map and listens to it.
 *
 * inputs, size: the points' z or codes, and how many numbers each has; state: what is shown, see explore.js;
 * take, takeImage, keep: show another z, an image's, or keep one as A or B; nameOf, labelled: labels in words.
 */
const latentMap = ({ inputs, size, state, take, takeImage, keep, nameOf, labelled }) => {
  const { data, at, make, rounded } = Page,
    { points, codes } = data;
  const STEP = 0.02,
    FAR = 0.1,
    NEAR = 12,
    CHOICES = 256; // steps as shares of the map; NEAR in pixels
  const xy = Program.arrayOf(points.xy, "float");

  const map = at("map"),
    thumbnails = new Image(),
    only = new Set();
  thumbnails.src = points.thumbnails.picture;
  const middle = codes ? null : Program.arrayOf(data.middle, "float");
  const directions = codes ? null : Program.arrayOf(data.axes, "float");

  // An axis of the map is a direction of z, from an origin: coordinate = direction · (z − origin).
  const principal = (number) => ({
    direction: directions?.subarray(number * size, (number + 1) * size),
    origin: middle,
    points: Float32Array.from({ length: points.count }, (_, n) => xy[2 * n + number]),
  });
  const single = (number) => ({
    direction: Float32Array.from({ length: size }, (_, n) => (n === number ? 1 : 0)),
    origin: new Float32Array(size),
    points: Float32Array.from({ length: points.count }, (_, n) => inputs[n * size + number]),
  });
  const unit = data.dimensions?.by === "KL" ? "nats" : "variance",
    order = data.dimensions?.order.slice(0, CHOICES) ?? [];
  const choices = [
    ...[0, 1].map((n) => ({
      name: `principal axis ${n + 1} (${Math.round(100 * data.shares[n])}%)`,
      made: () => principal(n),
    })),
    ...order.map((number, n) => ({
      name: `z ${number} (${rounded(data.dimensions.use[n])} ${unit})`,
      made: () => single(number),
    })),
  ];
  const chosen = {};
  const range = (numbers) => {
    let low = Infinity,
      high = -Infinity;
    for (const number of numbers) {
      low = Math.min(low, number);
      high = Math.max(high, number);
    }
    const margin = 0.06 * (high - low) || 1;
    return { low: low - margin, high: high + margin };
  };
  const ranges = {};
  const axes = () => [chosen.across, chosen.up];
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
    const { toX, toY } = scaled(),
      [a, b] = axes();
    let best = -1,
      least = within * within;
    for (let n = 0; n < points.count; n++) {
      if (!shownPoint(n)) continue;
      const far = (toX(a.points[n]) - toX(place[0])) ** 2 + (toY(b.points[n]) - toY(place[1])) ** 2;
      if (far < least) {
        least = far;
        best = n;
      }
    }
    return best;
  };

  const COLOURS = [
    "#2f7ed8",
    "#e07b1f",
    "#2f9e44",
    "#d22f2f",
    "#8e5bd6",
    "#9c6644",
    "#17a2a8",
    "#c2a400",
    "#7a8088",
    "#ec7fc0",
  ];
  const colourOf = (label) => (label < COLOURS.length ? COLOURS[label] : `hsl(${(label * 137.5) % 360} 60% 50%)`);

  // The points are drawn once and copied while the mark moves.
  const layer = document.createElement("canvas");
  const draw = () => {
    const { box, toX, toY } = scaled(),
      sharp = window.devicePixelRatio || 1,
      [a, b] = axes();
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
    const { toX, toY } = scaled(),
      sharp = window.devicePixelRatio || 1;
    const pen = map.getContext("2d"),
      style = getComputedStyle(document.documentElement);
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
      for (const [thick, colour] of [
        [5, pen.strokeStyle],
        [2, text],
      ]) {
        pen.lineWidth = thick;
        pen.strokeStyle = colour;
        pen.beginPath();
        pen.arc(x, y, 5, 0, 7);
        pen.moveTo(x - 12, y);
        pen.lineTo(x - 5, y);
        pen.moveTo(x + 5, y);
        pen.lineTo(x + 12, y);
        pen.moveTo(x, y - 12);
        pen.lineTo(x, y - 5);
        pen.moveTo(x, y + 5);
        pen.lineTo(x, y + 12);
        pen.stroke();
      }
      pen.fillStyle = text;
      pen.fillText(letter, x + 7, y - 7);
    };
    for (const end of ["a", "b"])
      if (state[end])
        mark(
          axes().map((axis) => dot(axis.direction, state[end].z) - dot(axis.direction, axis.origin)),
          end.toUpperCase(),
        );
    const place = position();
    if (place) mark(place, "");
  };

  /** Moves z within the map's plane; what the map does not show of it stays. */
  const moveTo = (x, y) => {
    const [a, b] = axes(),
      z = state.z.slice();
    const u = x - coordinate(a),
      v = y - coordinate(b);
    const aa = dot(a.direction, a.direction),
      bb = dot(b.direction, b.direction),
      ab = dot(a.direction, b.direction);
    const volume = aa * bb - ab * ab;
    let [s, t] = [aa ? u / aa : 0, 0]; // of two equal axes, or one that the model lacks, the first alone moves
    if (volume > 1e-6) [s, t] = [(bb * u - ab * v) / volume, (aa * v - ab * u) / volume];
    for (let n = 0; n < size; n++) z[n] += s * a.direction[n] + t * b.direction[n];
    take(z, { place: `point (${rounded(x)}, ${rounded(y)})` });
  };

  const act = (place, action) => {
    if (action === "decode") return moveTo(...place);
    const nearest = nearestTo(place);
    if (nearest < 0) return undefined;
    takeImage(nearest);
    if (action === "a" || action === "b") keep(action, state.z, state.label, nearest);
    return undefined;
  };
  const placeOf = (event) => {
    const { box } = scaled(),
      along = (range, share) => range.low + share * (range.high - range.low);
    return [
      along(ranges.across, (event.clientX - box.left) / box.width),
      along(ranges.up, 1 - (event.clientY - box.top) / box.height),
    ];
  };
  const hover = (event) => {
    const nearest = nearestTo(placeOf(event), NEAR),
      { box } = scaled();
    at("hover").hidden = nearest < 0;
    if (nearest < 0) return;
    const { columns, height: tall, width: wide } = points.thumbnails,
      canvas = at("hover").firstElementChild;
    [canvas.width, canvas.height] = [wide, tall];
    canvas
      .getContext("2d")
      .drawImage(
        thumbnails,
        (nearest % columns) * wide,
        Math.floor(nearest / columns) * tall,
        wide,
        tall,
        0,
        0,
        wide,
        tall,
      );
    at("hover").lastElementChild.textContent = `image ${points.numbers[nearest]}${labelled(nearest)}`;
    const x = event.clientX - box.left,
      y = event.clientY - box.top;
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
  map.addEventListener("pointerleave", () => {
    at("hover").hidden = true;
  });
  const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  map.addEventListener("keydown", (event) => {
    const place = position() ?? axes().map((axis) => axis.points[state.last]),
      action = at("action").value;
    if (event.key === "Enter" || event.key === " ") act(place, action === "decode" ? "nearest" : action);
    else if (KEYS[event.key]) {
      const by = event.shiftKey ? FAR : STEP,
        [x, y] = KEYS[event.key];
      const next = [
        place[0] + x * by * (ranges.across.high - ranges.across.low),
        place[1] + y * by * (ranges.up.high - ranges.up.low),
      ];
      if (codes) walk(place, [x, y]);
      else moveTo(...next);
    } else return;
    event.preventDefault();
  });
  /** The nearest image in a direction, since there is nothing between images of codes. */
  const walk = (place, [x, y]) => {
    const { toX, toY } = scaled(),
      [a, b] = axes();
    let best = -1,
      least = Infinity;
    for (let n = 0; n < points.count; n++) {
      const right = toX(a.points[n]) - toX(place[0]),
        above = toY(place[1]) - toY(b.points[n]);
      const along = right * x + above * y,
        aside = Math.abs(right * y) + Math.abs(above * x);
      if (shownPoint(n) && along > 0 && along + 3 * aside < least) {
        least = along + 3 * aside;
        best = n;
      }
    }
    if (best >= 0) takeImage(best);
  };

  for (const name of ["across", "up"]) {
    choices.forEach((choice, n) => at(name).append(make("option", { value: n, textContent: choice.name })));
    const choose = () => {
      chosen[name] = choices[at(name).value].made();
      ranges[name] = range(chosen[name].points);
    };
    at(name).value = name === "across" ? 0 : 1;
    choose();
    at(name).addEventListener("change", () => {
      choose();
      draw();
    });
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
      draw();
    });
    at("legend").append(make("li", {}, button));
  }

  window.addEventListener("resize", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  return { draw, drawMarks, nearestTo, position, act };
};
