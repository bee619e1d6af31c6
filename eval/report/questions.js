// Every question with the models' answers side by side: search, filters, order, pages. A question is built when opened.

const PAGE = 20;
const COLUMNS = 5; // answers side by side at most
const SHOWN_AT_FIRST = 6; // with more models than this, the best and a base model; the others wait for their check box

const firstBase = data.models.findIndex((model) => model.method === "base");
const firstShown = data.models.map((_, index) => index).slice(0, SHOWN_AT_FIRST);
if (firstBase >= SHOWN_AT_FIRST) firstShown[SHOWN_AT_FIRST - 1] = firstBase;
const shownModels = new Set(firstShown);
const everyQuestion = Array.from({ length: data.questions }, (_, number) => number);
const duplicated = new Set(data.duplicated);
const haystacks = []; // lower-case text of a question, made when it is first searched
let found = [];
let start = 0;
let turn = 0; // counts what was asked for, so that a slow answer to an earlier wish is dropped
let opened = new Set(); // questions that are open, kept over pages, filters and orders

const shownScores = () => [...shownModels].sort((a, b) => a - b).map((index) => data.models[index].scores);
const bitsOf = (number) => shownScores().map((scores) => scores.bits[number]);

async function haystack(number) {
  if (haystacks[number] === undefined) {
    const { instruction, input, reference, answers, turns } = await textsOf(number);
    haystacks[number] = [instruction, input, reference, ...answers.map((answer) => answer ?? ""), ...turns.map(([, text]) => text)].join("\n").toLowerCase();
  }
  return haystacks[number];
}

const FILTERS = {
  all: () => true,
  written: (number) => shownScores().some((scores) => scores.stopped[number] !== null),
  cut: (number) => shownScores().some((scores) => scores.stopped[number] === 0),
  duplicated: (number) => duplicated.has(number),
};

const ORDERS = { // what is highest comes first
  differ: (bits) => Math.max(...bits) - Math.min(...bits),
  hard: (bits) => bits.reduce((sum, each) => sum + each, 0) / bits.length,
  easy: (bits) => -bits.reduce((sum, each) => sum + each, 0) / bits.length,
};

async function find(first = null) {
  turn += 1;
  const mine = turn;
  const words = field("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  let numbers = everyQuestion.filter(FILTERS[field("filter").value]);
  if (words.length) {
    const texts = [];
    for (const number of numbers) texts.push(haystacks[number] ?? await haystack(number));
    if (mine !== turn) return;
    numbers = numbers.filter((_, index) => words.every((word) => texts[index].includes(word)));
  }
  const order = ORDERS[field("order").value];
  if (order && shownModels.size) {
    const keys = new Map(numbers.map((number) => [number, order(bitsOf(number))]));
    numbers.sort((a, b) => keys.get(b) - keys.get(a));
  }
  found = numbers;
  start = Math.max(0, Math.floor(found.indexOf(first) / PAGE) * PAGE);
  await render();
}

function answerText(text, reference) {
  if (text === null) return html("p", { class: "text none" }, "not generated");
  if (text === "") return html("p", { class: "text none" }, "an empty answer");
  const parts = { plain: () => beginning(text), shared: sharedWords, changes: changedWords }[field("words").value];
  return html("p", { class: "text" }, ...parts(text, reference));
}

function answerCard(index, number, texts, lowest) {
  const model = data.models[index];
  const [bits, rouge, stopped, right] = ["bits", "rougeL", "stopped", "number"].map((key) => model.scores[key][number]);
  return html(
    "div", { class: `answer ${model.colour}` },
    html("h4", {}, swatch(model), model.name),
    html("div", { class: "badges" },
      html("span", {}, html("b", bits === lowest ? { class: "low" } : {}, bits.toFixed(3)), " bits/byte"),
      rouge === null ? null : html("span", {}, "ROUGE-L ", html("b", {}, rouge.toFixed(2))),
      right === null ? null : html("span", right ? {} : { class: "cut" }, right ? "number right" : "number wrong"),
      stopped === 0 ? html("span", { class: "cut" }, `cut at ${model.limit} tokens`) : null),
    answerText(texts.answers[index], texts.reference),
  );
}

function answersOf(number, texts) {
  const lowest = Math.min(...bitsOf(number));
  const shown = Math.max(1, shownModels.size);
  const answers = html("div", { class: "answers" },
    ...data.models.flatMap((_, index) => (shownModels.has(index) ? [answerCard(index, number, texts, lowest)] : [])));
  answers.style.setProperty("--columns", Math.ceil(shown / Math.ceil(shown / COLUMNS)));
  return [
    texts.turns.length ? html("ol", { class: "turns" }, ...texts.turns.map(([role, text]) =>
      html("li", {}, html("span", { class: "role" }, role), html("span", { class: "text" }, ...beginning(text))))) : null,
    texts.input ? html("p", { class: "input" }, ...beginning(texts.input)) : null,
    html("div", { class: "reference" }, html("p", { class: "label" }, "Reference"), html("p", { class: "text" }, ...beginning(texts.reference))),
    answers,
  ].filter(Boolean);
}

function questionCard(number, texts) {
  const bits = bitsOf(number);
  const range = bits.length ? `${Math.min(...bits).toFixed(2)}–${Math.max(...bits).toFixed(2)}` : "";
  const body = html("div", { class: "body" });
  const card = html("details", { class: "question" },
    html("summary", {}, html("span", { class: "rank" }, String(number + 1)), html("span", { class: "asked" }, ...beginning(texts.instruction)),
      duplicated.has(number) ? html("span", { class: "cut" }, "duplicate in training") : null,
      html("span", { class: "range-text", title: "bits per byte, from the best model shown to the worst" }, range)), body);
  const fill = () => {
    if (card.open && !body.hasChildNodes()) body.append(...answersOf(number, texts));
    if (card.open) opened.add(number);
    else opened.delete(number);
    sayOpen();
  };
  card.open = opened.has(number);
  if (card.open) fill();
  card.addEventListener("toggle", fill);
  return card;
}

function sayOpen() {
  const cards = [...field("questions").children];
  field("open-all").textContent = cards.length && cards.every((card) => card.open) ? "Close all" : "Open all";
}

function turnButton(label, to) {
  const button = html("button", { type: "button" }, label);
  button.disabled = to < 0 || to >= found.length;
  button.addEventListener("click", async () => {
    start = to;
    await render();
    field("tools").scrollIntoView();
    field("status").focus({ preventScroll: true });
  });
  return button;
}

async function render() {
  turn += 1;
  const mine = turn;
  const numbers = found.slice(start, start + PAGE);
  const texts = await Promise.all(numbers.map(textsOf));
  if (mine !== turn) return;
  const among = found.length === data.questions ? "" : ` found among ${data.questions}`;
  field("status").textContent = found.length ? `Questions ${start + 1} to ${start + numbers.length} of ${found.length}${among}` : "No question fits.";
  field("questions").replaceChildren(...numbers.map((number, index) => questionCard(number, texts[index])));
  sayOpen();
  for (const place of document.querySelectorAll(".turn")) {
    place.replaceChildren(turnButton("← Previous", start - PAGE), turnButton("Next →", start + PAGE));
  }
}

/** A wish of the reader's: what goes wrong while texts are unpacked is said where the questions would stand. */
function wish(work) {
  work().catch((error) => { field("status").textContent = `The answers cannot be unpacked by this browser: ${error.message}`; });
}

function showOnly(indices, number) {
  shownModels.clear();
  [...field("models").querySelectorAll("input")].forEach((box, index) => {
    box.checked = indices.includes(index);
    if (box.checked) shownModels.add(index);
  });
  field("search").value = "";
  field("filter").value = "all";
  field("order").value = "differ";
  opened = new Set(number === null ? [] : [number]);
  wish(async () => {
    await find(number);
    const card = field("questions").querySelector("details[open]") ?? field("tools");
    card.scrollIntoView();
    card.querySelector("summary, input").focus({ preventScroll: true });
  });
}

data.models.forEach((model, index) => {
  const box = html("input", { type: "checkbox" });
  box.checked = shownModels.has(index);
  box.addEventListener("change", () => {
    if (box.checked) shownModels.add(index);
    else shownModels.delete(index);
    wish(find);
  });
  field("models").append(html("label", {}, box, swatch(model), model.name));
});

let waiting;
field("search").addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => wish(find), 150);
});
for (const id of ["filter", "order"]) field(id).addEventListener("change", () => wish(find));
field("words").addEventListener("change", () => wish(render));
field("tools").addEventListener("submit", (event) => event.preventDefault());
field("open-all").addEventListener("click", () => {
  const open = field("open-all").textContent === "Open all";
  for (const card of field("questions").children) {
    card.open = open;
    card.dispatchEvent(new Event("toggle")); // the browser's own comes later, when these cards may have been replaced
  }
});
if (!duplicated.size) field("filter").querySelector("[value=duplicated]").remove();
opened.add(0);
wish(find);
