// A cold start's traces: a line in the list, and the chosen trace's thoughts beside the dialogue that they became.
const fixed = (value, digits) => value.toFixed(digits).replace("-", "−");
const sum = (numbers) => numbers.reduce((total, n) => total + n, 0);

const summary = (entry) => [
  entry.thoughts ? el("span", "", plural(entry.thoughts, "thought")) : null,
  entry.share === null ? null : el("span", "", `long ${Math.round(entry.share)} %`),
  entry.dropped && el("b", "wrong", words(entry.outcome)),
];

const thoughtCard = ({ chunk, rollouts = {}, importance = {}, partition = {} }, at) => {
  const thought = chunk.thoughts[at];
  const long = partition.long?.[at];
  const role = long === undefined ? "" : long ? "long" : "short";
  const score = importance.scores?.[at];
  const tokens = (importance.tokens ?? rollouts.tokens)?.[at];
  const facts = [
    fact("tokens", tokens !== undefined && count(tokens)),
    fact("right", !score && rollouts.correct && `${rollouts.correct[at + 1]} of ${rollouts.n}`),
    ...(score ? [fact("M", fixed(score.m, 3)), fact("δ", String(score.delta)), fact("P", `${fixed(score.p, 2)} in ${fixed(score.low, 2)}–${fixed(score.high, 2)}`),
      fact("bound", `±${fixed(score.bound, 2)}`), fact("rollouts", importance.n?.[at + 1] ?? null)] : []),
  ];
  return el("section", `thought ${role}`,
    el("div", "head", el("span", "quiet", `${at + 1} `), el("b", "", thought.kind), " ", role && el("span", `role is-${role}`, role)),
    el("dl", "facts", ...facts), el("div", "text", thought.text.trim()));
};

const messageCard = ([role, text, tag], unchanged) => el("section", `turn ${side(role)}`,
  el("div", "head", el("span", `role is-${side(role)}`, role), el("span", "quiet", unchanged ? "as it was" : "rewritten")),
  el("div", "text", text, " ", el("code", "tag", tag)));

/** Thoughts on the left, beside each group of them the message that it became. */
const body = (item) => {
  const { thoughts = [] } = item.chunk ?? {};
  const dialogue = item.rewrite?.dialogue ?? [];
  const groups = item.partition?.messages ?? [["", thoughts.map((_, at) => at)]];
  const pairs = Array.from({ length: Math.max(groups.length, dialogue.length) }, (_, i) => {
    const places = (groups[i]?.[1] ?? []).filter((at) => thoughts[at]);
    const joined = places.map((at) => thoughts[at].text).join("").trim();
    const left = places.length ? places.map((at) => thoughtCard(item, at)) : [el("p", "quiet", "No thought: a closing answer was written.")];
    return [el("div", "", ...left), el("div", "", dialogue[i] && messageCard(dialogue[i], joined === dialogue[i][1]))];
  });
  return thoughts.length ? el("div", "both", ...pairs.flat()) : el("p", "quiet", "There are no thoughts to show.");
};

const build = (entry, item) => {
  const { chunk = {}, importance = {}, rollouts = {}, rewrite = {} } = item;
  const tokens = importance.tokens ?? rollouts.tokens;
  const details = Object.values(item).map((step) => step.detail).filter(Boolean);
  return [
    el("p", "above", entry.id),
    el("h3", "", chunk.problem?.question || entry.id),
    el("dl", "facts", fact("gold answer", chunk.problem?.answer), fact("outcome", words(entry.outcome)), fact("tokens", tokens && count(sum(tokens))),
      fact("long share", entry.share === null ? null : `${entry.share} %`), fact("P before any thought", importance.scores && fixed(importance.p0 ?? 0, 2)),
      fact("cut by", chunk.splitter && [chunk.splitter, chunk.why].filter(Boolean).join(": ")), fact("rewriter's tries", rewrite.tries > 1 && String(rewrite.tries)),
      fact("notes", (chunk.notes ?? []).map(words).join(", "))),
    entry.dropped ? el("p", "dropped", [`Dropped at ${words(entry.outcome)}.`, ...details].join(" ")) : details.length ? el("p", "quiet", details.join(" ")) : null,
    body(item),
  ];
};
