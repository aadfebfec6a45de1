// A list of items to search, filter and sort, and the chosen one. Pages define `summary` (in the list) and `build` (the chosen one).
const index = JSON.parse(byId("index").textContent);
const load = (at) => JSON.parse(byId(`item-${at}`).textContent);
const form = byId("filters");
const list = byId("list");
const detail = byId("detail");
const AT_ONCE = 200;
/** A fact in a <dl>, or null if it has no value. */
const fact = (name, value) => (value === "" || value === null || value === undefined || value === false ? null : el("div", "", el("dt", "", name), el("dd", "", value)));
const side = (role) => (role === "long" ? "long" : "short");
let matching = index.map((_, at) => at);
let chosen = -1;

const buttonOf = (at) => list.querySelector(`[data-at="${at}"]`);

/** Put items into the list, AT_ONCE at a time. */
const listMore = () => {
  const begin = list.children.length;
  list.append(...matching.slice(begin, begin + AT_ONCE).map((at) => {
    const made = button("", "", () => choose(at, true), at === chosen ? { "aria-current": "true" } : {});
    made.dataset.at = at;
    made.append(el("span", "question", index[at].question || index[at].id), el("span", "facts-line", ...summary(index[at])));
    return el("li", "", made);
  }));
  byId("more").hidden = list.children.length >= matching.length;
};

const choose = (at, byHand) => {
  buttonOf(chosen)?.removeAttribute("aria-current");
  buttonOf(at)?.setAttribute("aria-current", "true");
  chosen = at;
  detail.replaceChildren(...build(index[at], load(at)).filter(Boolean));
  if (!byHand) return;
  remember();
  const { top } = detail.getBoundingClientRect();
  if (top > innerHeight / 2 || top < 0) detail.scrollIntoView({ block: "start" });
};

// ---- filters

/** Every text of a value, however deep. */
const textsIn = (value) => (typeof value === "string" ? value : value && typeof value === "object" ? Object.values(value).map(textsIn).join("\n") : "");
const haystacks = [];
const haystack = (at) => (haystacks[at] ??= `${index[at].id}\n${textsIn({ ...load(at), tokens: null })}`.toLowerCase());

const within = (value, from, to) => (from === "" && to === "") || (typeof value === "number" && (from === "" || value >= Number(from)) && (to === "" || value <= Number(to)));

const filter = () => {
  const asked = Object.fromEntries(new FormData(form));
  const query = asked.q.trim().toLowerCase();
  const selects = [...form.querySelectorAll("[data-select]")].map((one) => one.name).filter((name) => asked[name]);
  const ranges = [...form.querySelectorAll("[data-range]")].map((one) => one.dataset.range);
  matching = [...index.keys()].filter((at) => selects.every((name) => index[at][name] === asked[name])
    && ranges.every((name) => within(index[at][name], asked[`${name}-from`], asked[`${name}-to`]))
    && (!query || haystack(at).includes(query)));
  if (asked.sort) {
    const [sign, name] = [asked.sort[0] === "-" ? -1 : 1, asked.sort.slice(1)];
    const value = (at) => index[at][name] ?? sign * Infinity;
    matching.sort((a, b) => (value(a) === value(b) ? a - b : sign * (value(a) - value(b))));
  }
  byId("matching").textContent = count(matching.length);
  list.replaceChildren();
  listMore();
};

for (const select of form.querySelectorAll("[data-select]")) {
  const counts = new Map();
  for (const entry of index) counts.set(entry[select.name], (counts.get(entry[select.name]) ?? 0) + 1);
  for (const [name, n] of counts) {
    const option = el("option", "", `${words(name)} (${count(n)})`);
    option.value = name;
    select.append(option);
  }
}

// ---- the state in the address: #q=…&item=…

const remember = () => {
  const state = new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== ""));
  if (chosen >= 0) state.set("item", index[chosen].key);
  history.replaceState(null, "", `#${state}`);
};

/** Filters and item as the address has them, or the first item. `reveal` scrolls to an item that it names. */
const restore = (reveal) => {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const field of form.elements) if (field.name) field.value = state.get(field.name) ?? "";
  filter();
  const asked = index.findIndex((entry) => entry.key === state.get("item"));
  choose(asked >= 0 ? asked : matching[0] ?? 0, false);
  if (asked < 0 || !reveal) return;
  buttonOf(chosen)?.scrollIntoView({ block: "nearest" });
  form.scrollIntoView();
};

let waiting = 0;
form.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    filter();
    remember();
  }, 120);
});
form.addEventListener("submit", (event) => event.preventDefault());
list.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const buttons = [...list.querySelectorAll("button")];
  buttons[buttons.indexOf(document.activeElement) + step]?.focus();
});
byId("more").addEventListener("click", listMore);
addEventListener("hashchange", () => restore(true));

restore(performance.getEntriesByType("navigation")[0]?.type === "navigate");
