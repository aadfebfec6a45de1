// A report's episodes: a line in the list, and the chosen dialogue as text or as tokens coloured by probability or gap.
const VIEWS = { text: "Text", probability: "Tokens by probability", gap: "Tokens by engine–learner gap" };
const LEGENDS = {
  text: "",
  probability: "The darker, the less probable the engine thought the token.",
  gap: "Learner's minus engine's log-prob: green below, pink above; hatched where nothing was trained.",
};
/** Upper ends of the colour levels: probability from 1 down, gap from 0 up. */
const PROBABILITIES = [0.98, 0.9, 0.75, 0.5, 0.25, 0.1, 0.03, 0.01];
const GAPS = [0.005, 0.02, 0.1, 0.5];
const MARKS = { right: "✓", wrong: "✗", "not graded": "·" };
let view = "text";

const minus = (text) => text.replace("-", "−");
const number = (value, digits = 3) => (typeof value === "number" ? minus(String(Number(value.toFixed(digits)))) : "–");

const summary = (entry) => [
  el("b", entry.verdict, MARKS[entry.verdict]),
  el("span", "", typeof entry.step === "number" ? `step ${entry.step}` : entry.source),
  el("span", "", `${count(entry.tokens)} tok`),
  typeof entry.reward === "number" && el("span", "", `r ${number(entry.reward, 2)}`),
];

const SHOWN_AS = { "\n": "↵", "\r": "␍", "\t": "⇥" };
/** Control characters, separators, and all that reorders text or takes no width, made visible. */
const visible = (text) => text.replace(/[\u0000-\u001f\u007f-\u00a0\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, (character) =>
  SHOWN_AS[character] ?? `⟨U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);

const level = (logprob, gap) => {
  const value = view === "gap" ? gap : logprob;
  if (typeof value !== "number") return "unknown";
  if (view === "probability") return `p${PROBABILITIES.filter((bound) => Math.exp(value) < bound).length}`;
  const size = GAPS.filter((bound) => Math.abs(value) >= bound).length;
  return size ? `${value < 0 ? "below" : "above"}${size}` : "p0";
};

/** A turn's tokens as coloured spans; the one under the pointer, or tapped, is described below them. */
const tokenStrip = ([texts, logprobs, gaps], advantage) => {
  const card = el("p", "token-card quiet", "Point at a token for its numbers.");
  const spans = texts.map((text, at) =>
    el("span", `token ${level(logprobs[at], gaps[at])}`, visible(text).replaceAll("↵", "↵\n") || "∅"));
  const strip = el("div", "tokens", ...spans);
  const describe = (event) => {
    const at = spans.indexOf(event.target);
    if (at < 0) return;
    const logprob = logprobs[at];
    const probability = typeof logprob === "number" ? ` · probability ${number(Math.exp(logprob), 4)}` : "";
    card.replaceChildren(el("bdi", "", visible(texts[at]).replaceAll(" ", "␣")),
      ` log-prob ${number(logprob, 4)}${probability} · gap ${number(gaps[at], 4)} · advantage ${number(advantage)}`);
  };
  strip.addEventListener("pointerover", describe);
  strip.addEventListener("click", describe);
  return [strip, card];
};

const stopTag = (stop) => (stop.startsWith("<") ? el("code", "tag", stop) : el("span", "tag", stop ? `ended by: ${words(stop)}` : "no end"));

const turnCard = (item, at) => {
  const [role, text, stop, version, tokens] = item.turns[at];
  const head = el("div", "head", el("span", `role is-${side(role)}`, role), el("span", "quiet", plural(tokens, "token")), el("span", "quiet", `weights ${version}`));
  const body = view === "text" ? [el("div", "text", text, " ", stopTag(stop))]
    : item.tokens ? tokenStrip(item.tokens[at], item.advantage?.[role]) : [el("p", "quiet", "The tokens of this episode are not on this page, for its size.")];
  return el("section", `turn ${side(role)}`, head, ...body);
};

const build = (entry, item) => {
  const perRole = (values) => values && Object.entries(values).map(([role, value]) => `${role} ${number(value)}`).join(", ");
  const choices = Object.entries(VIEWS).map(([name, text]) => button("", text, () => {
    view = name;
    choose(chosen, false);
  }, { "aria-pressed": view === name }));
  return [
    el("p", "above", item.where),
    el("h3", "", item.question || entry.id),
    el("dl", "facts", fact("problem", entry.id), fact("gold answer", item.answer),
      fact("verdict", el("b", entry.verdict, `${MARKS[entry.verdict]} ${entry.verdict}${item.reason ? ` (${words(item.reason)})` : ""}`)),
      fact("stop", words(entry.stop)), fact("reward", perRole(item.reward)), fact("advantage", perRole(item.advantage)),
      ...Object.entries(item.terms ?? {}).map(([name, value]) => fact(words(name), number(value)))),
    el("div", "views", ...choices, el("span", "quiet", LEGENDS[view])),
    ...item.turns.map((_, at) => turnCard(item, at)),
  ];
};
