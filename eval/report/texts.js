// The packed texts, unpacked when they are looked at; and words compared with the words of a reference.

const packs = document.querySelectorAll("script.pack");
const unpacked = []; // promises, one a pack that was asked for

async function unpack(place) {
  const bytes = Uint8Array.from(atob(place.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const questions = await new Response(stream).json();
  return questions.map(([instruction, input, reference, answers]) => ({ instruction, input, reference, answers }));
}

/** The texts of question `number`: { instruction, input, reference, answers: a text or null for each model }. */
async function textsOf(number) {
  const pack = Math.floor(number / data.pack);
  return (await (unpacked[pack] ??= unpack(packs[pack])))[number % data.pack];
}

/** Words as they stand between spaces: 1.5 and 7% are words of a financial text, and must stay whole when shown. */
const wordsOf = (text) => text.split(/\s+/).filter(Boolean);

/** What words are compared by: neither case nor the punctuation around them. */
const keyOf = (word) => word.toLowerCase().replace(/^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$/gu, "") || word;

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
  const shared = new Set(aligned(text, reference).filter(([kind]) => kind === "same").map(([, index]) => index));
  let word = -1;
  return text.split(/(\s+)/).map((part) => {
    if (!part.trim()) return part;
    word += 1;
    return shared.has(word) ? html("mark", {}, part) : part;
  });
}

/** What must be struck out of and put into the reference to get the answer; runs of words become one element. */
function changedWords(text, reference) {
  const [ours, theirs] = [text, reference].map(wordsOf);
  const groups = [];
  for (const [kind, index] of aligned(text, reference)) {
    const word = (kind === "missing" ? theirs : ours)[index];
    if (groups.at(-1)?.kind === kind) groups.at(-1).words.push(word);
    else groups.push({ kind, words: [word] });
  }
  const tag = { added: "ins", missing: "del" };
  return groups.flatMap(({ kind, words }) => [kind === "same" ? words.join(" ") : html(tag[kind], {}, words.join(" ")), " "]);
}
