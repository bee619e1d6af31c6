// Loss curves and quality against cost, drawn as SVG at the width that the page gives them.

const HEIGHT = 340;
const MARGIN = { left: 58, right: 18, top: 14, bottom: 46 };

/** About `count` round numbers that cover low to high. */
function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw * 0.8);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

/** Powers of ten between low and high, with 2 and 5 between them where there is room for `most` labels. */
function logTicks(low, high, most) {
  const factors = Math.log10(high / low) * 3 < most ? [1, 2, 5] : [1];
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const factor of factors) {
      const value = factor * 10 ** power;
      if (value >= low && value <= high) found.push(value);
    }
  }
  return found;
}

function short(value) {
  for (const [size, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size) return `${Number((value / size).toPrecision(3))}${unit}`;
  }
  return String(Number(value.toPrecision(3)));
}

function clock(seconds) {
  if (seconds < 60) return `${Number(seconds.toPrecision(2))} s`;
  if (seconds < 3600) return `${Number((seconds / 60).toPrecision(2))} min`;
  return `${Number((seconds / 3600).toPrecision(2))} h`;
}

/** An SVG with grid, axes and titles; x and y are functions from values to pixels. */
function frame(width, label, x, y, xTicks, yTicks, xFormat, xTitle, yTitle) {
  const bottom = HEIGHT - MARGIN.bottom;
  const right = width - MARGIN.right;
  const digits = Math.max(0, ...yTicks.map((value) => (String(value).split(".")[1] ?? "").length));
  return svg(
    "svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": label },
    ...yTicks.flatMap((value) => [
      svg("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) }),
      svg("text", { x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(digits)),
    ]),
    svg("line", { class: "axis", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }),
    ...xTicks.flatMap((value) => [
      svg("line", { class: "axis", x1: x(value), x2: x(value), y1: bottom, y2: bottom + 4 }),
      svg("text", { x: x(value), y: bottom + 18, "text-anchor": "middle" }, xFormat(value)),
    ]),
    svg("text", { class: "title", x: (MARGIN.left + right) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, xTitle),
    svg("text", { class: "title", transform: `translate(14 ${(MARGIN.top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yTitle),
  );
}

const linear = (low, high, from, to) => (value) => from + ((value - low) / (high - low || 1)) * (to - from);

/** Draw now, and again whenever the width changes. */
function drawAtWidth(place, draw) {
  let drawn = 0;
  const redraw = () => {
    drawn = Math.max(280, Math.round(place.clientWidth));
    place.replaceChildren(draw(drawn));
  };
  new ResizeObserver(() => requestAnimationFrame(() => Math.round(place.clientWidth) !== drawn && redraw())).observe(place);
  redraw();
  return redraw;
}

function lossChart() {
  const place = document.getElementById("loss-chart");
  const legend = document.getElementById("loss-legend");
  const trained = data.models.filter((model) => model.training.length || model.validation.length);
  if (!trained.length) {
    place.append(html("p", { class: "empty" }, "None of these runs has a metrics.jsonl."));
    return;
  }
  const hidden = new Set();
  const outputs = new Map();
  let cursor = null; // the share of a run that the values in the legend belong to
  // Runs are laid over each other by the share of their steps: 10 of fine-tuning would vanish beside 1,000 from scratch.
  const lastStep = new Map(trained.map((model) => [model, Math.max(...[...model.training, ...model.validation].map(([step]) => step), 1)]));

  function readOut() {
    for (const [model, output] of outputs) {
      const step = cursor * lastStep.get(model);
      const near = (curve) => curve.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best));
      const curve = model.validation.length ? model.validation : model.training;
      output.textContent = cursor === null ? "" : `${near(curve)[1].toFixed(3)} at step ${near(curve)[0]} of ${lastStep.get(model)}`;
    }
  }

  const redraw = drawAtWidth(place, (width) => {
    const visible = trained.filter((model) => !hidden.has(model));
    const values = (visible.length ? visible : trained).flatMap((model) => [...model.training, ...model.validation]).map((point) => point[1]);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const room = (high - low) * 0.05 || 0.1;
    const x = linear(0, 1, MARGIN.left, width - MARGIN.right);
    const y = linear(low - room, high + room, HEIGHT - MARGIN.bottom, MARGIN.top);
    const path = (model, curve) =>
      curve.map(([step, value], index) => `${index ? "L" : "M"}${x(step / lastStep.get(model)).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    const chart = frame(
      width, `Loss over the run of ${trained.map((model) => model.name).join(", ")}; left and right keys read values`, x, y,
      ticks(0, 1, Math.max(3, Math.floor(width / 110))), ticks(low - room, high + room, 6), (share) => `${Math.round(share * 100)} %`, "share of the run's steps", "loss, nats per token",
    );
    for (const model of visible) {
      chart.append(svg("g", { class: model.colour },
        svg("path", { class: "training", d: path(model, model.training) }), svg("path", { class: "validation", d: path(model, model.validation) })));
    }
    const line = svg("line", { class: "cursor", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, visibility: "hidden" });
    chart.append(line);
    chart.setAttribute("tabindex", "0");
    const point = (share) => {
      cursor = share === null ? null : Math.min(1, Math.max(0, share));
      line.setAttribute("visibility", cursor === null ? "hidden" : "visible");
      if (cursor !== null) for (const end of ["x1", "x2"]) line.setAttribute(end, x(cursor));
      readOut();
    };
    chart.addEventListener("pointermove", (event) => {
      const share = (event.clientX - chart.getBoundingClientRect().left - MARGIN.left) / (width - MARGIN.left - MARGIN.right);
      point(share);
    });
    chart.addEventListener("pointerleave", () => point(null));
    chart.addEventListener("blur", () => point(null));
    chart.addEventListener("keydown", (event) => {
      const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!direction) return;
      event.preventDefault();
      point((cursor ?? 0) + direction / 20);
    });
    return chart;
  });

  for (const model of trained) {
    const output = html("output");
    const button = html("button", { type: "button", "aria-pressed": "true" }, swatch(model), model.name, output);
    button.addEventListener("click", () => {
      if (!hidden.delete(model)) hidden.add(model);
      button.setAttribute("aria-pressed", String(!hidden.has(model)));
      redraw();
    });
    outputs.set(model, output);
    legend.append(button);
  }
}

const BESIDE_A_DOT = [
  [9, 4, "start"], [-9, 4, "end"], [9, -9, "start"], [-9, -9, "end"], [9, 18, "start"], [-9, 18, "end"],
  [-9, -16, "end"], [-9, 24, "end"], [9, -24, "start"], [9, 32, "start"],
];

/** Draw each name in the first of its places, [dx, dy, anchor], where it covers nothing yet. */
function placeNames(chart, dots, places, width, taken) {
  for (const { model, px, py } of dots) {
    const long = model.name.length * 7.2 + 4;
    for (const [dx, dy, anchor] of places) {
      const left = px + dx - { start: 0, middle: long / 2, end: long }[anchor];
      const box = { left, right: left + long, top: py + dy - 12, bottom: py + dy + 4 };
      const inside = box.left > MARGIN.left && box.right < width - 2 && box.top > 0 && box.bottom < HEIGHT - MARGIN.bottom;
      const free = taken.every((other) => box.right < other.left || box.left > other.right || box.bottom < other.top || box.top > other.bottom);
      if (!inside || !free) continue;
      taken.push(box);
      chart.append(svg("text", { class: "name", x: px + dx, y: py + dy, "text-anchor": anchor }, model.name));
      break;
    }
  }
}

function costChart() {
  const costs = [
    ["trainable_parameters", "Trainable parameters", short],
    ["train_seconds", "Train time", clock],
    ["peak_memory_bytes", "Peak memory", (value) => `${Number((value / 1e9).toPrecision(2))} GB`],
  ].filter(([key]) => data.models.some((model) => model[key] > 0));
  const place = document.getElementById("cost-chart");
  if (!costs.length) {
    place.append(html("p", { class: "empty" }, "None of these models was trained: there is no cost to show."));
    return;
  }
  let chosen = 0;
  const redraw = drawAtWidth(place, (width) => {
    const [key, title, format] = costs[chosen];
    const models = data.models.filter((model) => model.method !== "base" && model[key] > 0);
    const bases = data.models.filter((model) => model.method === "base");
    const bounds = [...models, ...bases].flatMap(({ bits_per_byte: bits }) => [bits.low, bits.high]);
    const [low, high] = [Math.min(...bounds), Math.max(...bounds)];
    const room = (high - low) * 0.12 || 0.05;
    const y = linear(low - room, high + room, HEIGHT - MARGIN.bottom, MARGIN.top);
    const [least, most] = [Math.min(...models.map((model) => model[key])), Math.max(...models.map((model) => model[key]))];
    const logarithmic = most / least > 12;
    const [from, to] = logarithmic ? [least / 2, most * 2] : [0, most * 1.15];
    const scale = linear(logarithmic ? Math.log(from) : from, logarithmic ? Math.log(to) : to, MARGIN.left, width - MARGIN.right);
    const x = (value) => scale(logarithmic ? Math.log(value) : value);
    const marks = logarithmic ? logTicks(from, to, width / 60) : ticks(from, to, Math.max(3, Math.floor(width / 120)));
    const chart = frame(
      width, `Bits per byte against ${title.toLowerCase()}: ` + models.map((model) => `${model.name} ${model.bits_per_byte.value.toFixed(3)} at ${format(model[key])}`).join(", "),
      x, y, marks, ticks(low - room, high + room, 6), format, `${title.toLowerCase()}${logarithmic ? ", logarithmic" : ""}`, "bits per byte",
    );
    const taken = [];
    for (const base of bases) {
      const height = y(base.bits_per_byte.value);
      chart.append(svg("g", {}, svg("title", {}, base.name),
        svg("line", { class: "base-line", x1: MARGIN.left, x2: width - MARGIN.right, y1: height, y2: height })));
    }
    // The Pareto front: from the cheapest on, each model that is better than all cheaper ones.
    const front = [];
    for (const model of models.filter((each) => each.position !== null).sort((a, b) => a[key] - b[key] || a.bits_per_byte.value - b.bits_per_byte.value)) {
      if (!front.length || model.bits_per_byte.value < front.at(-1).bits_per_byte.value) front.push(model);
    }
    const step = (model, index) => {
      const [px, py] = [x(model[key]).toFixed(1), y(model.bits_per_byte.value).toFixed(1)];
      return index ? `H${px}V${py}` : `M${px} ${py}`;
    };
    if (front.length > 1) chart.append(svg("path", { class: "front", d: front.map(step).join("") }));
    chart.setAttribute("aria-label", `${chart.getAttribute("aria-label")}. On the Pareto front: ${front.map((model) => model.name).join(", ")}`);
    const dots = models.map((model) => ({ model, px: x(model[key]), py: y(model.bits_per_byte.value) }));
    for (const { model, px, py } of dots) {
      const [top, bottom] = [y(model.bits_per_byte.high), y(model.bits_per_byte.low)];
      taken.push({ left: px - 5, right: px + 5, top, bottom });
      chart.append(svg("g", { class: model.colour },
        svg("title", {}, `${model.name}: ${model.bits_per_byte.value.toFixed(3)} bits per byte, ${format(model[key])}`),
        svg("line", { class: "range", x1: px, x2: px, y1: top, y2: bottom }), svg("circle", { class: "dot", cx: px, cy: py, r: 6 })));
    }
    placeNames(chart, dots, BESIDE_A_DOT, width, taken);
    const [center, right] = [(width - MARGIN.left - MARGIN.right) / 2, width - MARGIN.left - MARGIN.right];
    const alongALine = [-6, 16].flatMap((dy) => [[5, dy, "start"], [right, dy, "end"], [center, dy, "middle"]]);
    placeNames(chart, bases.map((model) => ({ model, px: MARGIN.left, py: y(model.bits_per_byte.value) })), alongALine, width, taken);
    return chart;
  });
  const group = document.getElementById("cost-choice");
  costs.forEach(([, title], index) => {
    const button = html("button", { type: "button", "aria-pressed": String(index === 0) }, title);
    button.addEventListener("click", () => {
      chosen = index;
      [...group.children].forEach((other, number) => other.setAttribute("aria-pressed", String(number === index)));
      redraw();
    });
    group.append(button);
  });
}

lossChart();
costChart();
