// The study: validation loss against learning rate, a curve a method, and quality against what a method costs.

const TOGETHER = 6; // methods whose curves can be told apart in one chart
const PANEL = { width: 230, height: 150, left: 34, right: 8, top: 22, bottom: 22 };

const pointsOf = (curves) => curves.flatMap((curve) => [...curve.whole, ...curve.part]);

/** From which loss to which the curves are drawn: what diverged would press all others into a line, and is cut off. */
function lossesShown(curves) {
  const losses = pointsOf(curves).map(([, loss]) => loss).sort((a, b) => a - b);
  const [low, middle] = [losses[0], losses[Math.floor(losses.length / 2)]];
  const high = Math.min(losses.at(-1), middle + 2 * (middle - low) + 0.02);
  const room = (high - low) * 0.06 || 0.05;
  return [low - room, high + room];
}

/** Of some curves the lowest and the highest rate, with room around them, and a function from rates to pixels. */
function ratesShown(curves, left, right) {
  const rates = pointsOf(curves).map(([rate]) => rate);
  const [from, to] = [Math.min(...rates) / 1.6, Math.max(...rates) * 1.6];
  const scale = linear(Math.log(from), Math.log(to), left, right);
  return [from, to, (rate) => scale(Math.log(rate))];
}

function bowl(curve, x, y) {
  const path = curve.whole.map(([rate, loss], index) => `${index ? "L" : "M"}${x(rate).toFixed(1)} ${y(loss).toFixed(1)}`).join("");
  const best = curve.whole.find(([rate]) => rate === curve.rate);
  return svg("g", { class: curve.colour },
    svg("title", {}, curve.name), svg("path", { class: "validation", d: path }),
    ...curve.whole.map(([rate, loss]) => svg("circle", { class: "dot", cx: x(rate), cy: y(loss), r: 3 })),
    ...curve.part.map(([rate, loss]) => svg("circle", { class: "dot faint", cx: x(rate), cy: y(loss), r: 3 })),
    best ? svg("circle", { class: "ring", cx: x(best[0]), cy: y(best[1]), r: 7 }) : null);
}

/** A small chart of one method beside those of others, the losses as in these, the rates its own. */
function ratePanel(curve, [low, high]) {
  const [right, bottom] = [PANEL.width - PANEL.right, PANEL.height - PANEL.bottom];
  const [from, to, x] = ratesShown([curve], PANEL.left, right);
  const level = linear(low, high, bottom, PANEL.top);
  const y = (loss) => level(Math.min(loss, high));
  const steps = ticks(low, high, 4);
  const digits = Math.max(0, ...steps.map((value) => (String(value).split(".")[1] ?? "").length));
  return svg("svg", { viewBox: `0 0 ${PANEL.width} ${PANEL.height}`, role: "img", "aria-label": `${curve.name}: validation loss against learning rate, ${curve.rate} chosen` },
    svg("text", { class: "name", x: PANEL.left, y: 13 }, `${curve.name} ${curve.rate}`),
    ...steps.flatMap((value) => [
      svg("line", { class: "grid", x1: PANEL.left, x2: right, y1: y(value), y2: y(value) }),
      svg("text", { x: PANEL.left - 5, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(digits)),
    ]),
    svg("line", { class: "axis", x1: PANEL.left, x2: right, y1: bottom, y2: bottom }),
    ...logTicks(from, to, 3).flatMap((value) => [
      svg("line", { class: "axis", x1: x(value), x2: x(value), y1: bottom, y2: bottom + 4 }),
      svg("text", { x: x(value), y: bottom + 16, "text-anchor": "middle" }, String(Number(value.toPrecision(2)))),
    ]), bowl(curve, x, y));
}

/** The chart and legend number `group`, of methods of one tokenizer: losses a token of two are not of one kind. */
function rateChart(curves, group) {
  if (curves.length > TOGETHER) {
    const shown = lossesShown(curves);
    field(`rate-chart-${group}`).append(html("div", { class: "panels" }, ...curves.map((curve) => ratePanel(curve, shown))));
    return;
  }
  const hidden = new Set();
  const redraw = drawAtWidth(field(`rate-chart-${group}`), (width) => {
    const seen = curves.filter((curve) => !hidden.has(curve.name));
    const drawn = seen.length ? seen : curves;
    const [from, to, x] = ratesShown(drawn, MARGIN.left, width - MARGIN.right);
    const [low, high] = lossesShown(drawn);
    const level = linear(low, high, HEIGHT - MARGIN.bottom, MARGIN.top);
    const y = (loss) => level(Math.min(loss, high));
    const chart = frame(
      width, "Validation loss against learning rate: " + drawn.map((curve) => `${curve.name} chose ${curve.rate}`).join(", "),
      x, y, logTicks(from, to, width / 70), ticks(low, high, 6), (rate) => String(Number(rate.toPrecision(2))), "learning rate, logarithmic", "validation loss, nats per token",
    );
    chart.append(...drawn.map((curve) => bowl(curve, x, y)));
    return chart;
  });
  for (const curve of curves) {
    const button = html("button", { type: "button", "aria-pressed": "true" }, swatch(curve), `${curve.name} ${curve.rate}`);
    button.addEventListener("click", () => {
      if (!hidden.delete(curve.name)) hidden.add(curve.name);
      button.setAttribute("aria-pressed", String(!hidden.has(curve.name)));
      redraw();
    });
    field(`rate-legend-${group}`).append(button);
  }
}

/** The methods that no other beats for sure at no more cost: a point leaves only where another's interval is below. */
function frontOf(methods, key) {
  return methods.filter((one) => !methods.some((other) => other !== one && other[key] <= one[key] && other.interval[1] < one.interval[0]));
}

function methodChart(study) {
  const costs = [
    ["trainable_parameters", "Trainable parameters", short], ["train_seconds", "Train time", clock],
    ["peak_memory_bytes", "Peak memory", (value) => `${Number((value / 1e9).toPrecision(2))} GB`],
    ["forgetting", "Forgetting, nats a token", (value) => String(Number(value.toPrecision(2)))],
  ].filter(([key]) => !study.apart.includes(key) && study.methods.some((method) => method.seeds && method[key] > 0));
  let chosen = 0;
  const redraw = drawAtWidth(field("study-chart"), (width) => {
    const [key, title, format] = costs[chosen];
    const trained = study.methods.filter((method) => method.seeds && method[key] > 0); // what began from nothing has nothing to forget
    const bounds = study.methods.flatMap((method) => method.interval);
    const [low, high] = [Math.min(...bounds), Math.max(...bounds)];
    const room = (high - low) * 0.1 || 0.05;
    const y = linear(low - room, high + room, HEIGHT - MARGIN.bottom, MARGIN.top);
    const [from, to] = [Math.min(...trained.map((each) => each[key])) / 1.5, Math.max(...trained.map((each) => each[key])) * 1.5];
    const scale = linear(Math.log(from), Math.log(to), MARGIN.left, width - MARGIN.right);
    const x = (value) => scale(Math.log(value));
    const front = frontOf(trained, key);
    const chart = frame(
      width, `Bits per byte against ${title.toLowerCase()}; on the front: ${front.map((each) => each.name).join(", ")}`,
      x, y, logTicks(from, to, width / 70), ticks(low - room, high + room, 6), format, `${title.toLowerCase()}, logarithmic`, "bits per byte",
    );
    for (const base of study.methods.filter((method) => !method.seeds)) {
      const height = y(base.bits_per_byte);
      chart.append(svg("g", {}, svg("title", {}, base.name),
        svg("line", { class: "base-line", x1: MARGIN.left, x2: width - MARGIN.right, y1: height, y2: height })));
    }
    const taken = [];
    const dots = trained.map((model) => ({ model, px: x(model[key]), py: y(model.bits_per_byte) }));
    for (const { model, px, py } of dots) {
      const [top, bottom] = [y(model.interval[1]), y(model.interval[0])];
      taken.push({ left: px - 5, right: px + 5, top, bottom });
      chart.append(svg("g", { class: model.colour + (front.includes(model) ? "" : " faint") },
        svg("title", {}, `${model.name}: ${model.bits_per_byte.toFixed(3)} bits per byte, ${format(model[key])}`),
        svg("line", { class: "range", x1: px, x2: px, y1: top, y2: bottom }), svg("circle", { class: "dot", cx: px, cy: py, r: 6 })));
    }
    placeNames(chart, dots, BESIDE_A_DOT, width, taken);
    return chart;
  });
  costs.forEach(([, title], index) => {
    const button = html("button", { type: "button", "aria-pressed": String(index === 0) }, title);
    button.addEventListener("click", () => {
      chosen = index;
      [...field("study-choice").children].forEach((other, number) => other.setAttribute("aria-pressed", String(number === index)));
      redraw();
    });
    field("study-choice").append(button);
  });
}

function scaledChart(scaled, group) {
  drawAtWidth(field(`scaled-chart-${group}`), (width) => {
    const losses = scaled.flatMap((each) => each.nats_per_token);
    const scales = scaled.flatMap((each) => each.scales);
    const [low, high] = [Math.min(...losses), Math.max(...losses)];
    const room = (high - low) * 0.06 || 0.05;
    const x = linear(Math.min(...scales), Math.max(...scales), MARGIN.left, width - MARGIN.right - 12);
    const y = linear(low - room, high + room, HEIGHT - MARGIN.bottom, MARGIN.top);
    const chart = frame(
      width, "Loss against the scale of what was learned: " + scaled.map((each) => `${each.name} is best at ${each.best}`).join(", "),
      x, y, ticks(Math.min(...scales), Math.max(...scales), 6), ticks(low - room, high + room, 6), (scale) => String(scale), "scale", "loss, nats per token",
    );
    for (const each of scaled) {
      const points = each.scales.map((scale, index) => [x(scale), y(each.nats_per_token[index])]);
      const [px, py] = points[each.scales.indexOf(each.best)];
      const path = points.map(([left, top], index) => `${index ? "L" : "M"}${left.toFixed(1)} ${top.toFixed(1)}`).join("");
      chart.append(svg("g", { class: each.colour }, svg("title", {}, `${each.name}: best at ${each.best}`),
        svg("path", { class: "validation", d: path }), svg("circle", { class: "ring", cx: px, cy: py, r: 7 })));
    }
    return chart;
  });
}

if (data.study) {
  data.study.groups.forEach((names, group) => {
    rateChart(data.study.curves.filter((curve) => names.includes(curve.name)), group);
    const scaled = data.study.scaled.filter((each) => names.includes(each.name));
    if (scaled.length) scaledChart(scaled, group);
  });
  methodChart(data.study);
}
