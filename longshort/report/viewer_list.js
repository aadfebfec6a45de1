// Part 4 of 4: the filters, the list of which only the visible rows are in the document, and the beginning.

const ROW = 54;
const SPARE = 4;
const form = byId("episode-filters");
const list = byId("episode-list");
const holder = list.firstElementChild;
let found = rows.map((_, at) => at);

// ---- the list

const option = (place) => {
  const at = found[place];
  const row = rows[at];
  const source = sources[row[SOURCE]];
  const mark = el("b", verdict(row), MARKS[verdict(row)]);
  mark.setAttribute("role", "img");
  mark.setAttribute("aria-label", TOLD[verdict(row)]);
  const made = el("div", "option",
    el("span", "question", problems[row[PROBLEM]][1] || problemId(row)),
    el("span", "line", mark, el("span", "", source.kind === "training" ? `step ${row[STEP]}` : source.system || source.evaluation),
      el("span", "", `${count(row[TOKENS])} tok`), row[REWARD] === null ? null : el("span", "", `r ${number(row[REWARD], 2)}`),
      el("span", "last", runName(source) || (source.kind === "training" ? "" : source.decoding))));
  made.id = `episode-option-${place}`;
  made.dataset.at = at;
  made.style.top = `${place * ROW}px`;
  for (const [name, value] of Object.entries({ role: "option", "aria-selected": at === state.episode, "aria-posinset": place + 1, "aria-setsize": found.length }))
    made.setAttribute(name, value);
  return made;
};

/** Put the visible rows, and a few around them, in place. */
const paint = () => {
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
  const last = Math.min(found.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
  holder.style.height = `${found.length * ROW}px`;
  holder.replaceChildren(...Array.from({ length: Math.max(0, last - first) }, (_, i) => option(first + i)));
  const chosen = found.indexOf(state.episode);
  if (chosen >= first && chosen < last) list.setAttribute("aria-activedescendant", `episode-option-${chosen}`);
  else list.removeAttribute("aria-activedescendant");
};
let painting = 0;
const paintSoon = () => {
  painting ||= requestAnimationFrame(() => {
    painting = 0;
    paint();
  });
};
list.addEventListener("scroll", paintSoon, { passive: true });
new ResizeObserver(paintSoon).observe(list);

/** Scroll the list, and only the list, until the row is in sight. */
const reveal = (place) => {
  const top = place * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
};

const choose = (place) => {
  if (found[place] === undefined) return;
  state.episode = found[place];
  state.others = [];
  reveal(place);
  paint();
  show();
};

list.addEventListener("click", (event) => {
  const chosen = event.target.closest(".option");
  if (!chosen) return;
  choose(found.indexOf(Number(chosen.dataset.at)));
  const { top } = detail.getBoundingClientRect();
  if (top > innerHeight / 2 || top < 0) detail.scrollIntoView({ block: "start" });
});
list.addEventListener("keydown", (event) => {
  const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
  const at = found.indexOf(state.episode);
  const steps = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: found.length - 1 };
  if (!(event.key in steps)) return;
  event.preventDefault();
  choose(Math.max(0, Math.min(found.length - 1, steps[event.key])));
});

// ---- the filters

/** Every choice of a select, with how many episodes it has. */
const fill = (select, choices) => {
  for (const [group, options] of choices) {
    const holder = group ? el("optgroup", "") : select;
    if (group) holder.label = group;
    for (const [value, text, n] of options) {
      const made = el("option", "", `${text} (${count(n)})`);
      made.value = value;
      holder.append(made);
    }
    if (group) select.append(holder);
  }
};

const tally = (nameOf) => rows.reduce((counts, row) => {
  const name = nameOf(row);
  return name === null ? counts : counts.set(name, (counts.get(name) ?? 0) + 1);
}, new Map());

const fillSelects = () => {
  const plain = (counts, told = (name) => name) => [["", [...counts].map(([name, n]) => [name, told(name), n])]];
  fill(form.elements.run, plain(tally((row) => runs[sources[row[SOURCE]].run])));
  fill(form.elements.stop, plain(tally((row) => stops[row[STOP]]), words));
  fill(form.elements.source, plain(tally((row) => sources[row[SOURCE]].kind)));
  const evaluations = tally((row) => (sources[row[SOURCE]].kind === "training" ? null : sourceName(sources[row[SOURCE]])));
  const groups = new Map();
  for (const [name, n] of evaluations) {
    const [evaluation, ...rest] = name.split(" · ");
    groups.set(evaluation, [...(groups.get(evaluation) ?? []), [name, rest.join(" · ") || evaluation, n]]);
  }
  fill(form.elements.source, [...groups].map(([evaluation, options]) => [`evaluation ${evaluation}`, options]));
};

const within = (value, wanted, name) =>
  (!wanted[`${name}-from`] || (value !== null && value >= Number(wanted[`${name}-from`])))
  && (!wanted[`${name}-to`] || (value !== null && value <= Number(wanted[`${name}-to`])));

const fits = (row, wanted) => {
  const source = sources[row[SOURCE]];
  return (!wanted.run || runs[source.run] === wanted.run)
    && (!wanted.source || source.kind === wanted.source || (source.kind !== "training" && sourceName(source) === wanted.source))
    && (!wanted.verdict || verdict(row) === wanted.verdict) && (!wanted.stop || stops[row[STOP]] === wanted.stop)
    && within(row[STEP], wanted, "step") && within(row[TURNS], wanted, "turns") && within(row[TOKENS], wanted, "tokens");
};

/** Column and direction; what has no value comes last, except that evaluations without a step come before the last step. */
const SORTS = { "": [STEP, -1], step: [STEP, 1], most: [TOKENS, -1], fewest: [TOKENS, 1], highest: [REWARD, -1], lowest: [REWARD, 1] };
const sorted = (places, sort) => {
  const [by, sign] = SORTS[sort] ?? SORTS[""];
  const value = (at) => rows[at][by] ?? (by === STEP ? Infinity : sign * Infinity);
  return places.sort((a, b) => sign * (value(a) === value(b) ? 0 : value(a) - value(b)) || a - b);
};

let haystacks = null;
const progress = (text) => {
  byId("episode-progress").textContent = text;
};
/** All texts in lower case, read once at the first search. */
const readAll = async () => {
  const texts = [];
  const blocks = Math.ceil(rows.length / index.block);
  for (let at = 0; at < blocks; at += 1) {
    progress(`reading ${Math.round((100 * at) / blocks)} %`);
    for (const body of await block("texts", at))
      texts.push([problemId(rows[texts.length]), body.question, body.answer, ...body.turns.map((turn) => turn[1])].join("\n").toLowerCase());
  }
  progress("");
  return texts;
};

let search = 0;
const filter = async () => {
  remember();
  const mine = ++search;
  const wanted = Object.fromEntries(new FormData(form));
  const query = wanted.q.trim().toLowerCase();
  if (query && canUnpack) haystacks ??= readAll();
  const texts = query && canUnpack ? await haystacks : null;
  if (mine !== search) return;
  if (query && !canUnpack) progress("questions only: this browser cannot unpack the messages");
  const plain = (row) => problems[row[PROBLEM]].join("\n").toLowerCase();
  found = sorted([...rows.keys()].filter((at) => fits(rows[at], wanted) && (!query || (texts ? texts[at] : plain(rows[at])).includes(query))), wanted.sort);
  byId("episode-count").textContent = `${count(found.length)} of ${plural(rows.length, "episode")}`;
  byId("episode-clear").hidden = !Object.entries(wanted).some(([name, value]) => name !== "sort" && value);
  const place = found.indexOf(state.episode);
  list.scrollTop = place < 0 ? 0 : Math.max(0, place * ROW - list.clientHeight / 3);
  paint();
};

let waiting = 0;
form.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(filter, 120);
});
form.addEventListener("submit", (event) => event.preventDefault());
byId("episode-clear").addEventListener("click", () => {
  const sort = form.elements.sort.value;
  form.reset();
  form.elements.sort.value = sort;
  filter();
  form.elements.q.focus();
});

// ---- the beginning

/** Filters, episode and view as the address has them; the first episode if it names none that is here. */
const restore = async () => {
  const told = new URLSearchParams(location.hash.startsWith(ADDRESS) ? location.hash.slice(ADDRESS.length) : "");
  for (const field of form.elements) if (field.name) field.value = told.get(field.name) ?? "";
  state.view = /^(tokens|sequence\/.*)$/.exec(told.get("view"))?.[0] ?? "text";
  state.scale = told.get("scale") === "gap" ? "gap" : "probability";
  state.episode = byKey(told.get("episode")) ?? -1;
  await filter();
  if (state.episode < 0) state.episode = found[0] ?? 0;
  state.others = told.getAll("beside").map(byKey).filter((at) => at !== undefined && problemId(rows[at]) === problemId(rows[state.episode])).slice(0, MOST - 1);
  paint();
  await show();
};

fillSelects();
addEventListener("hashchange", () => location.hash.startsWith(ADDRESS) && restore());
restore().then(() => {
  clearTimeout(dirty);
  dirty = 0;
  const [visit] = performance.getEntriesByType("navigation");
  if (location.hash.startsWith(ADDRESS) && visit?.type === "navigate") byId("episodes").scrollIntoView();
});
