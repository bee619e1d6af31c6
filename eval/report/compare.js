// Two models held against each other: their difference with its test, and the questions where they are furthest apart.

const FURTHEST = 8; // questions listed
const [chosenA, chosenB] = [field("model-a"), field("model-b")];

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;
const needs = (a, b, difference) =>
  `${a.name} needs ${Math.abs(difference).toFixed(3)} bits per byte ${difference < 0 ? "fewer" : "more"} than ${b.name}`;
const probability = (p) => (p < 0.001 ? "below 0.001" : p.toFixed(3));

/** The comparison of a with b, turned round where it was made of b with a; undefined where none was made. */
function comparisonOf(a, b) {
  const found = data.comparisons.find((each) => (each.a === a.name && each.b === b.name) || (each.a === b.name && each.b === a.name));
  if (!found || found.a === a.name) return found;
  const [low, high] = found.low === null ? [null, null] : [-found.high, -found.low];
  return { ...found, a: a.name, b: b.name, difference: -found.difference, low, high };
}

function sayDifference(a, b, comparison) {
  if (a === b) return "Choose two different models.";
  if (!comparison) {
    const difference = a.bits_per_byte.value - b.bits_per_byte.value;
    return `${needs(a, b, difference)}. The two were not tested: one of them is not ranked.`;
  }
  const { difference, low, high, p_adjusted: p, few_questions: few } = comparison;
  const count = data.comparisons.length;
  const pairs = count > 1 ? `, both for all ${count} pairs at once` : "";
  if (low === null) return `${needs(a, b, difference)}. There are too few questions to test ${count > 1 ? `${count} pairs` : "the two"}.`;
  const verdict = low > 0 || high < 0 ? `${difference < 0 ? a.name : b.name} is the better one` : "the two cannot be told apart";
  const level = Number((100 * data.level).toPrecision(3));
  const decided = few
    ? ` Few questions decide this difference: ${few.questions} hold${few.questions > 1 ? "" : "s"} ${Math.round(100 * few.share)} % of its variance.` : "";
  return `${needs(a, b, difference)} (${level} % interval of the difference ${signed(low)} to ${signed(high)}, p ${probability(p)}${pairs}): ${verdict}.${decided}`;
}

/** The interval of the difference on a line where zero is marked. */
function differenceChart(a, b, { difference, low, high }) {
  return (width) => {
    const reach = Math.max(Math.abs(low), Math.abs(high), 0.001) * 1.15;
    const x = linear(-reach, reach, 12, width - 12);
    const middle = 30;
    const end = (value) => svg("line", { class: "range", x1: x(value), x2: x(value), y1: middle - 7, y2: middle + 7 });
    return svg(
      "svg", { viewBox: `0 0 ${width} 64`, role: "img", "aria-label": `Difference ${signed(difference)}, from ${signed(low)} to ${signed(high)}` },
      svg("line", { class: "axis", x1: x(0), x2: x(0), y1: 10, y2: 46 }),
      svg("g", { class: (difference < 0 ? a : b).colour },
        svg("line", { class: "range", x1: x(low), x2: x(high), y1: middle, y2: middle }), end(low), end(high),
        svg("circle", { class: "dot", cx: x(difference), cy: middle, r: 5 })),
      svg("text", { x: x(0), y: 60, "text-anchor": "middle" }, "0"),
      svg("text", { x: 12, y: 60 }, `← ${a.name} is better`.slice(0, 40)),
      svg("text", { x: width - 12, y: 60, "text-anchor": "end" }, `${b.name} is better →`.slice(-40)),
    );
  };
}

let comparing = 0;

async function compare() {
  const [a, b] = [data.models[chosenA.value], data.models[chosenB.value]];
  const comparison = a === b ? undefined : comparisonOf(a, b);
  field("difference").textContent = sayDifference(a, b, comparison);
  const place = field("difference-chart");
  place.replaceChildren();
  if (comparison && comparison.low !== null) place.append(differenceChart(a, b, comparison)(Math.max(280, place.clientWidth)));
  const apart = (number) => a.scores.bits[number] - b.scores.bits[number];
  const furthest = a === b ? [] : Array.from({ length: data.questions }, (_, number) => number)
    .sort((one, other) => Math.abs(apart(other)) - Math.abs(apart(one))).slice(0, FURTHEST);
  comparing += 1;
  const mine = comparing;
  const texts = await Promise.all(furthest.map(textsOf));
  if (mine !== comparing) return; // other models were chosen while the texts were unpacked
  field("apart").replaceChildren(...furthest.map((number, index) => {
    const question = html("button", { type: "button", class: "link" }, ...beginning(texts[index].instruction));
    question.addEventListener("click", () => showBoth(number));
    const better = apart(number) < 0 ? a : b;
    return html("li", {}, html("div", { class: "pair" }, question, html("span", { class: "number" },
      html("b", {}, Math.abs(apart(number)).toFixed(3)), " for ", swatch(better), better.name)));
  }));
}

/** The answers of the two, those furthest apart first, question `number` open. */
function showBoth(number) {
  showOnly([Number(chosenA.value), Number(chosenB.value)], number);
}

if (chosenA) {
  for (const select of [chosenA, chosenB]) {
    data.models.forEach((model, index) => select.append(html("option", { value: index }, model.name)));
    select.addEventListener("change", () => wish(compare));
  }
  chosenB.value = "1";
  field("show-both").addEventListener("click", () => showBoth(null));
  let drawn = 0;
  new ResizeObserver(([entry]) => {
    if (Math.round(entry.contentRect.width) === drawn) return; // its height changes with what is drawn
    drawn = Math.round(entry.contentRect.width);
    requestAnimationFrame(() => wish(compare));
  }).observe(field("difference-chart"));
}
