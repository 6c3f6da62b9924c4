
// --- requests to the server, and its streams of events

const BASE = new URL(".", location.href);
const TOKEN = "octollm.token";
const session = {
  get: (name) => { try { return sessionStorage.getItem(name) || ""; } catch { return ""; } },
  set: (name, value) => { try { value ? sessionStorage.setItem(name, value) : sessionStorage.removeItem(name); } catch { /* It is in memory alone. */ } },
};
let token = session.get(TOKEN);
let onUnauthenticated = () => {};

// An answer that is no success, or none at all (status 0).
class Refused extends Error {
  constructor(status, problem, wait) {
    super(problem.detail || problem.message || (status ? `the server answered ${status}` : "the server does not answer"));
    Object.assign(this, { status, problem, wait });
  }
  get isFinal() { return this.status >= 400 && this.status < 500 && this.status !== 408 && this.status !== 429 || this.status === 501; }
}

async function request(path, { method = "GET", body, accept = "application/json", headers = {}, signal } = {}) {
  const used = token;
  const head = new Headers({ accept, ...headers });
  if (used) head.set("authorization", `Bearer ${used}`);
  if (body !== undefined) head.set("content-type", "application/json");
  let answer;
  try {
    // No cookies: what the page may do depends on the token alone.
    answer = await fetch(new URL(path, BASE), { method, body, headers: head, signal, cache: "no-store", credentials: "omit", redirect: "error" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refused(0, {});
  }
  skew = skewOf(answer.headers.get("date"));
  if (answer.ok || answer.status === 304) return answer;
  let problem = {};
  try { problem = await answer.json(); } catch { /* It has no problem in its body. */ }
  if (answer.status === 401 && used === token) onUnauthenticated(Boolean(used), problem.detail || "");
  throw new Refused(answer.status, isObject(problem) ? problem : {}, Number(answer.headers.get("retry-after")) * 1000 || 0);
}
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const listOf = (value) => (Array.isArray(value) ? value : []);
const ask = async (path, options) => (await request(path, options)).json();

const sleep = (time, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, time);
  signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
});
// Random and doubling, so that many pages do not return to a server at one time.
const backoff = (attempt) => Math.min(15000, 400 * 2 ** attempt) * (0.5 + Math.random() / 2);

// Splits a stream of server-sent events, in pieces of any size, into its events.
class EventParser {
  constructor() { [this.rest, this.data, this.id] = ["", [], undefined]; }
  push(text) {
    const found = [];
    const lines = (this.rest + text).split(/\r\n|\n|\r(?!$)/);
    this.rest = lines.pop();
    for (const line of lines) {
      const at = line.indexOf(":");
      const [name, value] = at < 0 ? [line, ""] : [line.slice(0, at), line.slice(at + 1).replace(/^ /, "")];
      if (line === "") {
        if (this.data.length) found.push({ id: this.id, data: this.data.join("\n") });
        this.data = [];
      } else if (name === "data") this.data.push(value);
      else if (name === "id") this.id = value;
    }
    return found;
  }
}

const SILENCE = 90000; // A server sends a comment every 20 s by default.

// A stream of events that opens again when it breaks, after the last event that has arrived.
class Feed {
  constructor(path, { onEvent, onState = () => {}, isOver = () => false, last = "" }) {
    Object.assign(this, { path, onEvent, onState, isOver, last, ends: 0, attempt: 0, abort: new AbortController() });
    this.run();
  }
  close() { this.abort.abort(); }
  get isClosed() { return this.abort.signal.aborted; }
  async run() {
    while (!this.isClosed) {
      if (this.isOver(this)) return this.onState("over");
      let wait = backoff(this.attempt);
      try {
        await this.read();
        this.ends += 1;
        if (this.isOver(this)) continue;
      } catch (error) {
        if (this.isClosed) return;
        if (error instanceof Refused && error.isFinal) {
          this.close();
          return this.onState("refused", error);
        }
        wait = Math.max(wait, error.wait || 0);
      }
      this.attempt += 1;
      if (this.isClosed) return;
      // The end of a stream is no loss while the next one opens.
      if (this.attempt > 1) this.onState("waiting");
      const hurry = new AbortController();
      addEventListener("online", () => hurry.abort(), { once: true, signal: hurry.signal });
      await sleep(wait, AbortSignal.any([this.abort.signal, hurry.signal]));
      hurry.abort();
    }
  }
  async read() {
    const silence = new AbortController();
    let timer = setTimeout(() => silence.abort(), SILENCE);
    const headers = this.last ? { "last-event-id": this.last } : {};
    try {
      const answer = await request(this.path, { accept: "text/event-stream", headers, signal: AbortSignal.any([this.abort.signal, silence.signal]) });
      this.onState("open");
      const [reader, parser] = [answer.body.pipeThrough(new TextDecoderStream()).getReader(), new EventParser()];
      for (;;) {
        const { value, done } = await reader.read();
        if (done || this.isClosed) return;
        clearTimeout(timer);
        timer = setTimeout(() => silence.abort(), SILENCE);
        for (const event of parser.push(value)) {
          if (event.id) this.last = event.id;
          this.attempt = 0;
          let data;
          try { data = JSON.parse(event.data); } catch { continue; }
          // An error of the page is one, and no lost connection.
          try { if (isObject(data)) this.onEvent(data); } catch (error) { reportError(error); }
        }
      }
    } finally { clearTimeout(timer); }
  }
}

// Repeats work while the page is visible, and waits longer after failures.
class Poll {
  constructor(time, work, name) {
    Object.assign(this, { time, work, name, attempt: 0, abort: new AbortController(), timer: undefined });
    this.next(0);
  }
  close() { clearTimeout(this.timer); this.abort.abort(); setLive(this.name, ""); }
  next(wait) {
    clearTimeout(this.timer);
    if (!this.abort.signal.aborted) this.timer = setTimeout(() => this.turn(), wait);
  }
  async turn() {
    if (document.hidden) return this.next(1000);
    let wait = this.time;
    try {
      await this.work(this.abort.signal);
      this.attempt = 0;
      this.say("answered");
    } catch (error) {
      if (!(error instanceof Refused)) { if (!this.abort.signal.aborted) throw error; return; }
      if (error.isFinal) return this.close();
      wait = Math.max(wait, backoff(this.attempt), error.wait || 0);
      this.attempt += 1;
      if (error.status === 0) this.say("waiting");
    }
    this.next(wait);
  }
  say(state) { if (!this.abort.signal.aborted) setLive(this.name, state); }
}
