
// --- the events of the bus

const MOST_EVENTS = 300;
const ALL = "events:*:*";
const OF_TASKS = "events:task:*";
const bus = { feed: undefined, pattern: "", isPaused: false, held: [], seen: 0, isOpen: false };

function followEvents(pattern) {
  bus.feed?.close();
  bus.pattern = pattern;
  $("pattern").value = pattern;
  sayEvents("connecting");
  bus.feed = new Feed(`events?${new URLSearchParams({ pattern })}`, {
    onEvent: (event) => {
      bus.seen += 1;
      if (bus.isPaused) {
        bus.held.unshift(event);
        bus.held.length = Math.min(bus.held.length, MOST_EVENTS);
      } else addEvents([event]);
      sayEvents();
    },
    onState: (state, error) => {
      bus.isOpen = state === "open";
      setLive("events", state === "refused" ? "" : state);
      if (state === "open") sayEvents();
      else if (state === "waiting") sayEvents("connection lost; connecting again");
      else if (state === "refused") {
        // Without the scope for all events there may be one for those of tasks.
        if (error.status === 403 && pattern === ALL) return followEvents(OF_TASKS);
        sayEvents(error.status === 403 ? "This token may not see these events." : error.status === 404 ? "This server has no events." : error.message);
      }
    },
  });
}
function leaveEvents() {
  bus.feed?.close();
  bus.feed = undefined;
  setLive("events", "");
}
function sayEvents(words) {
  const held = bus.isPaused ? `paused, ${plural(bus.held.length, "new event")}` : "";
  write($("events-note"), words || held || (bus.seen ? plural(bus.seen, "event") : "Nothing yet: events appear here as they are published."));
}

const kindOf = (type) => {
  const action = String(type).split(".")[1];
  if (["completed", "recovered", "registered", "closed"].includes(action)) return "completed";
  if (["failed", "unavailable", "opened", "dropped"].includes(action)) return "failed";
  if (["started", "progress"].includes(action)) return "processing";
  return action === "cancelled" ? "cancelled" : "queued";
};
function summaryOf(event) {
  const data = isObject(event.data) ? event.data : { data: event.data };
  const { error, progress } = data;
  if (isObject(error) && error.message) return error.message;
  if (isObject(progress)) return `${progress.percentage} % ${progress.message || ""}`;
  return Object.entries(data).filter(([name, value]) => !["task_id", "status"].includes(name) && value !== null && typeof value !== "object").map(([name, value]) => `${name} ${value}`).join(" · ");
}
function addEvents(events) {
  const isTop = scrollY < 40;
  const before = document.documentElement.scrollHeight;
  $("events").prepend(...events.map((event) => {
    if (event.type === "gap") return el("li", { class: "gap" }, event.missed ? `${plural(event.missed, "event")} missing` : "Events may be missing", event.reason ? `: ${event.reason}` : "");
    const isTask = /^task_[a-zA-Z0-9]{16}$/.test(String(event.subject));
    const row = el("details", {}, el("summary", {},
      el("time", { datetime: event.timestamp }, at(clock, event.timestamp)), el("span", { class: `pill ${kindOf(event.event_type)}` }, String(event.event_type)),
      el("span", { class: "say" }, summaryOf(event)), el("span", { class: "soft mono" }, event.subject || event.source)));
    row.addEventListener("toggle", () => row.append(isTask ? el("p", {}, el("a", { href: `#/tasks/${event.subject}` }, "The task")) : "", jsonView(event)), { once: true });
    return el("li", {}, row);
  }));
  while ($("events").children.length > MOST_EVENTS) $("events").lastChild.remove();
  // Who reads further down stays there.
  if (!isTop) scrollBy(0, document.documentElement.scrollHeight - before);
}

function setUpEvents() {
  $("events-form").addEventListener("submit", (event) => {
    event.preventDefault();
    location.hash = `#/events/${encodeURIComponent($("pattern").value.trim() || ALL)}`;
    if (bus.pattern === $("pattern").value.trim()) followEvents(bus.pattern);
  });
  $("pause").addEventListener("click", () => {
    bus.isPaused = !bus.isPaused;
    $("pause").setAttribute("aria-pressed", String(bus.isPaused));
    write($("pause"), bus.isPaused ? "Resume" : "Pause");
    if (!bus.isPaused) addEvents(bus.held.splice(0));
    sayEvents();
  });
  $("clear").addEventListener("click", () => { $("events").replaceChildren(); bus.held = []; bus.seen = 0; sayEvents(); });
}
