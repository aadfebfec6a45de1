// Part 2 of 4: tokens as coloured spans, their legend, and the card that tells a token's numbers.

/** Upper ends of the colour levels: probability from 1 down, gap from 0 up. */
const PROBABILITIES = [0.98, 0.9, 0.75, 0.5, 0.25, 0.1, 0.03, 0.01];
const GAPS = [0.005, 0.02, 0.1, 0.5];

const SHOWN_AS = { "\n": "↵", "\r": "␍", "\t": "⇥" };
const codePoint = (character) => `⟨U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
/** Control characters, line and paragraph separators, and all that reorders text or takes no width, made visible. */
const visible = (text) =>
  text.replace(/[\u0000-\u001f\u007f-\u00a0\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g,
    (character) => SHOWN_AS[character] ?? (character < " " ? String.fromCharCode(0x2400 + character.charCodeAt(0)) : codePoint(character)));

const thousandths = (value) => minus((value / 1000).toFixed(3));
const chance = (logprob) => {
  const p = Math.exp(logprob / 1000);
  return p < 0.001 ? minus(p.toExponential(1)) : p.toFixed(3);
};

/** The tokens of every turn as {id, mask, logprob, gap, position}; `position` counts the role's training sequence, null where a line lacks it. */
const tokensByTurn = (body, packed) => {
  const positions = Object.create(null);
  return packed.map(([context, ids, logprobs, gaps], turn) => {
    const role = body.turns[turn][0];
    const next = () => (positions[role] === null ? null : (positions[role] = (positions[role] ?? -1) + 1));
    if (context === null) positions[role] = null;
    return {
      role,
      context: context?.map((id) => ({ id, mask: 0, logprob: null, gap: null, position: next() })) ?? null,
      own: ids.map((id, i) => ({ id, mask: 1, logprob: logprobs?.[i] ?? null, gap: gaps?.[i] ?? null, position: next() })),
    };
  });
};

const levelOf = (token) => {
  if (state.scale === "probability") {
    if (token.logprob === null) return "unknown";
    const p = Math.exp(token.logprob / 1000);
    const level = PROBABILITIES.findIndex((bound) => p >= bound);
    return `p${level < 0 ? PROBABILITIES.length : level}`;
  }
  if (token.gap === null) return "unknown";
  const level = GAPS.filter((bound) => Math.abs(token.gap) >= 1000 * bound).length;
  return level ? `${token.gap < 0 ? "below" : "above"}${level}` : "p0";
};

/** Strip -> its tokens, so that a span needs to carry no more than its number. */
const stripTokens = new WeakMap();

/** Tokens as spans. One of them is in the tab order; arrow keys go on from there. */
const strip = (tokens, vocabulary, label) => {
  const made = el("div", "tokens");
  made.setAttribute("role", "group");
  made.setAttribute("aria-label", `${label}; arrow keys move`);
  tokens.forEach((token, at) => {
    const [text, control] = vocabulary?.get(token.id) ?? [null, false];
    token.text = text;
    token.control = control;
    const shown = text === null ? `⟨${token.id}⟩` : text === "" ? "∅" : visible(text).replaceAll("↵", "↵\n");
    const span = el("span", `token ${token.mask ? levelOf(token) : "context"}${control ? " control" : ""}`, shown);
    span.tabIndex = at ? -1 : 0;
    made.append(span);
  });
  stripTokens.set(made, tokens);
  return made;
};

const SCALES = { probability: "probability", gap: "engine–learner gap" };

/** What the colours mean, and the choice between the two scales. */
const legend = (choose) => {
  const swatches = state.scale === "probability"
    ? [...PROBABILITIES.map((bound, level) => [`p${level}`, String(bound).slice(1)]), [`p${PROBABILITIES.length}`, "0"]]
    : [...GAPS.map((bound, i) => [`below${i + 1}`, minus(`-${bound}`)]).reverse(), ["p0", "0"], ...GAPS.map((bound, i) => [`above${i + 1}`, `+${bound}`])];
  const scale = el("span", "scale", ...swatches.map(([level, text]) => el("span", `token ${level}`, text)));
  const made = el("div", "legend", el("span", "choice", ...Object.entries(SCALES).map(([name, text]) =>
    button("", text, () => choose(name), { "aria-pressed": state.scale === name }))), scale);
  scale.setAttribute("role", "group");
  scale.setAttribute("aria-label", state.scale === "probability" ? "colours: probability at least" : "colours: learner's minus engine's log-prob, in nats");
  const told = state.scale === "probability" ? "at least so probable" : "learner − engine, in nats; hatched: not trained on";
  made.append(el("span", "quiet", told + (state.view === "tokens" ? "" : "; grey: read, not sampled")));
  return made;
};

// ---- the card of one token

const tip = el("dl", "token-tip");
tip.id = "token-tip";
tip.setAttribute("role", "tooltip");
tip.hidden = true;
byId("episodes").append(tip);
let shown = null;
let pinned = null;

const hideTip = () => {
  tip.hidden = true;
  shown = null;
  pinned?.classList.remove("pinned");
  pinned = null;
};

const showTip = (span) => {
  const siblings = span.parentNode;
  const tokens = stripTokens.get(siblings);
  const token = tokens[[...siblings.children].indexOf(span)];
  const fact = (name, value) => [el("dt", "", name), el("dd", "", value)];
  const text = token.text === null ? "unknown" : visible(token.text).replaceAll(" ", "␣") || "∅";
  tip.replaceChildren(
    ...fact("token", el("bdi", "", text)),
    ...fact("id", String(token.id) + (token.control ? ", control" : "")),
    ...fact("log-prob", token.logprob === null ? "–" : thousandths(token.logprob)),
    ...fact("probability", token.logprob === null ? "–" : chance(token.logprob)),
    ...fact("gap", token.gap === null ? "–" : (token.gap > 0 ? "+" : "") + thousandths(token.gap)),
    ...fact("mask", token.mask ? "1, sampled" : "0, read"),
    ...fact("position", token.position === null ? "–" : count(token.position)));
  span.setAttribute("aria-describedby", "token-tip");
  tip.hidden = false;
  shown = span;
  place();
};

/** Under the token, or over it where there is no room; on a phone the style puts the card at the screen's foot. */
const place = () => {
  const box = shown.getClientRects()[0];
  const { width, height } = tip.getBoundingClientRect();
  const below = box.bottom + 6 + height < innerHeight;
  tip.style.left = `${Math.max(8, Math.min(box.left, document.documentElement.clientWidth - width - 8))}px`;
  tip.style.top = `${below ? box.bottom + 6 : Math.max(8, box.top - height - 6)}px`;
};

const tokenAt = (target) => (target instanceof Element && stripTokens.has(target.parentNode) ? target : null);

/** Hover, focus, tap and arrow keys within `area`. A tapped or clicked token's card stays until the next tap or Escape. */
const listenForTokens = (area) => {
  area.addEventListener("pointerover", (event) => {
    const span = tokenAt(event.target);
    if (pinned || event.pointerType === "touch") return;
    if (span) showTip(span);
    else hideTip();
  });
  area.addEventListener("pointerleave", () => pinned || hideTip());
  area.addEventListener("focusin", (event) => tokenAt(event.target) && showTip(event.target));
  area.addEventListener("focusout", (event) => tokenAt(event.relatedTarget) || hideTip());
  area.addEventListener("click", (event) => {
    const span = tokenAt(event.target);
    const again = span === pinned;
    hideTip();
    if (!span || again) return;
    pinned = span;
    span.classList.add("pinned");
    showTip(span);
  });
  area.addEventListener("keydown", (event) => {
    const span = tokenAt(event.target);
    if (!span) return;
    const strip = span.parentNode;
    const next = { ArrowRight: span.nextSibling, ArrowLeft: span.previousSibling, Home: strip.firstChild, End: strip.lastChild }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    if (!next) return;
    span.tabIndex = -1;
    next.tabIndex = 0;
    hideTip();
    next.focus();
  });
  addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
  addEventListener("scroll", () => {
    if (shown === pinned || shown === document.activeElement) shown && place();
    else hideTip();
  }, { passive: true });
};
