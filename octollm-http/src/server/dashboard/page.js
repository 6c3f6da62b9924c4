
// --- the page: what the server has, which view is open, the token, the theme

const page = { paths: undefined, verifies: false, view: "", polls: [], live: new Map(), needsToken: false, isHidden: false };

// Whether the server has a route. Where its document cannot be read, it is asked.
const has = (path) => !page.paths || path in page.paths;
function report(error) {
  if (!(error instanceof Refused)) throw error;
  if (error.status !== 401) announce(error.message);
}

// What the streams and lists of the open view are fed by, as one word.
function setLive(name, state) {
  if (state && state !== "over") page.live.set(name, state); else page.live.delete(name);
  paintLive();
}
function paintLive() {
  const states = [...page.live.values()];
  const [kind, words] = page.needsToken ? ["off", "needs a token"] : states.includes("waiting") ? ["lost", "reconnecting"] : states.includes("open") ? ["on", "live"] : states.includes("polling") ? ["on", "live, polled"] : states.includes("answered") ? ["on", "live"] : ["off", "connecting"];
  setClass($("live"), `live ${kind}`);
  write($("live"), words);
  $("banner").hidden = kind !== "lost";
  write($("banner"), kind === "lost" ? "The connection to the server is lost. What you see may be out of date." : "");
}

const VIEWS = ["tasks", "arms", "events", "dead-letters"];
const leave = { tasks: () => { leaveTasks(); closeTask(); }, arms: leaveArms, events: leaveEvents, "dead-letters": () => {} };

function route() {
  const hash = location.hash.startsWith("#/") ? location.hash : "#/tasks";
  const [, name, ...rest] = hash.split("/");
  let argument = rest.join("/");
  try { argument = decodeURIComponent(argument); } catch { argument = ""; }
  const view = VIEWS.includes(name) ? name : "tasks";
  const isNew = view !== page.view;
  if (isNew && page.view) leave[page.view]();
  page.view = view;
  for (const one of VIEWS) $(`view-${one}`).hidden = one !== view;
  for (const link of $("views").children) if (link.hash === `#/${view}`) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  if (page.isHidden) return;
  if (view === "tasks") {
    if (isNew) followTasks();
    if (/^task_[a-zA-Z0-9]{16}$/.test(argument)) {
      const from = detail.id;
      openTask(argument);
      if (from !== argument && narrow.matches) { scrollTo(0, 0); $("detail").focus({ preventScroll: true }); }
    } else if (detail.id || isNew || "detail" in document.body.dataset) {
      const { id } = detail;
      closeTask();
      paintTasks();
      $("tasks").querySelector(`[data-id="${id || "none"}"] a`)?.focus({ preventScroll: true });
    }
  }
  if (view === "arms" && isNew) { paintArms(); followArms(); }
  if (view === "events" && (isNew || argument !== bus.pattern)) followEvents(argument || bus.pattern || ALL);
  if (view === "dead-letters") {
    if (argument) listLetters(argument);
    else { $("letters").replaceChildren(); letters.next = null; sayLetters("Enter the name of a consumer group."); }
  }
  paintLive();
}
const narrow = matchMedia("(max-width: 62rem)");

// The streams of a page that nobody sees are closed: a browser has few connections to one server.
function onVisibility() {
  clearTimeout(page.hiding);
  if (document.hidden) page.hiding = setTimeout(() => { page.isHidden = true; stop(); }, 10000);
  else if (page.isHidden) { page.isHidden = false; start(); }
}
function stop() {
  page.polls.splice(0).forEach((poll) => poll.close());
  if (page.view) leave[page.view]();
  page.view = "";
  page.live.clear();
}
function start() {
  page.needsToken = false;
  page.polls.push(new Poll(5000, readHealth, "health"));
  if (has("/metrics")) page.polls.push(new Poll(2500, readMetrics, "metrics"));
  route();
}
async function readHealth(signal) {
  const health = await ask("health", { signal });
  write($("about"), [health.version ? `version ${health.version}` : "", Number.isFinite(health.uptime_seconds) ? `up ${ago(health.uptime_seconds * 1000).replace("now", "0 s")}` : ""].filter(Boolean).join(" · "));
}
async function readDocument() {
  try {
    const document_ = await ask("openapi.json");
    page.paths = isObject(document_.paths) ? document_.paths : undefined;
    page.verifies = Boolean(document_.components?.securitySchemes);
    const name = document_.info?.["x-octollm-arm"] || document_.info?.title || "";
    write($("title"), String(name) || "Dashboard");
    document.title = name ? `${visible(String(name))} · dashboard` : "Dashboard";
  } catch (error) { if (!(error instanceof Refused)) throw error; }
  paintAccess();
}

// The scopes in a token, where it states them.
function scopes() {
  try {
    const claims = JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
    return typeof claims.scope === "string" ? claims.scope.split(" ") : undefined;
  } catch { return undefined; }
}
function paintAccess() {
  $("token").hidden = !(page.verifies || token || page.needsToken);
  const granted = token ? scopes() : undefined;
  const sees = { "#/events": has("/events"), "#/dead-letters": has("/dead-letters") && (!granted || granted.includes("events:admin")) };
  for (const link of $("views").children) if (link.hash in sees) link.hidden = !sees[link.hash];
}

function useToken(text) {
  token = text;
  session.set(TOKEN, text);
  stop();
  // Nothing of one caller is shown to the next.
  tasks.all.clear();
  Object.assign(bus, { held: [], seen: 0 });
  Object.assign(totals, { rates: [], running: [], before: undefined });
  arms.measured.clear();
  $("tiles").hidden = true;
  for (const id of ["events", "letters"]) $(id).replaceChildren();
  paintTasks();
  paintAccess();
  start();
}
function askForToken(wasGiven, words) {
  if (page.needsToken && $("ask").open) return;
  page.needsToken = true;
  stop();
  if (wasGiven) { token = ""; session.set(TOKEN, ""); tasks.all.clear(); paintTasks(); }
  paintAccess();
  paintLive();
  sayTasks("The tasks of this server are displayed to callers with a token.");
  showAsk("This server needs to know who you are.", wasGiven ? `The token was refused${words ? `: ${words}` : "."}` : "");
}
function showAsk(why, bad) {
  write($("ask-why"), why);
  write($("ask-bad"), bad);
  $("ask-forget").hidden = !token;
  $("ask-token").value = "";
  if (!$("ask").open) $("ask").showModal();
  $("ask-token").focus();
}
function setUpToken() {
  onUnauthenticated = askForToken;
  $("token").addEventListener("click", () => showAsk(token ? "A token is in use." : "No token is in use.", ""));
  $("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = $("ask-token").value.trim().replace(/^bearer\s+/i, "");
    if (!text) return write($("ask-bad"), "Enter a token.");
    if (!/^[\x21-\x7e]+$/.test(text)) return write($("ask-bad"), "A token has no spaces, and only letters, digits and marks of ASCII.");
    $("ask").close();
    useToken(text);
  });
  $("ask-forget").addEventListener("click", () => { $("ask").close(); useToken(""); });
  $("ask-close").addEventListener("click", () => $("ask").close());
}

const THEMES = ["auto", "light", "dark"];
function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = theme;
  session.set("octollm.theme", theme === "auto" ? "" : theme);
  $("theme").replaceChildren(icon(theme));
  $("theme").setAttribute("aria-label", `Theme: ${theme}`);
  $("theme").title = `Theme: ${theme}`;
  $("theme").dataset.theme = theme;
}

setTheme(THEMES.includes(session.get("octollm.theme")) ? session.get("octollm.theme") : "auto");
$("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf($("theme").dataset.theme) + 1) % THEMES.length]));
setUpTasks();
setUpEvents();
setUpLetters();
setUpToken();
addEventListener("hashchange", route);
addEventListener("visibilitychange", onVisibility);
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !(event.target instanceof HTMLInputElement) && page.view === "tasks" && "detail" in document.body.dataset && !$("ask").open) location.hash = "#/tasks";
});
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); $("main").focus(); });
// Times go on between two answers.
setInterval(() => {
  if (document.hidden || page.view !== "tasks") return;
  for (const [id, row] of tasks.rows) if (tasks.all.has(id)) write(row.age, ago(now() - timeOf(tasks.all.get(id).created_at)));
  if (detail.task && !isFinished(detail.task.status)) { showTimes(); paintCalls(); }
}, 1000);
closeTask();
readDocument().then(start);
