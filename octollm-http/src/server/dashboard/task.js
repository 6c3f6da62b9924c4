
// --- one task: its calls over time, what it streams, and its end

const MOST_CALLS = 200;
const MOST_NOTES = 100;
const MOST_TEXT = 60000;
const PHASES = ["preprocessing", "planning", "execution", "validation", "synthesis"];
const detail = { id: "", task: undefined, steps: [], more: false, feed: undefined, parts: undefined, text: "", notes: 0, timer: undefined, reading: false };

function openTask(id) {
  if (detail.id === id) return;
  closeTask();
  detail.id = id;
  document.body.dataset.detail = "open";
  makeDetail(id);
  const task = tasks.all.get(id);
  if (task) showTask(task);
  paintTasks();
  followTask();
}
function closeTask() {
  detail.feed?.close();
  clearTimeout(detail.timer);
  Object.assign(detail, { id: "", task: undefined, steps: [], more: false, feed: undefined, parts: undefined, text: "", notes: 0, timer: undefined, reading: false });
  delete document.body.dataset.detail;
  setLive("task", "");
  $("detail").replaceChildren(el("div", { class: "empty" }, octopus(), el("p", {}, "Select a task to see its calls, and what it says while it runs.")));
}
const octopus = () => document.querySelector(".mark").cloneNode(true);

function makeDetail(id) {
  const say = (name) => el("dd", { "data-value": name });
  const value = (label, name) => el("div", {}, el("dt", {}, label), say(name));
  const parts = {
    pill: el("span", {}),
    goal: el("h3", { id: "goal" }, id),
    actions: el("div", { class: "actions" }),
    bad: el("p", { class: "bad", role: "alert", hidden: true }),
    facts: el("dl", { class: "facts" }, value("Contract", "contract"), value("Duration", "took"), value("Waited", "waited"), value("Tokens", "tokens"), value("Cost", "cost"), value("Calls", "calls"), value("Attempt", "attempt")),
    phases: el("ol", { class: "phases", "aria-label": "Phases" }, PHASES.map((phase) => el("li", { "data-phase": phase }, phase))),
    track: el("div", { class: "track", role: "progressbar", "aria-label": "Progress", "aria-valuemin": 0, "aria-valuemax": 100 }, el("i", {})),
    message: el("p", { class: "message" }),
    calls: el("section", { "aria-label": "Calls" }),
    text: el("section", { "aria-label": "Streamed output", hidden: true }),
    end: el("section", { "aria-label": "Result", hidden: true }),
    notes: el("ol", { class: "notes", "aria-label": "Updates, newest first" }),
  };
  parts.stream = el("div", { class: "stream", tabindex: "0" });
  parts.text.append(el("h4", {}, "Streamed output"), parts.stream);
  detail.parts = parts;
  $("detail").replaceChildren(
    el("div", { class: "detail-head" },
      el("a", { class: "back", href: "#/tasks" }, icon("back"), "Tasks"),
      parts.pill, el("code", { class: "id" }, id), parts.actions),
    parts.goal, parts.bad, parts.facts, parts.phases, parts.track, parts.message, parts.calls, parts.text, parts.end,
    el("details", { class: "log" }, el("summary", {}, "Updates"), parts.notes));
  $("detail").setAttribute("aria-labelledby", "goal");
}

function followTask(last = "") {
  const { id } = detail;
  detail.isLast = false;
  detail.feed = new Feed(`tasks/${id}/events`, {
    onEvent: (update) => { if (detail.id === id) onUpdate(update); },
    last,
    isOver: (feed) => detail.id !== id || detail.isLast || Boolean(detail.task && isFinished(detail.task.status) && feed.ends > 0),
    onState: (state, error) => {
      if (detail.id !== id) return;
      setLive("task", ["refused", "over"].includes(state) ? "" : state);
      if (state === "open") readTask();
      if (state === "refused" && error.status !== 401) lose(error);
    },
  });
  readTask();
}
// The task is not there, or not for this caller.
function lose(error) {
  const words = error.status === 404 ? "There is no such task, or it is not one of yours." : error.status === 403 ? "This token may not see this task." : error.message;
  const { id } = detail;
  closeTask();
  tasks.all.delete(id);
  paintTasks();
  document.body.dataset.detail = "open";
  $("detail").replaceChildren(el("a", { class: "back", href: "#/tasks" }, icon("back"), "Tasks"), el("div", { class: "empty" }, octopus(), el("p", {}, words)));
}

// Reads the task and its calls, at most once at a time.
async function readTask() {
  if (detail.reading) { detail.again = true; return; }
  const { id } = detail;
  [detail.reading, detail.again] = [true, false];
  try {
    const task = await ask(`tasks/${id}`);
    if (detail.id !== id) return;
    take(task);
    const page = await ask(`tasks/${id}/journal?limit=${MOST_CALLS}`);
    if (detail.id !== id) return;
    [detail.steps, detail.more] = [listOf(page.steps).filter(isObject), page.next !== null];
    paintCalls();
    paintTasks();
  } catch (error) {
    if (detail.id !== id) return;
    if (!(error instanceof Refused)) throw error;
    if (error.status === 404 || error.status === 403) return lose(error);
  } finally { if (detail.id === id) detail.reading = false; }
  clearTimeout(detail.timer);
  const isRunning = detail.task && !isFinished(detail.task.status);
  if (detail.again || isRunning) detail.timer = setTimeout(readTask, detail.again ? 250 : 1500);
}

function onUpdate(update) {
  switch (update.type) {
    case "chunk": return addChunk(update.data);
    case "progress":
      addNote(update.seq, "progress", `${update.progress} %`, [update.phase, update.message].filter(Boolean).join(": "));
      if (detail.task?.status === "processing") {
        const { progress } = detail.task;
        showProgress({ ...detail.task, progress: { ...progress, percentage: update.progress, current_step: update.phase, message: update.message } });
      }
      return soon();
    case "gap": return addNote(update.seq, "gap", "gap", `${plural(update.missed, "update")} no longer stored`);
    case "status":
      addNote(update.seq, known(update.status), update.status, update.error?.message || "");
      detail.isLast = isFinished(update.status);
      announce(`Task ${update.status}`);
      // Another run begins its output anew.
      if (["queued", "processing"].includes(update.status) && detail.text) { detail.text = ""; detail.parts.stream.replaceChildren(); }
      return readTask();
  }
}
function soon() {
  clearTimeout(detail.timer);
  detail.timer = setTimeout(readTask, 250);
}
function addNote(seq, kind, name, words) {
  detail.parts.notes.prepend(el("li", { class: kind }, el("span", { class: "seq" }, `#${seq}`), el("b", {}, name), " ", el("span", {}, words)));
  while (detail.parts.notes.children.length > MOST_NOTES) detail.parts.notes.lastChild.remove();
}
function addChunk(data) {
  const text = visible(typeof data === "string" ? data : `${JSON.stringify(data)}\n`);
  const { stream } = detail.parts;
  const isAtEnd = stream.scrollHeight - stream.scrollTop - stream.clientHeight < 30;
  detail.text += text;
  if (detail.text.length > MOST_TEXT) {
    detail.text = detail.text.slice(-MOST_TEXT / 2);
    stream.replaceChildren(`… ${detail.text}`);
  } else {
    (stream.lastChild || stream.appendChild(document.createTextNode(""))).appendData(text);
  }
  detail.parts.text.hidden = false;
  if (isAtEnd && detail.task?.status === "processing") stream.scrollTop = stream.scrollHeight;
}

function setValue(name, text) { write(detail.parts.facts.querySelector(`[data-value=${name}]`), text); }
// The time for which it has run, or null while that is not known.
function ranFor(task) {
  if (isFinished(task.status)) return task.metadata.duration_seconds * 1000;
  const begun = begunAt();
  return task.status === "processing" && begun ? now() - begun : null;
}
const startOf = (step) => (step.outcome === "unknown" ? timeOf(step.at) : timeOf(step.at) - step.duration_ms);
const begunAt = () => (detail.steps.length ? Math.min(...detail.steps.map(startOf)) : detail.task ? timeOf(detail.task.updated_at) : null);
const endOf = (task) => timeOf(task.completed_at || task.failed_at || task.updated_at);
// The time for which it has waited, where that can be told.
function waitedFor(task) {
  if (task.attempt !== 1) return null;
  if (task.status === "queued") return now() - timeOf(task.created_at);
  return isFinished(task.status) ? Math.max(0, endOf(task) - timeOf(task.created_at) - task.metadata.duration_seconds * 1000) : null;
}

function showTask(task) {
  const isNew = detail.task?.status !== task.status || detail.task?.attempt !== task.attempt;
  const wasOver = detail.task && isFinished(detail.task.status) && !isFinished(task.status);
  detail.task = task;
  const { parts } = detail;
  write(parts.goal, taskName(task));
  parts.goal.classList.toggle("long", taskName(task).length > 160);
  if (isNew) {
    parts.pill.replaceChildren(pill(task.status));
    paintActions(task);
    paintEnd(task);
    if (wasOver && detail.feed && detail.isLast) { // It was run again.
      detail.feed.close();
      followTask(detail.feed.last);
    }
  }
  setValue("contract", task.contract || "–");
  setValue("tokens", count(task.metadata.tokens_used || sum("tokens_used")));
  setValue("cost", money(task.metadata.cost_dollars || sum("cost_dollars")));
  setValue("attempt", String(task.attempt));
  showProgress(task);
  showTimes();
}
const sum = (name) => detail.steps.reduce((total, step) => total + (Number(step[name]) || 0), 0);
function showTimes() {
  const { task } = detail;
  if (!task) return;
  setValue("took", took(ranFor(task) ?? NaN));
  const waited = waitedFor(task);
  setValue("waited", waited === null ? "–" : took(waited));
  setValue("calls", detail.steps.length ? `${detail.steps.length}${detail.more ? "+" : ""}` : "0");
}
function showProgress(task) {
  const { parts } = detail;
  const { progress, status } = task;
  const percentage = status === "completed" ? 100 : progress.percentage;
  parts.track.firstChild.style.width = `${percentage}%`;
  parts.track.setAttribute("aria-valuenow", percentage);
  setClass(parts.track, `track ${known(status)}`);
  const here = PHASES.indexOf(progress.current_step);
  [...parts.phases.children].forEach((phase, index) => {
    const isDone = index < here || status === "completed";
    setClass(phase, isDone ? "done" : index === here && status !== "queued" ? `here ${known(status)}` : "");
    if (index === here && !isDone) phase.setAttribute("aria-current", "step"); else phase.removeAttribute("aria-current");
  });
  const waits = status === "queued" && task.run_at && timeOf(task.run_at) > now();
  write(parts.message, waits ? `It starts at ${at(moment, task.run_at)}.` : status === "processing" ? progress.message || "It runs." : "");
}

function paintActions(task) {
  const { parts, id } = detail;
  parts.actions.replaceChildren();
  if (["queued", "processing"].includes(task.status)) parts.actions.append(sure("Cancel task", "Cancel it?", () => act(`tasks/${id}`, "DELETE")));
  if (task.status === "failed") parts.actions.append(el("button", { type: "button", class: "main", onclick: () => rerun({}) }, "Run again"));
}
const rerun = (body) => act(`tasks/${detail.id}/rerun`, "POST", JSON.stringify(body));
// A button whose work is done at the second press, within 5 s.
function sure(words, question, work) {
  let timer;
  const calm = () => { clearTimeout(timer); button.classList.remove("sure"); write(button, words); };
  const button = el("button", { type: "button", class: "danger", onclick: () => {
    if (button.classList.contains("sure")) { calm(); return work(); }
    button.classList.add("sure");
    write(button, question);
    announce(`${question} Press again to confirm.`);
    timer = setTimeout(calm, 5000);
  }, onblur: () => calm() }, words);
  return button;
}
async function act(path, method, body) {
  const { id, parts } = detail;
  parts.bad.hidden = true;
  try {
    const task = await ask(path, { method, body });
    if (detail.id !== id) return;
    take(task);
    paintTasks();
    readTask();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (detail.id !== id || error.status === 401) return;
    write(parts.bad, error.status === 403 ? "This token may not do that." : error.message);
    parts.bad.hidden = false;
  }
}

function paintEnd(task) {
  const { end } = detail.parts;
  const { result, error } = task;
  end.replaceChildren();
  end.hidden = !result && !error;
  if (result) {
    const marks = [result.confidence == null ? "" : `confidence ${Math.round(result.confidence * 100)} %`, result.validation_passed == null ? "" : result.validation_passed ? "validation passed" : "validation failed"].filter(Boolean);
    end.append(el("h4", {}, "Output", marks.map((words) => el("span", { class: "chip" }, words))), typeof result.output === "string" ? el("div", { class: "stream", tabindex: "0" }, result.output.slice(0, LONGEST)) : jsonView(result.output));
  }
  if (error) {
    const marks = [error.type, error.retryable ? "retryable" : "", error.may_have_executed ? "may have run" : "", error.step == null ? "" : `step ${error.step}`].filter(Boolean);
    end.append(el("h4", {}, isFinished(task.status) ? "Error" : "Error of the attempt before", marks.map((words) => el("span", { class: "chip" }, words))), el("p", { class: "error" }, error.message), error.details == null || Object.keys(error.details).length === 0 ? "" : jsonView(error.details));
  }
}

// --- the calls of a task over time

const HUES = 7;
function hueOf(arm) {
  let hash = 0;
  for (const letter of arm) hash = (hash * 31 + letter.codePointAt(0)) % 9973;
  return hash % HUES;
}
function paintCalls() {
  const { steps, task, parts } = detail;
  if (!task) return;
  setValue("tokens", count(task.metadata.tokens_used || sum("tokens_used")));
  setValue("cost", money(task.metadata.cost_dollars || sum("cost_dollars")));
  showTimes();
  const open = new Set([...parts.calls.querySelectorAll("details[open]")].map((one) => one.dataset.step));
  const focused = document.activeElement?.closest?.("details")?.dataset.step;
  if (!steps.length) {
    parts.calls.replaceChildren(el("h4", {}, "Calls"), el("p", { class: "soft" }, isFinished(task.status) ? "It made no calls." : "No call is answered yet."));
    return;
  }
  const first = Math.min(...steps.map(startOf));
  const end = isFinished(task.status) ? Math.max(endOf(task), ...steps.map((step) => timeOf(step.at))) : Math.max(now(), first + 500);
  const created = timeOf(task.created_at);
  // The wait before is left out where it would leave no room for the calls.
  const begin = created <= first && first - created < 3 * (end - first) ? created : first;
  const span = Math.max(end - begin, 1);
  const part = (time) => `${Math.min(100, Math.max(0, ((time - begin) / span) * 100))}%`;
  // Calls of a batch begin at nearly one time: these are in the order of their numbers.
  const rank = (step) => Math.round((startOf(step) - begin) / 40);
  const rows = [...steps].sort((a, b) => rank(a) - rank(b) || String(a.step).localeCompare(String(b.step), "en", { numeric: true })).map((step) => {
    const isOpen = step.outcome === "unknown" && !isFinished(task.status);
    const bar = el("i", { class: `bar hue${hueOf(step.arm || step.contract)} ${step.outcome} ${isOpen ? "open" : ""}` });
    const ends = isOpen ? end : timeOf(step.at);
    bar.style.left = part(startOf(step));
    bar.style.width = `max(3px, ${((ends - startOf(step)) / span) * 100}%)`;
    const name = String(step.step);
    const row = el("details", { class: `call ${step.outcome}`, "data-step": name },
      el("summary", {},
        el("span", { class: "name" }, el("b", {}, /^\d+$/.test(name) ? `#${name}` : name), " ", el("span", { class: "contract" }, step.contract)),
        el("span", { class: "who" }, step.arm || (isOpen ? "running" : "no arm"), step.attempts > 1 ? el("span", { class: "chip warn" }, plural(step.attempts, "attempt")) : ""),
        el("span", { class: "lane" }, bar),
        el("span", { class: "time" }, isOpen ? took(end - startOf(step)) : took(step.duration_ms)),
        el("span", { class: "sr" }, step.outcome === "unknown" ? (isOpen ? "running" : "outcome unknown") : step.outcome)),
      aboutCall(step, task));
    row.open = open.has(name);
    return row;
  });
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((where) => {
    const tick = el("span", {}, where ? took(Math.round(span * where)) : "0");
    tick.style.left = `${where * 100}%`;
    return tick;
  });
  parts.calls.replaceChildren(el("h4", {}, "Calls"), el("div", { class: "axis", "aria-hidden": "true" }, el("div", {}, ticks)), el("div", { class: "calls" }, rows),
    detail.more ? el("p", { class: "soft" }, `The first ${MOST_CALLS} calls are shown.`) : "");
  if (focused !== undefined) rows.find((row) => row.dataset.step === focused)?.querySelector("summary").focus({ preventScroll: true });
}
function aboutCall(step, task) {
  const fact = (label, value) => (value === "" || value === null || value === undefined ? "" : el("div", {}, el("dt", {}, label), el("dd", {}, value)));
  const left = step.budget_left || {};
  return el("div", { class: "about" },
    el("dl", {}, fact("Outcome", step.outcome), fact("Endpoint", step.endpoint), fact("Answered", at(clock, step.at)), fact("Attempts", String(step.attempts)),
      fact("Tokens", count(step.tokens_used)), fact("Cost", money(step.cost_dollars)), fact("Time left at the call", step.time_left_ms == null ? "" : took(step.time_left_ms)),
      fact("Tokens left at the call", left.tokens == null ? "" : count(left.tokens)), fact("Cost left at the call", left.cost == null ? "" : money(left.cost))),
    step.error ? el("p", { class: "error" }, el("b", {}, step.error.type), " ", step.error.message) : "",
    task.status === "failed" ? el("button", { type: "button", onclick: () => rerun({ from: step.step }) }, "Run again from here") : "");
}
