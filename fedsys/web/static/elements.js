// Builds the page. Text from devices, files and operators becomes text nodes and attribute values,
// never markup: nothing here, or anywhere else in these scripts, parses HTML.

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = new Set(["svg", "g", "path", "line", "rect", "circle", "text", "title"]);

/** An element; `null` and `false` are left out of attributes and children. */
export function h(tag, attributes = {}, ...children) {
  const made = DRAWN.has(tag)
    ? document.createElementNS(SVG, tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    made.setAttribute(name, value === true ? "" : String(value));
  }
  append(made, children);
  return made;
}

function append(parent, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false || child === "") continue;
    if (Array.isArray(child)) append(parent, child);
    else parent.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

const keyOf = (node) => node?.dataset?.key ?? null;

/** Makes an element like another one, in place: what did not change keeps focus and scroll. */
export function patch(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    const users = old.nodeName === "DETAILS" && name === "open";
    if (!fresh.hasAttribute(name) && !users) old.removeAttribute(name);
  }
  for (const { name, value } of [...fresh.attributes]) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const keyed = new Map();
  for (const child of old.childNodes) if (keyOf(child)) keyed.set(keyOf(child), child);
  let at = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const key = keyOf(child);
    const match = key ? keyed.get(key) : keyOf(at) ? null : at;
    if (!match) {
      old.insertBefore(child, at);
    } else if (match === at) {
      at = at.nextSibling;
      patch(match, child);
    } else {
      old.insertBefore(match, at);
      patch(match, child);
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

// -- words ------------------------------------------------------------------------------------------

export const chip = (tone, ...text) => h("span", { class: `chip tone-${tone}` }, ...text);

export function ago(seconds) {
  if (seconds === null || seconds === undefined) return "never";
  const past = Date.now() / 1000 - seconds;
  if (past < 5) return "now";
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (past >= size) return `${Math.floor(past / size)} ${unit} ago`;
  }
  return `${Math.floor(past)} s ago`;
}

export function clock(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  return new Date(seconds * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
}

export function day(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  return new Date(seconds * 1000).toISOString().slice(0, 10);
}

export const time = (seconds, text) =>
  h(
    "time",
    { datetime: seconds ? new Date(seconds * 1000).toISOString() : null, title: clock(seconds) },
    text,
  );

export function bytes(count) {
  for (const [size, unit] of [[2 ** 40, "TiB"], [2 ** 30, "GiB"]]) {
    if (count >= size) return `${(count / size).toFixed(1)} ${unit}`;
  }
  return `${Math.round(count / 2 ** 20)} MiB`;
}

export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

/** A name with a capital; symbols such as δ stay as they are. */
export const capital = (text) => text.replace(/^[a-z]/, (letter) => letter.toUpperCase());

/** A bar from 0 to 1 with its meaning in words. */
export const bar = (part, label, tone = "accent") =>
  h("progress", { class: `bar tone-${tone}`, max: 1, value: part.toFixed(4), "aria-label": label });

export const STATUS = {
  running: "good",
  completed: "note",
  submitted: "unknown",
  waiting: "warning",
  paused: "warning",
  stopped: "warning",
  interrupted: "warning",
  cancelled: "unknown",
  "budget-exhausted": "warning",
  failed: "danger",
  lost: "danger",
};

export const statusChip = (status) =>
  chip(STATUS[status] ?? "unknown", status.replace("-", " "));

/** The charts of a run, two in a row; the last one of an odd number has the row to itself. */
export const charts = (run, key, figure) =>
  run.charts.length > 0 &&
  h(
    "div",
    { class: "plots" },
    run.charts.map((chart, at) =>
      figure(chart, `${key}-${chart.title}`, { wide: at % 2 === 0 && at === run.charts.length - 1 }),
    ),
  );

/** What a run has spent in each view, against its budget. */
export function viewCards(run) {
  if (!run.views.length) return null;
  return h(
    "div",
    { class: "spent" },
    run.views.map((view) =>
      h(
        "div",
        { class: "card view", "data-key": view.view },
        h("h4", {}, view.title),
        h(
          "p",
          { class: "epsilon" },
          h("span", { class: "symbol" }, "ε"),
          view.epsilon,
          chip(view.tone, view.tier),
        ),
        view.part === null
          ? h("p", { class: "fine" }, run.delta === "–" ? "" : `at δ = ${run.delta}`)
          : h(
              "div",
              { class: "budget" },
              bar(view.part, `${view.epsilon} of ${run.budget}`, view.part > 0.9 ? "warning" : "accent"),
              h("p", { class: "fine" }, `budget ${run.budget}, the guaranteed view`),
            ),
      ),
    ),
  );
}

/** Pairs of a name and a value. */
export const facts = (pairs) =>
  h(
    "dl",
    { class: "facts" },
    pairs
      .filter(([, value]) => value !== null && value !== undefined && value !== "")
      .map(([name, value]) => h("div", { "data-key": name }, h("dt", {}, capital(name)), h("dd", {}, value))),
  );

/** A scrolling table; cells are text or elements. */
export function table(label, kind, columns, rows) {
  return h(
    "div",
    { class: "scroll card", tabindex: 0, role: "region", "aria-label": label },
    h(
      "table",
      { class: kind },
      h(
        "thead",
        {},
        h("tr", {}, columns.map((name, at) => h("th", { scope: "col", class: at ? null : "first" }, name))),
      ),
      h("tbody", {}, rows),
    ),
  );
}
