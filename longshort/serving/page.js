// The page at `/`: asks the server that sent it, and shows what both models write while they write it.
// It stores nothing: questions, answers and the key are gone with the page.
const form = byId("ask");
const fields = form.elements;
const talk = byId("talk");
const NUMBERS = ["temperature", "max_turns", "seed"];
const UNANSWERED = {
  max_turns: "the last exchange allowed ended without an answer",
  turn_length: "a message reached its limit of tokens",
  episode_length: "the dialogue reached its limit of tokens",
  context: "the dialogue no longer fits the models' context",
  malformed: "a message did not end as the protocol asks",
};
const CUT_OFF = "The connection broke before the answer was complete.";
let model = null;
let running = null; // the AbortController of the question under way

/** An error whose message people may read. */
class Problem extends Error {}

/** Change the page and stay at its end, unless the reader has scrolled up. */
const following = (change) => {
  const atEnd = scrollY + innerHeight > document.documentElement.scrollHeight - 80;
  change();
  if (atEnd) scrollTo(0, document.documentElement.scrollHeight);
};

const say = (text) => (byId("status").textContent = text);
const complain = (text) => following(() => Object.assign(byId("problem"), { textContent: text, hidden: !text }));
/** The error to raise in place of a failed fetch or read: an abort stays what it is. */
const broken = (error, message) => (error.name === "AbortError" ? error : new Problem(message));

// ---- the server

const request = async (path, options) => {
  const key = fields.key.value.trim();
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const answer = await fetch(path, { ...options, headers, credentials: "omit" }).catch((error) => {
    throw broken(error, "The server cannot be reached; it may have stopped.");
  });
  if (answer.ok) return answer;
  if (answer.status === 401) {
    byId("settings").open = true;
    fields.key.focus();
    throw new Problem(key ? "The server does not accept this API key." : "This server needs an API key: enter it in the settings.");
  }
  const body = await answer.json().catch(() => null);
  throw new Problem(body?.error?.message ?? `The server answered with status ${answer.status}.`);
};

/** Find the team's name, which every request must contain. */
const findModel = async () => {
  const { data } = await (await request("v1/models", {})).json();
  model = data[0].id;
  byId("name").textContent = model;
  document.title = `${model} – longshort`;
};

/** The JSON objects of a stream of server-sent events, up to [DONE]. */
async function* objects(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let left = "", more = true; more;) {
    const { value, done } = await reader.read().catch((error) => {
      throw broken(error, CUT_OFF);
    });
    const lines = (left + (value ?? "")).split(/\r?\n/);
    left = lines.pop();
    for (const line of lines.filter((one) => one.startsWith("data:"))) {
      const text = line.slice(5).trim();
      if (text === "[DONE]") return;
      yield JSON.parse(text);
    }
    more = !done;
  }
}

/** The events of the dialogue on a question (`event_json` in longshort/serving/replies.py). */
async function* events(question, signal) {
  const settings = Object.fromEntries(NUMBERS.filter((name) => fields[name].value !== "").map((name) => [name, Number(fields[name].value)]));
  const body = { model, messages: [{ role: "user", content: question }], stream: true, stream_options: { include_dialogue: true }, mode: fields.mode.value, ...settings };
  const options = { method: "POST", signal, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let finished = false;
  for await (const one of objects((await request("v1/chat/completions", options)).body)) {
    if (one.error) throw new Problem(one.error.message);
    if (!one.longshort) continue;
    finished = one.longshort.event === "finished";
    yield one.longshort;
  }
  if (!finished) throw new Problem(CUT_OFF);
}

// ---- the dialogue

const fact = (name, ...value) => el("div", "", el("dt", "", name), el("dd", "", ...value));

/** One question with its dialogue, shown event by event. */
class Dialogue {
  constructor(question) {
    this.tokens = {};
    this.began = performance.now();
    this.waiting = el("p", "waiting", "waiting for the first words …");
    this.article = el("article", "", el("h2", "question", question), this.waiting);
    talk.append(this.article);
    this.article.scrollIntoView({ block: "start" });
  }

  turn_began({ role }) {
    this.waiting.remove();
    this.words = document.createTextNode("");
    this.head = el("div", "head", el("span", `role is-${role}`, role));
    this.card = el("section", `turn ${role} writing`, this.head, el("div", "text", this.words));
    this.article.append(this.card);
    say(`${role} is writing`);
  }

  piece({ text }) {
    this.words.appendData(text);
  }

  turn_ended({ role, tokens, stop }) {
    this.tokens[role] = (this.tokens[role] ?? 0) + tokens;
    this.card.classList.remove("writing");
    this.head.append(el("span", "quiet", plural(tokens, "token")));
    if (stop === "</rethink>") this.head.append(el("span", "back", "↩ hands back: think again"));
  }

  finished({ stop, text, hand_backs }) {
    const answered = stop === "answered";
    if (answered) {
      this.card.classList.add("answer");
      this.head.prepend(el("b", "", "Answer"));
    } else this.article.append(el("p", "ended", `No answer: ${UNANSWERED[stop] ?? words(stop)}.`));
    const seconds = ((performance.now() - this.began) / 1000).toFixed(1);
    const spent = Object.entries(this.tokens).map(([role, tokens]) => fact(role, plural(tokens, "token")));
    this.article.append(el("dl", "facts sum", ...spent, fact("hand-backs", count(hand_backs)), fact("time", `${seconds} s`)));
    say(answered ? `Answer: ${text}` : "No answer.");
  }

  /** End the question without an answer: stopped by the person, or by an error that is shown elsewhere. */
  broken(reason) {
    this.waiting.remove();
    this.card?.classList.remove("writing");
    this.article.append(el("p", "ended", reason));
    say(reason);
  }
}

// ---- asking

const busy = (controller) => {
  running = controller;
  byId("send").hidden = controller !== null;
  byId("stop").hidden = controller === null;
  talk.setAttribute("aria-busy", controller !== null);
};

const ask = async (question) => {
  complain("");
  const controller = new AbortController();
  busy(controller);
  let dialogue = null;
  try {
    if (model === null) await findModel();
    dialogue = new Dialogue(question);
    fields.question.value = "";
    for await (const event of events(question, controller.signal)) following(() => dialogue[event.event](event));
  } catch (error) {
    if (error.name !== "AbortError" && !(error instanceof Problem)) throw error;
    following(() => dialogue?.broken(error instanceof Problem ? "This question was not answered." : "Stopped."));
    if (error.name === "AbortError") return;
    complain(error.message);
    fields.question.value ||= question;
  } finally {
    busy(null);
  }
};

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running && fields.question.value.trim()) ask(fields.question.value.trim());
});
fields.question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
byId("settings").addEventListener("invalid", () => (byId("settings").open = true), { capture: true });
byId("stop").addEventListener("click", () => {
  running?.abort();
  fields.question.focus();
});
addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
findModel().catch((error) => complain(error.message));
