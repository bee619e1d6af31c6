// One screen after the other: two answers, a vote, and what is kept in the browser. Texts enter the page as text alone.
//
//   session = { judge, reference, order, votes, notes, at }   kept under the page's own key after every change
//     order   [[screen, turned], …] drawn once: screens in their order for this judge, answers left and right
//     votes   one a place of the order: { choice, seconds } or null
//     notes   one a place of the order: { marks: { first, second }, remark } or null
//
// In a saved vote `first` and `second` are the answers as they stood, left (or above) and right (or below).

const data = JSON.parse(document.getElementById("data").textContent);
const field = (id) => document.getElementById(id);
const CHOICES = [["first", "1", "Answer 1 is better"], ["second", "2", "Answer 2 is better"],
                 ["tie", "=", "Equally good"], ["neither", "0", "Both bad"]];
const MARKS = ["correct", "complete", "harmful"];
const SIDES = ["first", "second"];
const PLACE = `votes ${data.page}`;
const LONGEST = 3600; // seconds that a vote may have taken: a longer one was left alone

let session = null;
let shownAt = 0; // when the screen came up

function kept() {
  try {
    return JSON.parse(localStorage.getItem(PLACE));
  } catch {
    return null;
  }
}

function keep() {
  try {
    localStorage.setItem(PLACE, JSON.stringify(session));
  } catch {
    field("unkept").hidden = false;
  }
}

function forget() {
  session = null;
  try {
    localStorage.removeItem(PLACE);
  } catch {
    field("unkept").hidden = false;
  }
}

/** Screens in an order of chance. A pair that comes twice comes once in each half, its sides changed. */
function drawn() {
  const pairOf = ([question, ...keys]) => [question, ...keys.sort()].join(" ");
  const pairs = data.screens.map((screen) => pairOf([...screen]));
  const isAgain = pairs.map((pair, number) => pairs.indexOf(pair) < number);
  const again = new Set(pairs.filter((_, number) => isAgain[number]));
  const turned = new Map(pairs.map((pair) => [pair, Math.random() < 0.5]));
  const numbers = [...pairs.keys()];
  const early = numbers.filter((number) => again.has(pairs[number]) && !isAgain[number]);
  const others = shuffled(numbers.filter((number) => !again.has(pairs[number])));
  const room = Math.max(0, Math.ceil(numbers.length / 2) - early.length);
  const late = [...others.slice(room), ...numbers.filter((number) => isAgain[number])];
  return [...shuffled([...early, ...others.slice(0, room)]), ...shuffled(late)].map((number) => [number, turned.get(pairs[number])]);
}

function shuffled(items) {
  const found = [...items];
  for (let place = found.length - 1; place > 0; place -= 1) {
    const other = Math.floor(Math.random() * (place + 1));
    [found[place], found[other]] = [found[other], found[place]];
  }
  return found;
}

const done = () => session.votes.filter(Boolean).length;
const firstOpen = () => session.votes.findIndex((vote) => vote === null);

/** What stands at a place of the order: the question's texts, and the keys of the answers from left to right. */
function at(place) {
  const [number, turned] = session.order[place];
  const [question, ...keys] = data.screens[number];
  return { question, keys: turned ? keys.reverse() : keys };
}

function show(id) {
  for (const name of ["start", "judging", "end"]) field(name).hidden = name !== id;
}

function fill(element, text) {
  element.textContent = text;
  element.hidden = !text;
}

function render() {
  if (session.at >= session.order.length) {
    finish();
    return;
  }
  show("judging");
  const { question, keys } = at(session.at);
  const [asked, input, reference, turns] = data.questions[question];
  const vote = session.votes[session.at];
  field("question").textContent = asked;
  fill(field("input"), input);
  field("turns").hidden = !turns.length;
  field("turns").replaceChildren(...turns.map(([role, text]) => {
    const item = document.createElement("li");
    item.textContent = `${role}: ${text}`;
    return item;
  }));
  field("reference").hidden = !session.reference;
  field("reference").querySelector(".text").textContent = session.reference ? reference : "";
  const { marks, remark } = notesAt(session.at);
  SIDES.forEach((side, index) => {
    const text = field(`answer-${side}`).querySelector(".text");
    text.textContent = data.texts[keys[index]].trim() || "(no text)";
    for (const box of field(`answer-${side}`).querySelectorAll("input")) box.checked = marks[side].includes(box.value);
  });
  field("remark").value = remark;
  for (const button of document.querySelectorAll(".votes button")) {
    button.setAttribute("aria-pressed", String(vote?.choice === button.dataset.choice));
  }
  field("status").textContent = `Question ${session.at + 1} of ${session.order.length}, ${done()} voted on`;
  field("progress").value = done();
  field("back").disabled = session.at === 0;
  field("forth").disabled = vote === null;
  field("undo").disabled = done() === 0;
  shownAt = Date.now();
  window.scrollTo(0, 0);
  field("question").focus({ preventScroll: true });
}

/** Text that any program can write as UTF-8: no half of a surrogate pair. */
const wellFormed = (text) => text.replace(/[\uD800-\uDBFF](?![\uDC00-\uDFFF])|(?<![\uD800-\uDBFF])[\uDC00-\uDFFF]/g, "\uFFFD");

const notesAt = (place) => session.notes[place] ?? { marks: { first: [], second: [] }, remark: "" };

/** What is marked and remarked is kept as it is written, vote or no vote. */
function takeNotes() {
  const marked = (side) => [...field(`answer-${side}`).querySelectorAll("input:checked")].map((box) => box.value);
  const marks = { first: marked("first"), second: marked("second") };
  session.notes[session.at] = { marks, remark: wellFormed(field("remark").value.trim()) };
  keep();
}

function cast(choice) {
  const before = session.votes[session.at];
  const seconds = before?.seconds ?? Math.min(LONGEST, Math.max(0, Math.round((Date.now() - shownAt) / 1000)));
  session.votes[session.at] = { choice, seconds };
  session.last = session.at;
  go(before ? session.at + 1 : firstOpen() === -1 ? session.order.length : firstOpen());
}

function go(place) {
  session.at = place;
  keep();
  render();
}

function back() {
  if (session.at > 0) go(session.at - 1);
}

function forth() {
  if (session.at < session.order.length && session.votes[session.at]) go(session.at + 1);
}

/** Takes the vote back that was cast last, and shows its screen. */
function undo() {
  if (!done()) return;
  const voted = session.votes.map((vote, place) => (vote ? place : -1)).filter((place) => place >= 0);
  const place = voted.includes(session.last) ? session.last : voted.at(-1);
  session.votes[place] = null;
  session.last = null;
  go(place);
}

function finish() {
  show("end");
  field("summary").textContent = `${done()} of ${session.order.length} votes are cast. Save them and send the file ${fileName()} back.`;
  saySaved("");
  field("end").querySelector("h1").focus({ preventScroll: true });
}

function start() {
  show("start");
  saySaved("");
  const held = kept();
  if (held?.order?.length === data.screens.length) session = held; // else what this page itself knows, if anything
  field("begin").hidden = Boolean(session);
  field("resume").hidden = !session;
  if (session) {
    field("resume-text").textContent = `${session.judge}, ${done()} of ${session.order.length} votes are cast.`;
    field("save-now").disabled = !done();
  }
}

function fileName() {
  return `votes-${session.judge.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "") || "judge"}.json`;
}

/** CRC-32 of a text in UTF-8, eight hex digits. */
function checksum(text) {
  let sum = 0xffffffff;
  for (const byte of new TextEncoder().encode(text)) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit += 1) sum = (sum >>> 1) ^ (sum & 1 ? 0xedb88320 : 0);
  }
  return ((sum ^ 0xffffffff) >>> 0).toString(16).padStart(8, "0");
}

function saySaved(text) {
  for (const place of document.querySelectorAll(".saved")) fill(place, text);
}

function save() {
  const votes = session.order.flatMap((_, place) => {
    const vote = session.votes[place];
    const { question, keys } = at(place);
    return vote ? [{ question, first: keys[0], second: keys[1], ...vote, ...notesAt(place) }] : [];
  });
  const content = { judge: session.judge, page: data.page, screens: data.screens.length, reference_shown: session.reference, votes };
  const text = JSON.stringify({ schema_version: 1, kind: "votes", content, checksum: checksum(JSON.stringify(content)) }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([`${text}\n`], { type: "application/json" }));
  link.download = fileName();
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  saySaved(`Saved as ${fileName()}, where your browser keeps downloads.`);
}

for (const [choice, key, label] of CHOICES) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.choice = choice;
  button.setAttribute("aria-keyshortcuts", key);
  const hint = document.createElement("kbd");
  hint.textContent = key;
  hint.setAttribute("aria-hidden", "true");
  button.append(label, " ", hint);
  button.addEventListener("click", () => cast(choice));
  document.querySelector(".votes").append(button);
}
for (const side of SIDES) {
  for (const mark of MARKS) {
    const label = document.createElement("label");
    const box = document.createElement("input");
    Object.assign(box, { type: "checkbox", value: mark });
    label.className = "check";
    label.append(box, ` ${mark}`);
    field(`answer-${side}`).querySelector("fieldset").append(label);
  }
}

field("judging").addEventListener("input", takeNotes);
field("begin").addEventListener("submit", (event) => {
  event.preventDefault();
  const judge = wellFormed(field("judge").value.trim());
  if (!judge) return;
  const order = drawn();
  const nothing = () => order.map(() => null);
  session = { judge, reference: field("show-reference").checked, order, votes: nothing(), notes: nothing(), at: 0, last: null };
  keep();
  render();
});
field("go-on").addEventListener("click", () => {
  const open = firstOpen();
  go(open === -1 ? session.order.length : open);
});
field("start-over").addEventListener("click", () => {
  if (!confirm(`Throw ${done()} votes away and start anew?`)) return;
  forget();
  start();
  field("judge").focus();
});
field("pause").addEventListener("click", () => {
  keep();
  start();
  field("go-on").focus();
});
field("save-now").addEventListener("click", save);
field("save").addEventListener("click", save);
field("look-again").addEventListener("click", () => go(0));
field("back").addEventListener("click", back);
field("forth").addEventListener("click", forth);
field("undo").addEventListener("click", undo);

document.addEventListener("keydown", (event) => {
  if (field("judging").hidden && field("end").hidden) return;
  const writes = event.target.closest("textarea, input:not([type=checkbox])");
  if (writes) {
    if (event.key === "Escape") field("question").focus();
    return;
  }
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
    event.preventDefault();
    undo();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const choice = CHOICES.find(([, key]) => key === event.key);
  if (choice && !field("judging").hidden) cast(choice[0]);
  else if (event.key === "ArrowLeft") field("end").hidden ? back() : go(session.order.length - 1);
  else if (event.key === "ArrowRight" && field("end").hidden) forth();
  else if (event.key.toLowerCase() === "u") undo();
  else return;
  event.preventDefault();
});

if (!kept()) forget(); // which tells whether the browser keeps anything
start();
