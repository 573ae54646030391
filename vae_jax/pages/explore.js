// The page of a latent space: see vae_jax/pages/explore.py for what `data` holds.
"use strict";

const explorer = (() => {
  const { data, at, make, rounded, counted } = Page;
  const [height, width, channels] = data.shape;
  const { points, codes } = data;
  const size = codes ? codes.shape.reduce((a, b) => a * b, 1) : data.latent;
  const kind = codes ? "int" : "float";
  const inputs = Program.arrayOf(points.inputs, kind);
  const ofPoint = (number) => inputs.slice(number * size, (number + 1) * size);
  const nameOf = (label) => data.names[label] ?? String(label);
  const DRAWN = 12;

  // --- The decoder ---------------------------------------------------------------------------------------------------

  const program = Program.prepared(data.program);
  const decode = (z, label = 0) => {
    program.inputs.z.set(z);
    program.inputs.label?.fill(label);
    return program.run()[0];
  };

  /** The largest difference between this page's pictures and the model's own. */
  const difference = () => {
    const z = Program.arrayOf(data.check.inputs, kind),
      wanted = Program.arrayOf(data.check.pictures, "float");
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
      for (let c = 0; c < 3; c++)
        image.data[4 * n + c] = Math.round(255 * Math.min(1, Math.max(0, picture[n * channels + (c % channels)])));
      image.data[4 * n + 3] = 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  };

  // --- What is shown -------------------------------------------------------------------------------------------------

  const state = {
    z: ofPoint(0),
    label: points.labels?.[0] ?? 0,
    image: 0,
    last: 0,
    place: "",
    a: null,
    b: null,
    milliseconds: 0,
  };

  let asked = false,
    speaking = 0;
  const say = (text) => {
    at("status").textContent = text;
    clearTimeout(speaking);
    speaking = setTimeout(() => {
      at("live").textContent = text;
    }, 400); // not every step of a drag
  };

  const describe = () => {
    const nearest = map.nearestTo(map.position());
    const near = nearest < 0 ? "" : `nearest test image ${points.numbers[nearest]}${labelled(nearest)}`;
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
    map.drawMarks();
  };

  /** Shows another z or other codes, once for each frame of the screen. */
  const take = (z, { label = state.label, image = null, place = "" } = {}) => {
    Object.assign(state, { z, label, image, place });
    if (data.classes) at("class").value = label;
    if (!asked) requestAnimationFrame(show);
    asked = true;
  };
  const takeImage = (number, place = "") => {
    state.last = number;
    take(ofPoint(number), {
      image: number,
      place,
      ...(data.classes && points.labels ? { label: points.labels[number] } : {}),
    });
  };

  // --- A and B ------------------------------------------------------------------------------------------------------

  const keep = (end, z, label, image) => {
    state[end] = { z: z.slice(), label };
    paint(at(end), decode(z, label));
    at(end).setAttribute(
      "aria-label",
      `${end.toUpperCase()}: ${image === null ? "a point" : `test image ${points.numbers[image]}${labelled(image)}`}`,
    );
    at("path").disabled = !(state.a && state.b);
    at("path").value = end === "a" ? 0 : 1;
    followPath();
    map.drawMarks();
  };
  const followPath = () => {
    at("path-help").textContent =
      state.a && state.b
        ? "The slider mixes the z of A and B" + (data.classes ? "; the class is that of the nearer end." : ".")
        : "Keep two pictures, or take images from the map as A and B.";
  };
  const map = latentMap({ inputs, size, state, take, takeImage, keep, nameOf, labelled });
  at("about").textContent =
    counted(points.count, "point") +
    (points.count < points.all
      ? ` of ${counted(points.all, "test image")}, spread over them. `
      : ": all test images. ") +
    `z has ${codes ? `${counted(size, "code")} of ${counted(codes.values, "value")}` : counted(size, "dimension")}. ` +
    "The decoder runs in this page.";

  // --- Sliders of z --------------------------------------------------------------------------------------------------

  const sliders = [],
    FIRST = 32,
    MOST = 512;
  if (data.dimensions) {
    const { order, use, inert, low, high, by } = data.dimensions;
    at("dimensions-section").hidden = false;
    at("dimensions-help").textContent =
      (by === "KL"
        ? "Sorted by the mean KL of the posterior from the prior, in nats."
        : "Sorted by the variance of the posterior's centre over the images: this model has no KL by dimension.") +
      (size > MOST ? ` The first ${MOST} of ${counted(size, "dimension")} have a slider.` : "");
    order.slice(0, MOST).forEach((number, place) => {
      const name = `z ${number} · ${rounded(use[place])}${by === "KL" ? " nats" : ""}`;
      const slider = make("input", {
        type: "range",
        min: low[number],
        max: high[number],
        step: (high[number] - low[number]) / 400,
        id: `z${number}`,
      });
      const value = make("output", { htmlFor: slider.id });
      const row = make(
        "div",
        { className: "slider" },
        make("label", { htmlFor: slider.id, textContent: name }),
        slider,
        value,
      );
      slider.addEventListener("input", () => {
        const z = state.z.slice();
        z[number] = Number(slider.value);
        take(z, { place: `z ${number} = ${rounded(z[number])}` });
      });
      const group = inert[place] ? "inert" : sliders.length < FIRST ? "sliders" : "further";
      at(group).hidden = false;
      (group === "sliders" ? at(group) : at(group).lastElementChild).append(row);
      sliders.push({
        group,
        follow: () => {
          slider.value = state.z[number];
          value.textContent = rounded(state.z[number]);
        },
      });
    });
    const count = (group) => sliders.filter((slider) => slider.group === group).length;
    at("further").firstElementChild.textContent = `${counted(count("further"), "further dimension")}`;
    const least =
      by === "KL"
        ? "a KL below 0.01 nats, next to nothing about the image"
        : "a variance below 0.01, nearly the same for every image";
    at("inert").firstElementChild.textContent = `${counted(count("inert"), "inert dimension")}: ${least}`;
  }

  // --- Codes ---------------------------------------------------------------------------------------------------------

  let follow = () => {};
  if (codes) {
    for (const id of ["middle", "keep-a", "keep-b", "path-title", "path-help"]) at(id).hidden = true;
    document.querySelector(".path").style.display = "none";
    for (const option of [...at("action").options]) if (option.value !== "nearest") option.remove();
    at("nearest").textContent = "Back to the image";
    at("codes-section").hidden = false;
    at("codes-help").textContent =
      "Choose a place, by arrow keys too, and move the slider to change its code. " +
      "There is nothing between codes, so a click on the map takes an image's codes.";
    const columns = codes.shape.length > 1 ? size / codes.shape[0] : Math.min(size, 16);
    at("codes").style.gridTemplateColumns = `repeat(${columns}, auto)`;
    const placeOfCode = (number) => {
      const index = [];
      for (let axis = codes.shape.length - 1; axis >= 0; axis--) {
        index.unshift(number % codes.shape[axis]);
        number = Math.floor(number / codes.shape[axis]);
      }
      return index.join(", ");
    };
    const cells = Array.from({ length: size }, (_, number) =>
      make("button", { type: "button", tabIndex: number ? -1 : 0 }),
    );
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
  at("map-help").textContent =
    (codes
      ? "Click an image to take its codes; arrow keys walk from image to image. "
      : "Click or drag to decode a point of this plane; what the plane does not show of z stays. " +
        "Arrow keys move, with Shift further; Enter takes the nearest image. ") +
    "Hover to see images. Percentages are shares of the variance of z.";

  // --- Class, A and B, samples ---------------------------------------------------------------------------------------

  if (data.classes) {
    at("class-label").hidden = false;
    for (let label = 0; label < data.classes; label++)
      at("class").append(make("option", { value: label, textContent: nameOf(label) }));
    at("class").addEventListener("change", () =>
      take(state.z, { label: Number(at("class").value), image: state.image, place: state.place }),
    );
  }
  at("middle").addEventListener("click", () => take(Program.arrayOf(data.middle, "float"), { place: "the mean of z" }));
  at("nearest").addEventListener("click", () => (codes ? takeImage(state.last) : map.act(map.position(), "nearest")));
  for (const end of ["a", "b"])
    at(`keep-${end}`).addEventListener("click", () => keep(end, state.z, state.label, state.image));
  at("path").addEventListener("input", () => {
    const t = Number(at("path").value),
      { a, b } = state;
    take(
      a.z.map((x, n) => (1 - t) * x + t * b.z[n]),
      { label: t <= 0.5 ? a.label : b.label, place: `${rounded(t)} of the way from A to B` },
    );
  });
  followPath();

  const { prior } = data;
  const drawn = prior.kind === "drawn" ? Program.arrayOf(prior.inputs, kind) : null;
  const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  at("temperature").addEventListener("input", () => {
    at("temperature-value").textContent = rounded(Number(at("temperature").value));
  });
  if (prior.kind !== "normal") at("temperature-label").hidden = true;
  if (prior.kind === "none") at("drawing").hidden = true;
  prior.temperatures?.forEach((one, n) =>
    at("temperatures").append(
      make("option", { value: n, textContent: one, selected: n === prior.temperatures.length - 1 }),
    ),
  );
  at("temperatures-label").hidden = !prior.temperatures;
  at("prior").textContent = {
    normal: "z = temperature × noise, from the prior N(0, I)" + (data.classes ? ", of the chosen class." : "."),
    drawn:
      `From the prior ${prior.name}: ${counted(prior.count ?? 0, "draw")} made with this page` +
      (prior.labels ? ", here those of the chosen class." : "."),
    none: `None: ${prior.why}.`,
  }[prior.kind];
  const draw = () => {
    let latents;
    if (prior.kind === "normal") {
      const temperature = Number(at("temperature").value);
      latents = Array.from({ length: DRAWN }, () => Float32Array.from({ length: size }, () => temperature * normal()));
    } else {
      const first = Number(at("temperatures").value || 0) * prior.count;
      const rows = Array.from({ length: prior.count }, (_, n) => n).filter(
        (n) => !prior.labels || prior.labels[n] === state.label,
      );
      for (let n = rows.length - 1; n > 0; n--) {
        const m = Math.floor(Math.random() * (n + 1));
        [rows[n], rows[m]] = [rows[m], rows[n]];
      }
      latents = rows.slice(0, DRAWN).map((n) => drawn.slice((first + n) * size, (first + n + 1) * size));
    }
    const label = state.label;
    at("samples").replaceChildren(
      ...latents.map((z, n) => {
        const canvas = make("canvas"),
          button = make("button", { type: "button" }, canvas);
        paint(canvas, decode(z, label));
        button.setAttribute("aria-label", `sample ${n + 1}: take it`);
        button.addEventListener("click", () => take(z, { label, place: `sample ${n + 1}` }));
        return button;
      }),
    );
  };
  at("draw").addEventListener("click", () => {
    draw();
    say(`${counted(at("samples").children.length, "sample")} drawn`);
  });

  // --- Begin ---------------------------------------------------------------------------------------------------------

  const most = difference();
  if (!(most <= data.tolerance)) {
    at("alarm").hidden = false;
    at("alarm").textContent = `This browser's pictures differ from the model's by up to ${most}: do not trust them.`;
  }
  map.draw();
  takeImage(0);
  if (prior.kind !== "none") draw();

  return { data, state, decode, difference: most, take, takeImage };
})();
