// The viewer of episodes, part 1 of 4: the index, packed blocks, and the state that the address keeps.
const index = JSON.parse(byId("episode-index").textContent);
const { rows, runs, sources, problems, stops } = index;
const [SOURCE, STEP, PROBLEM, ORDINAL, STOP, RIGHT, TURNS, TOKENS, REWARD] = [0, 1, 2, 3, 4, 5, 6, 7, 8];

const minus = (text) => text.replace("-", "−");
/** A number with a true minus sign and at most `digits` decimals; "–" for none. */
const number = (value, digits = 3) => (typeof value === "number" ? minus(String(Number(value.toFixed(digits)))) : "–");

/** What a source is called, without its run. */
const sourceName = (source) =>
  source.kind === "training" ? "training" : [source.evaluation, source.system, source.benchmark, source.decoding].filter(Boolean).join(" · ");
const runName = (source) => (runs.length > 1 ? runs[source.run] : "");
const problemId = (row) => problems[row[PROBLEM]][0];
const verdict = (row) => (row[RIGHT] === null ? "none" : row[RIGHT] ? "right" : "wrong");
const MARKS = { right: "✓", wrong: "✗", none: "·" };
const TOLD = { right: "right", wrong: "wrong", none: "not graded" };

// ---- packed blocks

const canUnpack = typeof DecompressionStream === "function";
const unpacked = new Map();

const unpack = async (id) => {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
};

/** A block's content, unpacked once. */
const block = (kind, at) => {
  const id = `episode-${kind}-${at}`;
  if (!unpacked.has(id)) unpacked.set(id, unpack(id));
  return unpacked.get(id);
};

const inBlock = async (kind, at) => (await block(kind, Math.floor(at / index.block)))[at % index.block];
const textOf = (at) => inBlock("texts", at);
const tokensOf = (at) => (at < index.tokens ? inBlock("tokens", at) : null);

const vocabularies = new Map();
/** id -> [text, whether it is a control token], or null where no tokenizer was found. */
const vocabularyOf = async (source, role) => {
  if (!Object.hasOwn(source.vocabularies, role)) return null;
  const at = source.vocabularies[role];
  if (!vocabularies.has(at)) {
    const { ids, texts, special } = await block("vocabulary", at);
    const control = new Set(special);
    vocabularies.set(at, new Map(ids.map((id, i) => [id, [texts[i], control.has(id)]])));
  }
  return vocabularies.get(at);
};

// ---- the state in the address: #episodes?q=…&episode=…

const state = { episode: -1, others: [], view: "text", scale: "probability" };
const ADDRESS = "#episodes?";

/** The same episode has the same key on a page that is made again with more episodes. */
const keyOf = (at) => {
  const row = rows[at];
  const source = sources[row[SOURCE]];
  return [runs[source.run], sourceName(source), row[STEP] ?? "", problemId(row), row[ORDINAL]].join("|");
};
let keys = null;
const byKey = (key) => {
  keys ??= new Map(rows.map((_, at) => [keyOf(at), at]));
  return keys.get(key);
};

let dirty = 0;
const writeAddress = () => {
  if (!dirty) return;
  clearTimeout(dirty);
  dirty = 0;
  const told = new URLSearchParams([...new FormData(byId("episode-filters"))].filter(([, value]) => value !== ""));
  if (state.episode >= 0) told.set("episode", keyOf(state.episode));
  for (const at of state.others) told.append("beside", keyOf(at));
  if (state.view !== "text") told.set("view", state.view);
  if (state.scale !== "probability") told.set("scale", state.scale);
  history.replaceState(null, "", ADDRESS + told);
};
/** Soon, not at once: browsers limit how often an address may change. */
const remember = () => {
  clearTimeout(dirty);
  dirty = setTimeout(writeAddress, 150);
};
addEventListener("pagehide", writeAddress);
