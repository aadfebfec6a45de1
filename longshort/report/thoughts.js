// Lists the embedded traces and builds the chosen one.
(() => {
  "use strict";
  const index = JSON.parse(byId("index").textContent);
  if (!index.length) return;
  const load = (at) => JSON.parse(byId(`trace-${at}`).textContent);
  const SVG = "http://www.w3.org/2000/svg";

  const drawn = (tag, attributes, ...children) => {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };

  const label = (entry) => (entry.step ? `${entry.step}: ${words(entry.outcome)}` : words(entry.outcome));
  const percent = (share) => `${Math.round(100 * share)} %`;
  const fixed = (value, digits) => value.toFixed(digits).replace("-", "−");

  // ---- the list and its filters

  const buttons = index.map((entry, at) => {
    const facts = el("span", "facts-line",
      entry.thoughts ? `${entry.thoughts} thoughts` : "",
      entry.share === null ? "" : el("i", "", `long ${percent(entry.share)}`),
      entry.step ? el("b", "drop", label(entry)) : "");
    const button = el("button", "", el("span", "question", entry.question || entry.id), facts);
    button.type = "button";
    button.title = entry.id;
    button.addEventListener("click", () => choose(at, true));
    byId("list").append(el("li", "", button));
    return button;
  });

  const outcomes = new Map();
  for (const entry of index) outcomes.set(label(entry), (outcomes.get(label(entry)) || 0) + 1);
  for (const [name, count] of outcomes) {
    const option = el("option", "", `${name} (${count})`);
    option.value = name;
    byId("outcome").append(option);
  }

  const texts = [];
  /** All text of a trace in lower case, made at the first search. */
  const textOf = (at) => {
    if (texts[at] === undefined) {
      const { chunk = {}, rewrite = {}, ...others } = load(at);
      const parts = [index[at].id, chunk.problem?.question, chunk.problem?.answer, chunk.detail, rewrite.detail];
      for (const thought of chunk.thoughts || []) parts.push(thought.kind, thought.text);
      for (const message of rewrite.dialogue || []) parts.push(message[1]);
      for (const step of Object.values(others)) parts.push(step.detail);
      texts[at] = parts.filter(Boolean).join("\n").toLowerCase();
    }
    return texts[at];
  };

  const bound = (id, otherwise) => (byId(id).value === "" ? otherwise : Number(byId(id).value));
  const filter = () => {
    const query = byId("query").value.trim().toLowerCase();
    const outcome = byId("outcome").value;
    const within = (value, name, scale) =>
      value === null ? bound(`${name}-from`, null) === null && bound(`${name}-to`, null) === null
        : value * scale >= bound(`${name}-from`, -Infinity) && value * scale <= bound(`${name}-to`, Infinity);
    let matching = 0;
    index.forEach((entry, at) => {
      const fits = (!outcome || label(entry) === outcome) && within(entry.thoughts, "thoughts", 1) && within(entry.share, "share", 100)
        && (!query || textOf(at).includes(query));
      buttons[at].parentNode.hidden = !fits;
      matching += fits;
    });
    byId("matching").textContent = matching.toLocaleString("en");
  };
  let waiting = 0;
  byId("filters").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 120);
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("list").addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const shown = buttons.filter((button) => !button.parentNode.hidden);
    shown[shown.indexOf(document.activeElement) + step]?.focus();
  });

  // ---- one trace

  const cell = (name, ...value) => el("div", "cell", el("span", "name", name), el("span", "value", ...value));

  /** P with its interval on a scale from 0 to 1. */
  const whisker = (score) => {
    const x = (share) => 3 + 94 * share;
    return drawn("svg", { viewBox: "0 0 100 14", class: "p-bar", "aria-hidden": "true" },
      drawn("path", { d: "M3 7H97", class: "grid" }),
      drawn("path", { d: `M${x(score.low)} 7H${x(score.high)}M${x(score.low)} 3.5v7M${x(score.high)} 3.5v7`, class: "whisker" }),
      drawn("circle", { cx: x(score.p), cy: 7, r: 3.2, class: "dot" }));
  };

  const figures = (trace, at) => {
    const { rollouts = {}, importance = {} } = trace;
    const tokens = (importance.tokens || rollouts.tokens || [])[at];
    const score = (importance.scores || [])[at];
    const made = el("div", "cells");
    if (tokens !== undefined) made.append(cell("tokens", tokens.toLocaleString("en")));
    if (!score) {
      if (rollouts.correct) made.append(cell("right", `${rollouts.correct[at + 1]} of ${rollouts.n}`));
      return made;
    }
    made.append(cell("M", fixed(score.m, 3)), cell("δ", score.delta ? fixed(score.delta, 2) : "0"));
    const p = cell(`P in ${fixed(score.low, 2)}–${fixed(score.high, 2)}`, fixed(score.p, 2), whisker(score));
    p.classList.add("p");
    p.title = `${(importance.n || [])[at + 1] ?? "?"} rollouts`;
    made.append(p, cell("bounds", `±${fixed(score.bound, 2)}, ±${fixed(score.loose_bound, 2)}`));
    return made;
  };

  const thoughtCard = (trace, at) => {
    const thought = trace.chunk.thoughts[at];
    const long = trace.partition?.long?.[at];
    const side = long === undefined ? "" : long ? "long" : "short";
    const head = el("div", "head", el("span", "ordinal", String(at + 1)), el("span", "kind", thought.kind), side && el("span", `role is-${side}`, side));
    const card = el("section", `thought ${side}`, head, figures(trace, at), el("div", "text", thought.text.trim()));
    card.id = `thought-${at}`;
    return card;
  };

  /** The thoughts' shares of the tokens as a strip, and P over it. */
  const overview = (trace) => {
    const { importance, partition } = trace;
    const tokens = importance?.tokens || trace.rollouts?.tokens;
    if (!tokens?.length) return null;
    const total = tokens.reduce((sum, n) => sum + n, 0);
    let done = 0;
    const ends = tokens.map((n) => (100 * (done += n)) / total);
    const strip = el("div", "strip", ...tokens.map((n, at) => {
      const part = el("button", partition?.long?.[at] === undefined ? "" : partition.long[at] ? "long" : "short");
      part.type = "button";
      part.tabIndex = -1;
      part.style.width = `${(100 * n) / total}%`;
      part.title = `thought ${at + 1}: ${trace.chunk?.thoughts?.[at]?.kind ?? ""}, ${n} tokens`;
      part.addEventListener("click", () => byId(`thought-${at}`)?.scrollIntoView({ block: "start", behavior: "smooth" }));
      return part;
    }));
    const made = el("div", "overview");
    const scores = importance?.scores;
    if (scores?.length === tokens.length) {
      const y = (share) => 46 - 42 * share;
      const at = (key) => scores.map((score, i) => `${ends[i]} ${y(score[key])}`);
      made.append(el("div", "scale", el("span", "", "P = 1"), el("span", "", "0")), drawn("svg", { viewBox: "0 0 100 50", preserveAspectRatio: "none", class: "p-over", "aria-hidden": "true" },
        drawn("path", { d: "M0 4H100M0 25H100M0 46H100", class: "grid" }),
        drawn("path", { d: `M${at("low").join("L")}L${at("high").reverse().join("L")}Z`, class: "band" }),
        drawn("path", { d: `M0 ${y(importance.p0 || 0)}L${at("p").join("L")}`, class: "line" })));
    }
    made.append(strip);
    return made;
  };

  const messageCard = ([role, text, tag], unchanged) =>
    el("section", `message ${role === "long" ? "long" : "short"}`,
      el("div", "head", el("span", `role is-${role === "long" ? "long" : "short"}`, role), el("span", "quiet", unchanged ? "as it was" : "written anew")),
      el("div", "text", text, " ", el("code", "tag", tag)));

  /** Thoughts on the left, beside each run of them the message that it became. */
  const body = (trace) => {
    const thoughts = trace.chunk?.thoughts || [];
    const dialogue = trace.rewrite?.dialogue || [];
    const runs = trace.partition?.messages || [[null, thoughts.map((_, at) => at)]];
    const joined = (places) => places.map((at) => thoughts[at].text).join("").trim();
    const made = el("div", dialogue.length ? "both" : "both alone");
    if (dialogue.length) {
      const jump = el("button", "jump", "to the dialogue ↓");
      const heading = el("h4", "right", "Dialogue");
      jump.type = "button";
      jump.addEventListener("click", () => heading.scrollIntoView());
      made.append(el("h4", "left", "Thoughts", jump), heading);
    }
    for (let i = 0; i < Math.max(runs.length, dialogue.length); i += 1) {
      const left = el("div", "left");
      const places = (runs[i]?.[1] || []).filter((at) => thoughts[at]);
      left.append(...places.map((at) => thoughtCard(trace, at)));
      if (runs[i] && !places.length && thoughts.length) left.append(el("p", "quiet", "No thought left: a closing answer was written."));
      made.append(left);
      if (dialogue.length) made.append(el("div", "right", dialogue[i] ? messageCard(dialogue[i], dialogue[i][0] === "long" || joined(places) === dialogue[i][1]) : ""));
    }
    return made;
  };

  const fact = (name, value) => (value ? el("div", "", el("dt", "", name), el("dd", "", value)) : null);

  const build = (at) => {
    const trace = load(at);
    const entry = index[at];
    const { chunk = {}, importance = {}, rollouts = {}, rewrite = {} } = trace;
    const tokens = importance.tokens || rollouts.tokens;
    const facts = el("dl", "facts",
      fact("gold answer", chunk.problem?.answer),
      fact("outcome", label(entry)),
      fact("tokens", tokens && tokens.reduce((sum, n) => sum + n, 0).toLocaleString("en")),
      fact("long share", entry.share === null ? "" : percent(entry.share)),
      fact("P before any thought", importance.scores && `${fixed(importance.p0 || 0, 2)} (${importance.n?.[0] ?? "?"} rollouts)`),
      fact("cut by", chunk.splitter && `${chunk.splitter}${chunk.tries > 1 ? `, ${chunk.tries} tries` : ""}${/^chunk\.splitter is/.test(chunk.why || "") ? "" : `: ${chunk.why || ""}`}`),
      fact("rewriter's tries", rewrite.tries > 1 ? String(rewrite.tries) : ""),
      fact("notes", (chunk.notes || []).map(words).join(", ")));
    const detail = Object.values(trace).map((step) => step.detail).filter(Boolean);
    return [
      el("p", "above", entry.id),
      el("h3", "", chunk.problem?.question || entry.id),
      facts,
      ...(entry.step ? [el("p", "dropped", `Dropped at ${label(entry)}.`, ...detail.map((text) => ` ${text}`))] : detail.map((text) => el("p", "quiet", text))),
      overview(trace),
      chunk.thoughts ? body(trace) : el("p", "quiet", "There are no thoughts to show."),
    ].filter(Boolean);
  };

  let chosen = -1;
  const choose = (at, byHand) => {
    if (at !== chosen) {
      buttons[chosen]?.removeAttribute("aria-current");
      buttons[at].setAttribute("aria-current", "true");
      chosen = at;
      byId("detail").replaceChildren(...build(at));
    }
    if (!byHand) return;
    history.replaceState(null, "", `#${encodeURIComponent(index[at].id)}`);
    if (byId("detail").getBoundingClientRect().top > innerHeight / 2 || byId("detail").getBoundingClientRect().top < 0)
      byId("detail").scrollIntoView({ block: "start" });
  };

  /** The trace that the address names (#id), if any. */
  const fromAddress = () => {
    let wanted = "";
    try {
      wanted = decodeURIComponent(location.hash.slice(1));
    } catch (error) {
      if (!(error instanceof URIError)) throw error;
    }
    const at = index.findIndex((entry) => wanted && entry.id === wanted);
    if (at >= 0) {
      choose(at, true);
      buttons[at].scrollIntoView({ block: "nearest" });
      byId("viewer").scrollIntoView();
    }
    return at >= 0;
  };
  addEventListener("hashchange", fromAddress);
  if (!fromAddress()) choose(0, false);
})();
