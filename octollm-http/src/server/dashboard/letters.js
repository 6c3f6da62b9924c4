
// --- dead letters

const LETTERS = 20;
const letters = { group: "", next: null };

async function listLetters(group, after) {
  if (letters.group !== group || !after) $("letters").replaceChildren();
  letters.group = group;
  $("group").value = group;
  sayLetters("Loading.");
  try {
    const page = await ask(`dead-letters?${new URLSearchParams({ group, limit: LETTERS, ...(after ? { after } : {}) })}`);
    if (letters.group !== group) return;
    letters.next = page.next;
    // One page at a time.
    $("letters").replaceChildren(...listOf(page.dead_letters).filter(isObject).map(makeLetter));
    sayLetters();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    [letters.next, $("letters-more").hidden] = [null, true];
    sayLetters(error.status === 403 ? "This token may not see dead letters." : error.status === 404 ? `There is no group ${group}.` : error.status === 401 ? "A token is needed." : error.message);
  }
}
function sayLetters(words) {
  const number = $("letters").children.length;
  write($("letters-note"), words || (number ? `${plural(number, "dead letter")} on this page` : "This group has no dead letters."));
  $("letters-more").hidden = !letters.next;
}

function makeLetter(letter) {
  const event = isObject(letter.event) ? letter.event : undefined;
  const bad = el("p", { class: "bad", role: "alert" });
  const node = el("li", { class: "letter" },
    el("div", { class: "letter-head" }, el("span", { class: "pill failed" }, icon("failed"), event ? String(event.event_type) : "no event"), el("b", {}, letter.reason),
      event ? el("button", { type: "button", "aria-label": `Deliver ${event.event_type} ${letter.id} again`, onclick: (click) => replay(letter, node, click.currentTarget, bad) }, "Deliver again") : ""),
    el("p", { class: "soft" }, plural(letter.attempts, "attempt"), event ? [" · ", at(moment, event.timestamp), " · ", el("code", {}, event.subject || event.source), " · ", summaryOf(event)] : ""),
    bad,
    el("details", {}, el("summary", {}, "Event and attempts"),
      el("ul", { class: "history" }, listOf(letter.history).filter(isObject).map((attempt) => el("li", {}, el("time", {}, at(moment, attempt.at)), " ", el("span", { class: "error" }, attempt.reason), " ", el("code", { class: "soft" }, attempt.consumer)))),
      jsonView(event || letter.bytes || "")));
  return node;
}
async function replay(letter, node, button, bad) {
  button.disabled = true;
  write(bad, "");
  try {
    await ask(`dead-letters/${encodeURIComponent(letter.id)}/replay?${new URLSearchParams({ group: letters.group })}`, { method: "POST" });
    const next = node.nextElementSibling || node.previousElementSibling;
    node.remove();
    announce("It is delivered again.");
    sayLetters();
    (next?.querySelector("button") || $("group")).focus();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    write(bad, error.status === 403 ? "This token may not do that." : error.status === 404 ? "It is no longer there." : error.message);
    button.disabled = false;
  }
}

function setUpLetters() {
  $("letters-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const group = $("group").value.trim();
    if (!group) return;
    if (location.hash === `#/dead-letters/${encodeURIComponent(group)}`) listLetters(group);
    else location.hash = `#/dead-letters/${encodeURIComponent(group)}`;
  });
  $("letters-more").addEventListener("click", () => listLetters(letters.group, letters.next));
}
