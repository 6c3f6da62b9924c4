
// --- the list of tasks

const PAGE = 50;
const MOST = 300; // rows
const tasks = {
  all: new Map(), // by id, as the server states them
  rows: new Map(),
  status: "",
  words: "",
  next: undefined, // cursor of the page after those that were read; null at the end
  stale: new Set(), // ids to read again
  reading: false,
  feed: undefined,
  poll: undefined,
};

const taskName = (task) => task.goal || task.contract || "Task without a goal";
const newestFirst = (a, b) => timeOf(b.created_at) - timeOf(a.created_at) || (a.task_id < b.task_id ? 1 : -1);

// What the row of a task displays, which is written again only where it has changed.
function makeRow(id) {
  const parts = {
    state: el("span", { class: "state" }),
    goal: el("span", { class: "goal" }),
    age: el("time", { class: "age" }),
    note: el("span", { class: "say" }),
    use: el("span", { class: "use" }),
    fill: el("i", {}),
  };
  const link = el("a", { href: `#/tasks/${id}` }, parts.state, el("span", { class: "line" }, parts.goal, parts.age), el("span", { class: "line" }, parts.note, parts.use), el("span", { class: "track" }, parts.fill));
  return { ...parts, link, node: el("li", { class: "task", "data-id": id }, link), status: "" };
}
function paintRow(row, task) {
  if (row.status !== task.status) {
    row.state.replaceChildren(icon(known(task.status)), el("span", { class: "sr" }, task.status));
    setClass(row.node, `task ${known(task.status)}`);
    row.status = task.status;
  }
  const { progress, metadata } = task;
  write(row.goal, taskName(task));
  const waits = task.status === "queued" && task.run_at && timeOf(task.run_at) > now();
  const said = task.error && task.status !== "completed" ? task.error.message : task.status === "completed" ? listOf(metadata.arms_used).join(", ") : progress.message;
  write(row.note, waits ? `starts in ${ago(timeOf(task.run_at) - now())}` : said || (task.status === "queued" ? "waits for a place" : task.task_id));
  const used = metadata.tokens_used ? [`${count(metadata.tokens_used)} tok`, money(metadata.cost_dollars)] : [];
  write(row.use, task.status === "processing" ? `${progress.percentage} %` : [isFinished(task.status) && metadata.duration_seconds ? took(metadata.duration_seconds * 1000) : "", ...used].filter(Boolean).join(" · "));
  row.fill.style.width = `${task.status === "completed" ? 100 : progress.percentage}%`;
  row.age.setAttribute("datetime", task.created_at);
  write(row.age, ago(now() - timeOf(task.created_at)));
}

function isListed(task) {
  const words = tasks.words.toLowerCase();
  return (!tasks.status || task.status === tasks.status) && (!words || `${taskName(task)} ${task.contract || ""} ${task.task_id}`.toLowerCase().includes(words));
}
function paintTasks() {
  const all = [...tasks.all.values()].sort(newestFirst);
  for (const task of all.splice(MOST)) if (task.task_id !== detail.id) tasks.all.delete(task.task_id);
  const listed = all.filter(isListed);
  const ids = new Set(listed.map((task) => task.task_id));
  for (const [id, row] of tasks.rows) if (!ids.has(id)) { row.node.remove(); tasks.rows.delete(id); }
  let before = $("tasks").firstElementChild;
  for (const task of listed) {
    let row = tasks.rows.get(task.task_id);
    if (!row) {
      row = makeRow(task.task_id);
      tasks.rows.set(task.task_id, row);
    }
    paintRow(row, task);
    const isCurrent = task.task_id === detail.id;
    if (isCurrent) row.link.setAttribute("aria-current", "true"); else row.link.removeAttribute("aria-current");
    if (row.node === before) before = before.nextElementSibling;
    else $("tasks").insertBefore(row.node, before);
  }
  const words = tasks.words ? "No listed task has these words." : tasks.status ? `No task is ${tasks.status}.` : "There are no tasks yet. They appear here as they are submitted.";
  sayTasks(listed.length ? "" : words);
  $("older").hidden = !tasks.next || tasks.all.size >= MOST;
}
function sayTasks(words) {
  $("tasks-note").hidden = !words;
  write($("tasks-note"), words);
}

function take(task) {
  if (!isObject(task) || typeof task.task_id !== "string" || !isObject(task.progress) || !isObject(task.metadata)) return;
  tasks.all.set(task.task_id, task);
  if (task.task_id === detail.id) showTask(task);
}

async function readTasks(signal) {
  const query = new URLSearchParams({ limit: PAGE, ...(tasks.status ? { status: tasks.status } : {}) });
  const status = tasks.status;
  try {
    const page = await ask(`tasks?${query}`, { signal });
    if (status !== tasks.status) return;
    const found = listOf(page.tasks);
    // Tasks that were listed before, and are on no later page, are gone or have another status.
    const oldest = found.length && page.next ? timeOf(found.at(-1).created_at) : -Infinity;
    for (const [id, task] of tasks.all) if (timeOf(task.created_at) >= oldest && id !== detail.id) tasks.all.delete(id);
    found.forEach(take);
    if (tasks.next === undefined) tasks.next = page.next;
    tasks.stale.clear();
    paintTasks();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 403) forget("This token may not see tasks.");
    else if (error.status === 404) forget("This server has no tasks.");
    throw error;
  }
}
function forget(words) {
  tasks.all.clear();
  tasks.next = undefined;
  paintTasks();
  sayTasks(words);
}

async function readOlder() {
  $("older").disabled = true;
  try {
    const page = await ask(`tasks?${new URLSearchParams({ limit: PAGE, after: tasks.next, ...(tasks.status ? { status: tasks.status } : {}) })}`);
    listOf(page.tasks).forEach(take);
    tasks.next = page.next;
    paintTasks();
  } catch (error) { report(error); }
  $("older").disabled = false;
}

// Reads tasks again that events have named: one by one while they are few, else the list.
function refresh(id, wait = 120) {
  tasks.stale.add(id);
  if (tasks.reading) return;
  tasks.reading = true;
  setTimeout(async () => {
    const ids = [...tasks.stale];
    tasks.stale.clear();
    let next = 120;
    try {
      if (ids.length > 6) await readTasks();
      else await Promise.all(ids.map(readOne));
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      // A server that is away, as while it restarts.
      if (!error.isFinal) ids.forEach((id) => tasks.stale.add(id));
      next = Math.max(1000, error.wait || 0);
    }
    tasks.reading = false;
    paintTasks();
    if (tasks.stale.size) refresh([...tasks.stale][0], next);
  }, wait);
}
async function readOne(id) {
  try { take(await ask(`tasks/${id}`)); } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status !== 404 && error.status !== 403) throw error;
    tasks.all.delete(id);
  }
}

function onTaskEvent(event) {
  if (event.type === "gap") return tasks.poll?.next(0);
  const data = isObject(event.data) ? event.data : {};
  const id = typeof data.task_id === "string" ? data.task_id : event.subject;
  if (typeof id !== "string" || !/^task_[a-zA-Z0-9]{16}$/.test(id)) return;
  const task = tasks.all.get(id);
  if (task && isObject(data.progress) && task.status === "processing") {
    task.progress = data.progress;
    const row = tasks.rows.get(id);
    if (row) paintRow(row, task);
    if (id === detail.id) showProgress(task);
    return;
  }
  refresh(id);
}

// The list lives on events where the server has a bus, and otherwise on being read again.
function followTasks() {
  leaveTasks();
  const read = (time) => new Poll(time, readTasks, "list");
  if (!has("/events")) {
    tasks.poll = read(2000);
    return setLive("tasks", "polling");
  }
  tasks.poll = read(10000);
  tasks.feed = new Feed("events?pattern=events:task:*", {
    onEvent: onTaskEvent,
    onState: (state) => {
      setLive("tasks", state);
      if (state === "open") tasks.poll.next(0); // What was missed before it was open.
      if (state !== "refused") return;
      tasks.poll.close();
      tasks.poll = read(2000);
      setLive("tasks", "polling");
    },
  });
}
function leaveTasks() {
  tasks.feed?.close();
  tasks.poll?.close();
  setLive("tasks", "");
}

function pickStatus(status) {
  tasks.status = status;
  for (const button of $("statuses").children) {
    const isPicked = button.dataset.status === status;
    button.setAttribute("aria-checked", String(isPicked));
    button.tabIndex = isPicked ? 0 : -1;
  }
  tasks.all.clear();
  tasks.next = undefined;
  paintTasks();
  sayTasks("Loading.");
  followTasks();
}

function setUpTasks() {
  for (const status of ["", ...STATUSES]) {
    $("statuses").append(el("button", { type: "button", role: "radio", "aria-checked": String(!status), tabindex: status ? "-1" : "0", "data-status": status, title: status || "all", onclick: () => pickStatus(status) }, status ? icon(status) : "", el("span", {}, status || "all")));
  }
  $("statuses").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const buttons = [...$("statuses").children];
    const next = buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length];
    next.focus();
    pickStatus(next.dataset.status);
  });
  $("tasks").addEventListener("keydown", (event) => {
    const links = [...$("tasks").querySelectorAll("a")];
    const here = links.indexOf(document.activeElement);
    const to = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: links.length - 1 }[event.key];
    if (to === undefined || !links[to]) return;
    event.preventDefault();
    links[to].focus();
  });
  $("task-filter").addEventListener("input", () => { tasks.words = $("task-filter").value.trim(); paintTasks(); });
  $("older").addEventListener("click", readOlder);
}
