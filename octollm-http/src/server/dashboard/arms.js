
// --- arms: their cards, and what the client of this process has measured with them

const MOST_ARMS = 200;
const arms = { cards: [], tag: "", body: undefined, measured: new Map(), nodes: new Map(), before: undefined, polls: [], seen: 0 };
const totals = { rates: [], running: [], queued: undefined, ended: undefined, before: undefined };

// The samples of the metrics that begin with one of these names.
function parseMetrics(text, wanted) {
  const found = [];
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match || !wanted.has(match[1])) continue;
    const labels = Object.create(null);
    for (const [, name, value] of (match[2] || "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[name] = value.replace(/\\(.)/g, (_, letter) => (letter === "n" ? "\n" : letter));
    found.push({ name: match[1], labels, value: Number(match[3]) });
  }
  return found;
}
const WANTED = new Set(["octollm_client_requests_total", "octollm_client_request_duration_seconds_sum", "octollm_client_request_duration_seconds_count", "octollm_client_connections",
  "octollm_client_waiting", "octollm_breaker_endpoints", "octollm_breaker_rejected_total", "octollm_tasks_running", "octollm_tasks_queued", "octollm_tasks_ended_total"]);

function measure(samples, time) {
  const byArm = new Map();
  const of = (arm) => byArm.get(arm) || byArm.set(arm, { ok: 0, bad: 0, seconds: 0, answers: 0, busy: 0, waiting: 0, breaker: {}, rejected: 0 }).get(arm);
  const whole = { running: 0, queued: 0, completed: 0, failed: 0, cancelled: 0, calls: 0 };
  for (const { name, labels, value } of samples) {
    const arm = labels.arm ? of(labels.arm) : undefined;
    switch (name) {
      case "octollm_tasks_running": whole.running += value; break;
      case "octollm_tasks_queued": whole.queued += value; break;
      case "octollm_tasks_ended_total": whole[labels.status] = (whole[labels.status] || 0) + value; break;
      case "octollm_client_requests_total": whole.calls += value; if (arm) arm[labels.code === "ok" ? "ok" : "bad"] += value; break;
      case "octollm_client_request_duration_seconds_sum": if (arm) arm.seconds += value; break;
      case "octollm_client_request_duration_seconds_count": if (arm) arm.answers += value; break;
      case "octollm_client_connections": if (arm && labels.state === "in_use") arm.busy += value; break;
      case "octollm_client_waiting": if (arm) arm.waiting += value; break;
      case "octollm_breaker_endpoints": if (arm) arm.breaker[labels.state] = value; break;
      case "octollm_breaker_rejected_total": if (arm) arm.rejected += value; break;
    }
  }
  const { before } = totals;
  const passed = before ? (time - before.time) / 1000 : 0;
  const grown = (value, earlier) => (value >= earlier ? value - earlier : value); // A process that has started again counts from 0.
  for (const [id, arm] of byArm) {
    const earlier = before?.byArm.get(id);
    const past = arms.measured.get(id);
    const calls = earlier ? grown(arm.ok + arm.bad, earlier.ok + earlier.bad) : 0;
    const answers = earlier ? grown(arm.answers, earlier.answers) : 0;
    arms.measured.set(id, {
      ...arm,
      rate: passed ? calls / passed : 0,
      failing: calls && earlier ? grown(arm.bad, earlier.bad) / calls : 0,
      latency: answers ? (grown(arm.seconds, earlier.seconds) / answers) * 1000 : past?.latency ?? (arm.answers ? (arm.seconds / arm.answers) * 1000 : NaN),
      rates: [...(past?.rates || []), passed ? calls / passed : 0].slice(-SPARKS),
    });
  }
  const step = (list, value) => { list.push(value); list.splice(0, list.length - SPARKS); };
  step(totals.running, whole.running);
  step(totals.rates, passed ? grown(whole.calls, before.whole.calls) / passed : 0);
  totals.before = { time, byArm, whole, names: new Set(samples.map((sample) => sample.name)) };
}

async function readMetrics(signal) {
  const answer = await request("metrics", { accept: "text/plain", signal });
  measure(parseMetrics(await answer.text(), WANTED), performance.now());
  paintTiles();
  if (!$("view-arms").hidden) paintArms();
}

function paintTiles() {
  const { whole, names } = totals.before;
  // A process without a brain, such as a reflex, knows nothing of the tasks: it has no figures, rather than zeros.
  const hasBrain = names.has("octollm_tasks_running");
  const tiles = [
    [hasBrain, "Running", count(whole.running), totals.running, "tasks that run"],
    [names.has("octollm_tasks_queued"), "Queued", count(whole.queued), null, ""],
    [hasBrain, "Completed", count(whole.completed), null, ""],
    [hasBrain, "Failed", count(whole.failed), null, whole.failed ? "bad" : ""],
    [hasBrain || names.has("octollm_client_requests_total"), "Calls per second", totals.rates.at(-1).toFixed(1), totals.rates, "calls per second"],
  ];
  $("tiles").hidden = !tiles.some(([isKnown]) => isKnown);
  $("tiles").title = "Of this process, for all callers, since its start";
  if (!$("tiles").children.length) $("tiles").append(...tiles.map(() => el("div", { class: "tile" }, el("span", { class: "label" }), el("b", {}))));
  tiles.forEach(([isKnown, label, value, values, words], index) => {
    const node = $("tiles").children[index];
    node.hidden = !isKnown;
    write(node.children[0], label);
    write(node.children[1], value);
    setClass(node, `tile ${words === "bad" ? "bad" : ""}`);
    node.querySelector("svg")?.remove();
    if (values) node.append(spark(values, `The last ${values.length} values of ${words}`));
  });
}

async function readArms(signal) {
  const answer = await request("arms", { headers: arms.tag ? { "if-none-match": arms.tag } : {}, signal });
  if (answer.status !== 304) {
    arms.tag = answer.headers.get("etag") || "";
    arms.cards = listOf((await answer.json()).arms).filter((card) => isObject(card) && typeof card.arm_id === "string");
  }
  arms.seen = Date.now();
  paintArms();
}

const WORST = ["healthy", "degraded", "unavailable"];
function paintArms() {
  const byId = new Map();
  for (const card of arms.cards) byId.set(card.arm_id, [...(byId.get(card.arm_id) || []), card]);
  for (const id of arms.measured.keys()) if (!byId.has(id)) byId.set(id, []);
  const ids = [...byId.keys()].sort().slice(0, MOST_ARMS);
  for (const [id, node] of arms.nodes) if (!ids.includes(id)) { node.node.remove(); arms.nodes.delete(id); }
  write($("arms-note"), byId.size ? `${plural(byId.size, "arm")}, ${plural(arms.cards.length, "process").replace(/processs$/, "processes")}` : "No arm is known here.");
  ids.forEach((id, index) => {
    let card = arms.nodes.get(id);
    if (!card) { card = makeArm(id); arms.nodes.set(id, card); }
    paintArm(card, byId.get(id), arms.measured.get(id));
    if ($("arms").children[index] !== card.node) $("arms").insertBefore(card.node, $("arms").children[index] || null);
  });
}
function makeArm(id) {
  const parts = { state: el("span", {}), words: el("p", { class: "soft" }), breaker: el("div", { class: "breaker" }), load: el("dl", { class: "facts" }), course: el("div", { class: "course" }), about: el("div", {}) };
  const node = el("article", { class: `card hue${hueOf(id)}`, "aria-label": id }, el("div", { class: "card-head" }, el("h3", {}, id), parts.state), parts.words, parts.course, parts.load, parts.breaker,
    el("details", {}, el("summary", {}, "Contracts and processes"), parts.about));
  return { ...parts, node, written: "" };
}
function paintArm(card, cards, measured) {
  const [first] = cards;
  const healthy = cards.filter((one) => one.status === "healthy").length;
  const worst = cards.length ? WORST[Math.min(...cards.map((one) => Math.max(0, WORST.indexOf(one.status))))] : "not listed";
  const words = cards.length > 1 ? `${healthy} of ${cards.length} healthy` : worst;
  if (card.said !== `${worst} ${words}`) {
    card.said = `${worst} ${words}`;
    card.state.replaceChildren(el("span", { class: `health ${worst}` }, words));
  }
  write(card.words, first?.description || "");
  const fact = (label, value, kind) => el("div", { class: kind || "" }, el("dt", {}, label), el("dd", {}, value));
  const m = measured;
  const shown = JSON.stringify([m?.rate, m?.failing, m?.latency, m?.busy, m?.waiting, m?.breaker, m?.rejected]);
  if (card.shown !== shown || m) {
    card.shown = shown;
    card.course.replaceChildren(m ? spark(m.rates, `Calls per second: ${m.rate.toFixed(1)}`) : el("p", { class: "soft small" }, totals.before ? "Not called yet." : ""));
    card.load.replaceChildren(...(m ? [fact("Calls / s", m.rate.toFixed(1)), fact("Latency", took(m.latency)), fact("Failing", `${Math.round(m.failing * 100)} %`, m.failing > 0.1 ? "bad" : ""), fact("Load", m.waiting ? `${m.busy} + ${m.waiting} waiting` : String(m.busy), m.waiting ? "warn" : "")] : []));
    const states = [["closed", "closed"], ["half_open", "half open"], ["open", "open"]].filter(([state]) => m?.breaker[state]);
    card.breaker.replaceChildren(...(states.length ? [el("span", { class: "soft" }, "Breaker"), ...states.map(([state, name]) => el("span", { class: `chip breaker-${state}` }, m.breaker[state] > 1 ? `${name} × ${m.breaker[state]}` : name))] : []), m?.rejected ? el("span", { class: "soft" }, `${plural(m.rejected, "call")} rejected`) : "");
  }
  const about = JSON.stringify(cards.map((one) => [one.endpoint, one.status, one.version, one.instance, listOf(one.contracts).length]));
  if (card.written === about) return;
  card.written = about;
  card.about.replaceChildren(el("ul", { class: "contracts" }, listOf(first?.contracts).filter(isObject).map((contract) => el("li", {}, el("code", {}, contract.version > 1 ? `${contract.name}@${contract.version}` : contract.name),
    " ", el("span", { class: "soft" }, [contract.title || contract.summary, contract.idempotent ? "idempotent" : "", contract.timeout_ms ? `at most ${took(contract.timeout_ms)}` : ""].filter(Boolean).join(" · "))))),
  el("ul", { class: "contracts" }, cards.map((one) => el("li", {}, el("span", { class: `health ${one.status}` }, one.status), " ", el("code", {}, one.endpoint || "no URL"), " ", el("span", { class: "soft" }, [one.version ? `version ${one.version}` : "", one.cost_tier ? `cost tier ${one.cost_tier}` : ""].filter(Boolean).join(" · "))))));
}

function followArms() { arms.polls.push(new Poll(5000, readArms, "arms")); }
function leaveArms() { arms.polls.splice(0).forEach((poll) => poll.close()); }
