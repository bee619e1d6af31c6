// The packed texts, unpacked when they are looked at; and words compared with the words of a reference.

const packs = document.querySelectorAll("script.pack");
const unpacked = []; // promises, one a pack that was asked for

async function unpack(place) {
  const bytes = Uint8Array.from(atob(place.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const questions = await new Response(stream).json();
  return questions.map(([instruction, input, reference, answers, turns]) => ({ instruction, input, reference, answers, turns }));
}

/** The texts of question `number`: { instruction, input, reference, answers: a text or null for each model,
 *  turns: [role, text] of what stands before the question }. */
async function textsOf(number) {
  const pack = Math.floor(number / data.pack);
  return (await (unpacked[pack] ??= unpack(packs[pack])))[number % data.pack];
}

const MOST_SHOWN = 20000; // characters of a text: a browser lays out a megabyte without a blank for minutes
const MOST_COMPARED = 1500; // words of two texts that are held against each other

/** A text's beginning, and how much of it is left out, as children of an element. */
function beginning(text) {
  if (text.length <= MOST_SHOWN) return [text];
  const end = /[\uD800-\uDBFF]/.test(text[MOST_SHOWN - 1]) ? MOST_SHOWN - 1 : MOST_SHOWN;
  const left = (text.length - end).toLocaleString("en");
  return [text.slice(0, end), html("span", { class: "cut" }, ` … ${left} more characters, which eval/predictions.jsonl holds`)];
}

/** Words as they stand between spaces: 1.5 and 7% are words of a financial text, and must stay whole when shown. Where
 *  a script has no spaces each character is one (finllm/text/words.py). */
const ALONE = ["Han", "Hira", "Kana", "Bopo", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"].map((script) => `\\p{scx=${script}}`).join("");
const PIECE = new RegExp(`[${ALONE}]\\p{M}*|[^\\s${ALONE}]+`, "gu");
const STANDS_ALONE = new RegExp(`^[${ALONE}]`, "u");
const wordsOf = (text) => (text.match(PIECE) ?? []).slice(0, MOST_COMPARED);

/** Words with a space between them, but not between two characters of a script without spaces. */
const joined = (words) =>
  words.map((word, index) => (index && !(STANDS_ALONE.test(word) && STANDS_ALONE.test(words[index - 1])) ? ` ${word}` : word)).join("");

/** What words are compared by: neither case nor the punctuation around them. */
const keyOf = (word) => (word.length > 100 ? word : word.toLowerCase().replace(/^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$/gu, "") || word);

/** What stands below words that were compared: nothing, or that only their beginning was. */
function compared(...texts) {
  const long = texts.some((text) => text.length > MOST_SHOWN || (text.match(PIECE) ?? []).length > MOST_COMPARED);
  return long ? [html("span", { class: "cut" }, ` … only the first ${MOST_COMPARED.toLocaleString("en")} words are compared`)] : [];
}

/** The words of both texts in one order, as ["same" | "added" | "missing", index in its text]: their longest
 *  common subsequence is "same". */
function aligned(text, reference) {
  const [ours, theirs] = [text, reference].map((each) => wordsOf(each).map(keyOf));
  const table = Array.from({ length: ours.length + 1 }, () => new Uint16Array(theirs.length + 1));
  for (let i = ours.length - 1; i >= 0; i -= 1) {
    for (let j = theirs.length - 1; j >= 0; j -= 1) {
      table[i][j] = ours[i] === theirs[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
    }
  }
  const steps = [];
  let [i, j] = [0, 0];
  while (i < ours.length || j < theirs.length) {
    if (i < ours.length && j < theirs.length && ours[i] === theirs[j]) {
      steps.push(["same", i]);
      i += 1;
      j += 1;
    } else if (j === theirs.length || (i < ours.length && table[i + 1][j] >= table[i][j + 1])) {
      steps.push(["added", i]);
      i += 1;
    } else {
      steps.push(["missing", j]);
      j += 1;
    }
  }
  return steps;
}

/** `text` with the words that the reference has in the same order marked. */
function sharedWords(text, reference) {
  const [ours, theirs] = [text, reference].map((each) => each.slice(0, MOST_SHOWN));
  const shared = new Set(aligned(ours, theirs).filter(([kind]) => kind === "same").map(([, index]) => index));
  const parts = [];
  let end = 0;
  [...ours.matchAll(PIECE)].forEach((found, word) => {
    if (!shared.has(word)) return;
    parts.push(ours.slice(end, found.index), html("mark", {}, found[0]));
    end = found.index + found[0].length;
  });
  return [...parts, ours.slice(end), ...compared(text, reference)];
}

/** What must be struck out of and put into the reference to get the answer; runs of words become one element. */
function changedWords(text, reference) {
  const [our, their] = [text, reference].map((each) => each.slice(0, MOST_SHOWN));
  const [ours, theirs] = [our, their].map(wordsOf);
  const groups = [];
  for (const [kind, index] of aligned(our, their)) {
    const word = (kind === "missing" ? theirs : ours)[index];
    if (groups.at(-1)?.kind === kind) groups.at(-1).words.push(word);
    else groups.push({ kind, words: [word] });
  }
  const tag = { added: "ins", missing: "del" };
  const shown = groups.flatMap(({ kind, words }) => [kind === "same" ? joined(words) : html(tag[kind], {}, joined(words)), " "]);
  return [...shown, ...compared(text, reference)];
}
