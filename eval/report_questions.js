// Every question with the models' answers side by side: search, filters, pages. Only the page in view is built.

const PAGE = 10;
const COLUMNS = 5; // answers side by side at most
const SHOWN_AT_FIRST = 6; // with more models than this, the best and a base model; the others wait for their check box
const [TEXT, BITS, ROUGE, STOPPED] = [0, 1, 2, 3]; // the parts of an answer

const firstBase = data.models.findIndex((model) => model.method === "base");
const firstShown = data.models.map((_, index) => index).slice(0, SHOWN_AT_FIRST);
if (firstBase >= SHOWN_AT_FIRST) firstShown[SHOWN_AT_FIRST - 1] = firstBase;
const shownModels = new Set(firstShown);
const haystacks = []; // lower-case text of a question, made when it is first searched
let found = [];
let start = 0;

const field = (id) => document.getElementById(id);
const answersShown = (question) => [...shownModels].sort((a, b) => a - b).map((index) => question.answers[index]);

function haystack(number) {
  const question = data.questions[number];
  const texts = () => [question.instruction, question.input, question.reference, ...question.answers.map((answer) => answer[TEXT] ?? "")];
  return (haystacks[number] ??= texts().join("\n").toLowerCase());
}

function spread(question) {
  const bits = answersShown(question).map((answer) => answer[BITS]);
  return Math.max(...bits) - Math.min(...bits);
}

function find() {
  const words = field("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const filter = field("filter").value;
  found = data.questions.map((_, number) => number).filter((number) => words.every((word) => haystack(number).includes(word)));
  if (filter === "written") found = found.filter((number) => answersShown(data.questions[number]).some((answer) => answer[TEXT] !== null));
  if (filter === "cut") found = found.filter((number) => answersShown(data.questions[number]).some((answer) => answer[STOPPED] === false));
  if (filter === "differ") {
    const spreads = new Map(found.map((number) => [number, spread(data.questions[number])]));
    found.sort((a, b) => spreads.get(b) - spreads.get(a));
  }
  start = 0;
  render();
}

/** Positions of the words of `text` in the longest common subsequence with `reference`, as ROUGE-L counts it. */
function sharedWords(text, reference) {
  const [ours, theirs] = [text, reference].map((each) => each.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []);
  const table = Array.from({ length: ours.length + 1 }, () => new Uint16Array(theirs.length + 1));
  for (let i = ours.length - 1; i >= 0; i -= 1) {
    for (let j = theirs.length - 1; j >= 0; j -= 1) {
      table[i][j] = ours[i] === theirs[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
    }
  }
  const shared = new Set();
  for (let i = 0, j = 0; i < ours.length && j < theirs.length; ) {
    if (ours[i] === theirs[j]) {
      shared.add(i);
      i += 1;
      j += 1;
    } else if (table[i + 1][j] >= table[i][j + 1]) i += 1;
    else j += 1;
  }
  return shared;
}

function answerText(text, reference) {
  if (text === null) return html("p", { class: "text none" }, "not generated");
  if (text === "") return html("p", { class: "text none" }, "an empty answer");
  if (!field("shared").checked) return html("p", { class: "text" }, text);
  const shared = sharedWords(text, reference);
  let word = -1;
  const parts = text.split(/([\p{L}\p{N}]+)/u).map((part, index) => {
    if (index % 2 === 0) return part;
    word += 1;
    return shared.has(word) ? html("mark", {}, part) : part;
  });
  return html("p", { class: "text" }, ...parts);
}

function answerCard(model, answer, reference, lowest) {
  const bits = answer[BITS].toFixed(3);
  return html(
    "div", { class: `answer ${model.colour}` },
    html("h4", {}, swatch(model), model.name),
    html("div", { class: "badges" },
      html("span", {}, html("b", answer[BITS] === lowest ? { class: "low" } : {}, bits), " bits/byte"),
      answer[ROUGE] === null ? null : html("span", {}, "ROUGE-L ", html("b", {}, answer[ROUGE].toFixed(2))),
      answer[STOPPED] === false ? html("span", { class: "cut" }, `cut at ${model.limit} tokens`) : null),
    answerText(answer[TEXT], reference),
  );
}

function questionCard(number) {
  const question = data.questions[number];
  const lowest = Math.min(...answersShown(question).map((answer) => answer[BITS]));
  const shown = Math.max(1, shownModels.size);
  const answers = html("div", { class: "answers" }, ...data.models.flatMap((model, index) =>
    shownModels.has(index) ? [answerCard(model, question.answers[index], question.reference, lowest)] : []));
  answers.style.setProperty("--columns", Math.ceil(shown / Math.ceil(shown / COLUMNS)));
  return html(
    "article", { "aria-label": `Question ${number + 1}` },
    html("div", { class: "question" }, html("span", { class: "rank" }, String(number + 1)),
      html("div", {}, html("h3", {}, question.instruction), question.input ? html("p", {}, question.input) : null)),
    html("div", { class: "reference" }, html("p", { class: "label" }, "Reference"), html("p", { class: "text" }, question.reference)),
    answers,
  );
}

function turnButton(label, to) {
  const button = html("button", { type: "button" }, label);
  button.disabled = to < 0 || to >= found.length;
  button.addEventListener("click", () => {
    start = to;
    render();
    field("tools").scrollIntoView();
    field("status").focus({ preventScroll: true });
  });
  return button;
}

function render() {
  const end = Math.min(start + PAGE, found.length);
  const among = found.length === data.questions.length ? "" : ` found among ${data.questions.length}`;
  field("status").textContent = found.length ? `Questions ${start + 1} to ${end} of ${found.length}${among}` : "No question fits.";
  field("questions").replaceChildren(...found.slice(start, end).map(questionCard));
  for (const place of document.querySelectorAll(".turn")) {
    place.replaceChildren(turnButton("← Previous", start - PAGE), turnButton("Next →", start + PAGE));
  }
}

data.models.forEach((model, index) => {
  const box = html("input", { type: "checkbox" });
  box.checked = shownModels.has(index);
  box.addEventListener("change", () => {
    if (box.checked) shownModels.add(index);
    else shownModels.delete(index);
    find();
  });
  field("models").append(html("label", {}, box, swatch(model), model.name));
});

let waiting;
field("search").addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(find, 150);
});
field("filter").addEventListener("change", find);
field("shared").addEventListener("change", render);
field("tools").addEventListener("submit", (event) => event.preventDefault());
find();
