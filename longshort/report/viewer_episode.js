// Part 3 of 4: the chosen episode as a dialogue, as tokens or as a training sequence, alone or beside others of the same problem.

const MOST = 3;
const detail = byId("episode-detail");
const side = (role) => (role === "long" ? "long" : "short");
const fact = (name, ...value) => (value.every((one) => one === "" || one === null) ? null : el("div", "", el("dt", "", name), el("dd", "", ...value)));

const where = (row) => {
  const source = sources[row[SOURCE]];
  const step = row[STEP] !== null && source.kind === "training" ? `step ${row[STEP]}` : "";
  return [runName(source), sourceName(source), step].filter(Boolean).join(" · ");
};

/** Tokens, reward and advantage of each role. */
const roleTable = (body) => {
  const roles = [...new Set([...body.turns.map(([role]) => role), ...Object.keys(body.reward ?? {})])];
  const columns = [["reward", body.reward], ["advantage", body.advantages]].filter(([, values]) => values);
  const head = el("tr", "", el("th", ""), el("th", "number", "tokens"), ...columns.map(([name]) => el("th", "number", name)));
  const lines = roles.map((role) => {
    const tokens = body.turns.filter((turn) => turn[0] === role).reduce((sum, turn) => sum + turn[4], 0);
    const name = el("th", `is-${side(role)}`, role);
    name.scope = "row";
    return el("tr", "", name, el("td", "number", count(tokens)), ...columns.map(([, values]) => el("td", "number", number(values[role]))));
  });
  return el("table", "roles", el("thead", "", head), el("tbody", "", ...lines));
};

const stopTag = (stop) => (stop.startsWith("<") ? el("code", "tag", stop) : el("span", "tag ended", stop ? `ended by: ${words(stop)}` : "no end"));

const turnCard = (turn, content) => {
  const [role, , , version, tokens] = turn;
  const head = el("div", "head", el("span", `role is-${side(role)}`, role), el("span", "quiet", plural(tokens, "token")),
    version === null ? null : el("span", "quiet", `weights ${version}`));
  return el("section", `turn ${side(role)}`, head, content);
};

/** The dialogue's turns, or in the view "sequence/<role>" all that this role read and wrote. */
const content = async (at, body) => {
  if (state.view === "text") return body.turns.map((turn) => turnCard(turn, el("div", "text", turn[1], " ", stopTag(turn[2]))));
  const packed = await tokensOf(at);
  if (!packed) return [el("p", "quiet", "The tokens of this episode are left out of this page, for its size.")];
  const source = sources[rows[at][SOURCE]];
  const turns = tokensByTurn(body, packed);
  if (state.view === "tokens") {
    const vocabulary = Object.fromEntries(await Promise.all(turns.map(async ({ role }) => [role, await vocabularyOf(source, role)])));
    return turns.map(({ role, own }, i) => turnCard(body.turns[i], strip(own, vocabulary[role], `tokens of message ${i + 1}, ${role}`)));
  }
  const role = state.view.split("/")[1];
  const mine = turns.filter((turn) => turn.role === role);
  if (!mine.length) return [el("p", "quiet", `${role} says nothing in this episode.`)];
  if (mine.some(({ context }) => context === null)) return [el("p", "quiet", "This line was written before the context's ids were kept: its training sequence cannot be shown.")];
  const sequence = mine.flatMap(({ context, own }) => [...context, ...own]);
  const learned = sequence.filter((token) => token.mask).length;
  return [el("p", "quiet small-print", `${plural(sequence.length, "token")}, ${count(learned)} of them ${role}'s own (mask 1); grey is what it read (mask 0).`),
    strip(sequence, await vocabularyOf(source, role), `training sequence of ${role}`)];
};

/** One episode's column. */
const column = async (at, body, alone) => {
  const row = rows[at];
  const terms = Object.entries(body.terms ?? {}).map(([name, value]) => fact(name, number(value)));
  const close = alone || at === state.episode ? null : button("close", "×", () => toggle(at), { "aria-label": `close ${where(row)}`, title: "close" });
  const made = el("article", "episode",
    el("header", "", el("h4", "", where(row)), close),
    el("dl", "facts",
      fact("verdict", el("b", verdict(row), `${MARKS[verdict(row)]} ${TOLD[verdict(row)]}`), body.reason && ` (${words(body.reason)})`),
      fact("stop", words(stops[row[STOP]])), fact("turns", count(row[TURNS])), fact("tokens", count(row[TOKENS]))),
    roleTable(body),
    terms.length ? el("dl", "facts terms", ...terms) : null,
    ...(await content(at, body)));
  made.dataset.key = keyOf(at);
  return made;
};

// ---- other episodes of the same problem

const chip = (at) => {
  const row = rows[at];
  const name = `${where(row)}, number ${row[ORDINAL] + 1}: ${TOLD[verdict(row)]}, ${plural(row[TOKENS], "token")}`;
  const chosen = at === state.episode;
  const made = button(`chip ${verdict(row)}`, `${MARKS[verdict(row)]} ${count(row[TOKENS])}`, () => toggle(at), { "aria-label": name, title: name });
  if (chosen) made.setAttribute("aria-current", "true");
  made.setAttribute("aria-pressed", chosen || state.others.includes(at));
  made.disabled = chosen;
  return made;
};

let sameProblem = null;
/** All episodes of the chosen one's problem, as {title, step, episodes}: by source, then by step. */
const relatives = () => {
  sameProblem ??= Map.groupBy ? Map.groupBy(rows.keys(), (at) => problemId(rows[at])) : rows.reduce((map, row, at) =>
    map.set(problemId(row), [...(map.get(problemId(row)) ?? []), at]), new Map());
  const groups = new Map();
  for (const at of sameProblem.get(problemId(rows[state.episode]))) {
    const source = sources[rows[at][SOURCE]];
    const title = [runName(source), sourceName(source)].filter(Boolean).join(" · ");
    if (!groups.has(title)) groups.set(title, new Map());
    const steps = groups.get(title);
    const step = source.kind === "training" ? rows[at][STEP] : null;
    steps.set(step, [...(steps.get(step) ?? []), at]);
  }
  return groups;
};

const relativesBox = () => {
  const groups = relatives();
  const others = [...groups.values()].flatMap((steps) => [...steps.values()].flat()).length - 1;
  if (!others) return el("p", "quiet small-print", "No other episode of this problem is on this page.");
  const lines = [...groups].map(([title, steps]) => el("div", "", el("dt", "", title), el("dd", "", ...[...steps].sort(([a], [b]) => a - b).map(([step, episodes]) =>
    el("span", "of-step", step === null ? null : el("span", "quiet", `step ${step}`), ...episodes.sort((a, b) => rows[a][ORDINAL] - rows[b][ORDINAL]).map(chip))))));
  return el("div", "relatives", el("h4", "", `Compare with ${plural(others, "other episode")} of this problem`), el("dl", "", ...lines));
};

/** Show an episode beside the chosen one, or no longer; the oldest gives way to a fourth. */
const toggle = (at) => {
  state.others = state.others.includes(at) ? state.others.filter((other) => other !== at) : [...state.others, at].slice(1 - MOST);
  show();
};

// ---- the whole

const setView = (view) => {
  state.view = view;
  show();
};

const viewBar = (bodies) => {
  const roles = [...new Set(bodies.flatMap((body) => body.turns.map(([role]) => role)))].sort();
  const views = [["text", "Text"], ["tokens", "Tokens"], ...roles.map((role) => [`sequence/${role}`, `Training sequence of ${role}`])];
  const choice = el("div", "choice", ...views.map(([view, text]) => button("", text, () => setView(view), { "aria-pressed": state.view === view })));
  choice.setAttribute("role", "group");
  choice.setAttribute("aria-label", "View");
  const setScale = (scale) => {
    state.scale = scale;
    show();
  };
  return el("div", "views", choice, state.view === "text" ? null : legend(setScale));
};

/** The name of the focused control survives a redraw. */
const focusName = () => (detail.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") ?? document.activeElement.textContent : null);

let request = 0;
/** Draw the chosen episode and those beside it; of two calls the later one wins. */
const show = async () => {
  remember();
  const mine = ++request;
  if (!canUnpack) {
    detail.replaceChildren(el("p", "", "This browser cannot unpack the episodes (it has no DecompressionStream); Chrome 80, Firefox 113, Safari 16.4 and later can."));
    return;
  }
  const places = [state.episode, ...state.others];
  const bodies = await Promise.all(places.map(textOf));
  const columns = await Promise.all(places.map((at, i) => column(at, bodies[i], places.length === 1)));
  if (mine !== request) return;
  hideTip();
  const focused = focusName();
  const scrolled = detail.dataset.episode === keyOf(state.episode) ? detail.querySelector(".relatives dl")?.scrollTop : undefined;
  detail.dataset.episode = keyOf(state.episode);
  const beside = el("div", "columns", ...columns);
  beside.style.setProperty("--columns", places.length);
  detail.replaceChildren(
    el("p", "above", problemId(rows[state.episode])),
    el("h3", "", bodies[0].question || problemId(rows[state.episode])),
    el("dl", "facts", fact("gold answer", bodies[0].answer)),
    relativesBox(), viewBar(bodies), beside);
  const related = detail.querySelector(".relatives dl");
  const current = related?.querySelector("[aria-current]");
  if (related) related.scrollTop = scrolled ?? current.offsetTop - related.offsetTop - related.clientHeight / 2;
  if (focused !== null) [...detail.querySelectorAll("button")].find((one) => (one.getAttribute("aria-label") ?? one.textContent) === focused)?.focus({ preventScroll: true });
};
listenForTokens(detail);
