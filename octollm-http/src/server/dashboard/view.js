
// --- elements, and the form of values

const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

// Control characters, and those that change the order of the characters around them. Line feeds and tabs stay.
const CONTROLS = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
// A text as it is displayed: the page does not say something else than the text that it has from others.
const visible = (text) => text.replace(CONTROLS, (control) => `\\u{${control.codePointAt(0).toString(16)}}`);
const SPOKEN = ["aria-label", "title"];

// All texts become text nodes and attributes, never markup.
function el(name, attributes, ...children) {
  return filled(document.createElement(name), attributes, children);
}
function draw(name, attributes, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}
function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === false || value === null) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : SPOKEN.includes(key) ? visible(String(value)) : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== null && child !== false && child !== "").map((child) => (child instanceof Node ? child : visible(String(child)))));
  return node;
}
// Writes a text only where it has changed, so that selections and readers of the screen are left alone.
function write(node, text) {
  const shown = visible(String(text));
  if (node.textContent !== shown) node.textContent = shown;
}
function setClass(node, name) {
  if (node.className !== name) node.className = name;
}

const RING = "M8 2.2a5.8 5.8 0 1 0 0 11.6 5.8 5.8 0 0 0 0-11.6";
const ICONS = {
  queued: [RING, "M8 4.9v3.3l2.2 1.4"],
  processing: ["M8 2.2A5.8 5.8 0 1 1 2.2 8"],
  completed: [RING, "m5.5 8.2 1.8 1.8 3.2-3.7"],
  failed: [RING, "m6 6 4 4m0-4-4 4"],
  cancelled: [RING, "M5.4 8h5.2"],
  auto: [RING, "M8 2.2v11.6M8 4.5a3.5 3.5 0 0 1 0 7"],
  light: ["M8 5a3 3 0 1 0 0 6 3 3 0 0 0 0-6M8 1.5v1.2M8 13.3v1.2M1.5 8h1.2M13.3 8h1.2M3.4 3.4l.8.8M11.8 11.8l.8.8M12.6 3.4l-.8.8M4.2 11.8l-.8.8"],
  dark: ["M13 9.6A5.5 5.5 0 0 1 6.4 3a5.5 5.5 0 1 0 6.6 6.6"],
  back: ["M9.5 3.5 5 8l4.5 4.5"],
};
const icon = (name) => draw("svg", { class: `icon ${name}`, viewBox: "0 0 16 16", "aria-hidden": "true" }, (ICONS[name] || [RING]).map((d) => draw("path", { d })));

const STATUSES = ["queued", "processing", "completed", "failed", "cancelled"];
const isFinished = (status) => ["completed", "failed", "cancelled"].includes(status);
const known = (status) => (STATUSES.includes(status) ? status : "unknown");
const pill = (status, words) => el("span", { class: `pill ${known(status)}` }, icon(known(status)), words || status);

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const count = (number) => (number < 10000 ? grouped : short).format(number);
const plural = (number, word) => `${grouped.format(number)} ${word}${number === 1 ? "" : "s"}`;
const money = (dollars) => (dollars === 0 ? "$0" : dollars < 0.01 ? `$${dollars.toPrecision(2)}` : `$${dollars.toFixed(dollars < 1 ? 3 : 2)}`);
function took(ms) {
  if (!Number.isFinite(ms)) return "–";
  if (ms < 1) return "< 1 ms";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60000) return `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
  if (ms < 3600000) return `${Math.floor(ms / 60000)} min ${Math.floor((ms % 60000) / 1000)} s`;
  if (ms < 86400000) return `${Math.floor(ms / 3600000)} h ${Math.floor((ms % 3600000) / 60000)} min`;
  return plural(Math.floor(ms / 86400000), "day");
}
function ago(ms) {
  if (ms < 1500) return "now";
  if (ms < 60000) return `${Math.floor(ms / 1000)} s`;
  if (ms < 3600000) return `${Math.floor(ms / 60000)} min`;
  if (ms < 86400000) return `${Math.floor(ms / 3600000)} h`;
  return `${Math.floor(ms / 86400000)} d`;
}
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 });
const moment = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
const timeOf = (text) => Date.parse(text);
const at = (format, text) => (Number.isFinite(timeOf(text)) ? format.format(timeOf(text)) : String(text));

// The clock of the server less that of the browser, where they differ by more than the way of an answer.
let skew = 0;
function skewOf(date) {
  const found = Date.parse(date || "") + 500 - Date.now();
  return Math.abs(found) > 2500 ? found : 0;
}
const now = () => Date.now() + skew;

const LONGEST = 100000;
// JSON with its keys, texts and numbers marked.
function jsonView(value) {
  let text = typeof value === "string" ? JSON.stringify(value) : JSON.stringify(value, null, 2);
  const more = text.length - LONGEST;
  text = text.slice(0, LONGEST);
  const pieces = text.split(/("(?:[^"\\]|\\.)*"?)/).map((piece, index, all) => {
    if (index % 2 === 0) return piece;
    return el("span", { class: /^\s*:/.test(all[index + 1] || "") ? "j-key" : "j-text" }, piece);
  });
  return el("pre", { tabindex: "0" }, pieces, more > 0 ? el("span", { class: "soft" }, `\n… ${count(more)} more characters`) : "");
}

// Announces something to readers of the screen.
const announce = (words) => write($("announcer"), words);

const SPARKS = 40;
// The course of a value, as a line over the last samples.
function spark(values, label) {
  const most = Math.max(...values, 1e-9);
  const points = values.map((value, index) => `${((index + SPARKS - values.length) * 100) / (SPARKS - 1)},${22 - (value / most) * 20}`);
  const line = points.length > 1 ? `M${points.join("L")}` : "";
  const first = points.length > 1 ? points[0].split(",")[0] : 0;
  return draw("svg", { class: "spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", role: "img", "aria-label": label },
    draw("path", { class: "area", d: line ? `${line}L100,24L${first},24Z` : "" }), draw("path", { class: "line", d: line }));
}
