// Draws charts like those of a run's report: same colours, dashes, sizes and scales. Under the
// pointer, or with the arrow keys, the legend reads the values of one round.

import { h } from "./elements.js";

const SIZES = { phone: [322, 200], desktop: [478, 240] };
const WIDE = { phone: [322, 220], desktop: [860, 290] };
const DASHES = [null, "6 2.5", "1.5 2", "8 2 1.5 2", "3 3", "10 4"];
const LEFT = 46, RIGHT = 10, TOP = 10, BOTTOM = 34;

const drawn = new Map(); // by identifier: the chart that is on the page
const cursors = new Map(); // by identifier: the x that is read
let redraw = () => {};

const short = (value) =>
  value !== 0 && (Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3)
    ? value.toExponential(1)
    : Number(value.toPrecision(4)).toLocaleString("en");

function written(chart, value) {
  if (value === null || value === undefined) return "–";
  return chart.scale === "percent" ? `${(100 * value).toFixed(1)} %` : short(value);
}

/** Round numbers from low to high, about as many as asked for. */
function ticks(low, high, most, whole) {
  const raw = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(raw || 1));
  let step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw) ?? power;
  if (whole) step = Math.max(1, Math.round(step));
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) found.push(at * step);
  return found;
}

function decades(low, high) {
  const wide = Math.log10(high / low) >= 2.5;
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const times of wide ? [1] : [1, 2, 5]) {
      const tick = times * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001) found.push(tick);
    }
  }
  return found;
}

function extent(chart) {
  let values = chart.series.flatMap((each) => each.y).filter((each) => each !== null);
  if (chart.reference) values = values.concat(chart.reference[0]);
  if (chart.scale === "log") values = values.filter((each) => each > 0);
  if (!values.length) return chart.scale === "log" ? [1, 10] : [0, 1];
  return values.reduce(([low, high], each) => [Math.min(low, each), Math.max(high, each)], [Infinity, -Infinity]);
}

function vertical(chart, height) {
  let [low, high] = extent(chart);
  const span = height - TOP - BOTTOM;
  if (chart.scale === "log") {
    [low, high] = [low / 1.15, high * 1.15];
    const place = (value) => TOP + span * (1 - Math.log(value / low) / Math.log(high / low));
    return { place, marks: decades(low, high), shows: (value) => value > 0, write: short };
  }
  if (chart.floor !== null) low = Math.min(low, chart.floor);
  const margin = 0.04 * (high - low) || Math.max(Math.abs(high), 1) * 0.1;
  let bottom = chart.floor !== null && low === chart.floor ? low : low - margin;
  let top = high + margin;
  let write = short;
  if (chart.scale === "percent") {
    bottom = Math.max(bottom, 0);
    top = Math.min(Math.max(top, 0.01), 1);
    if (top <= bottom) bottom = Math.max(0, top - 0.1);
    const digits = top - bottom >= 0.04 ? 0 : 1;
    write = (value) => `${(100 * value).toFixed(digits)} %`;
  }
  const place = (value) => TOP + (span * (top - value)) / (top - bottom);
  return { place, marks: ticks(bottom, top, 5, false), shows: () => true, write };
}

function horizontal(chart, width) {
  const all = chart.series.flatMap((each) => each.x);
  let low = Math.min(...all), high = Math.max(...all);
  if (!(high > low)) [low, high] = [low - 0.5, high + 0.5];
  const room = width - LEFT - RIGHT, pad = 0.02 * room;
  const place = (value) => LEFT + pad + ((room - 2 * pad) * (value - low)) / (high - low);
  const back = (at) => low + ((at - LEFT - pad) * (high - low)) / (room - 2 * pad);
  return { place, back, marks: ticks(low, high, width < 400 ? 5 : 9, true) };
}

function path(series, x, y) {
  let text = "", pen = "M";
  series.y.forEach((value, at) => {
    if (value === null || !y.shows(value)) {
      pen = "M";
      return;
    }
    text += `${pen}${x.place(series.x[at]).toFixed(1)} ${y.place(value).toFixed(1)}`;
    pen = "L";
  });
  return text;
}

function svg(chart, id, [width, height]) {
  const x = horizontal(chart, width), y = vertical(chart, height);
  const floor = height - BOTTOM;
  const at = cursors.get(id);
  const parts = [];
  for (const tick of y.marks) {
    parts.push(h("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y.place(tick), y2: y.place(tick) }));
    parts.push(h("text", { class: "tick", x: LEFT - 6, y: y.place(tick) + 3.8, "text-anchor": "end" }, y.write(tick)));
  }
  parts.push(h("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: floor, y2: floor }));
  for (const tick of x.marks) {
    parts.push(h("line", { class: "axis", x1: x.place(tick), x2: x.place(tick), y1: floor, y2: floor + 3.5 }));
    parts.push(h("text", { class: "tick", x: x.place(tick), y: floor + 15, "text-anchor": "middle" }, short(tick)));
  }
  parts.push(h("text", { class: "tick", x: (LEFT + width - RIGHT) / 2, y: height - 4, "text-anchor": "middle" }, chart.axis));
  if (chart.reference) {
    const level = y.place(chart.reference[0]);
    parts.push(h("line", { class: "reference", x1: LEFT, x2: width - RIGHT, y1: level, y2: level, "stroke-dasharray": "2 3" }));
  }
  if (at !== undefined) {
    parts.push(h("line", { class: "cursor", x1: x.place(at), x2: x.place(at), y1: TOP, y2: floor }));
  }
  chart.series.forEach((each, index) => {
    const hue = `s${(index % 6) + 1}`;
    parts.push(h("path", { class: `line ${hue}`, d: path(each, x, y), "stroke-dasharray": DASHES[index % 6] }));
    const points = each.x.length === 1 ? [0] : at === undefined ? [] : [each.x.indexOf(at)];
    for (const point of points) {
      const value = each.y[point];
      if (point < 0 || value === null || value === undefined || !y.shows(value)) continue;
      parts.push(h("circle", { class: `dot ${hue}`, cx: x.place(each.x[point]), cy: y.place(value), r: 3 }));
    }
  });
  return h(
    "svg",
    { class: "chart", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", focusable: "false", "data-at": at },
    parts,
  );
}

const swatch = (line, dashes) =>
  h("svg", { class: "swatch", viewBox: "0 0 22 8", "aria-hidden": "true" }, h("path", { class: line, d: "M1 4H21", "stroke-dasharray": dashes }));

/** The figure of a chart. */
export function figure(chart, id, { wide = false } = {}) {
  drawn.set(id, chart);
  const at = cursors.get(id);
  const read = (each) => (at === undefined ? each.value : written(chart, each.y[each.x.indexOf(at)]));
  const legend = chart.series.map((each, index) =>
    h("li", {}, swatch(`s${(index % 6) + 1}`, DASHES[index % 6]), h("span", {}, `${each.label} `, h("b", {}, read(each)))),
  );
  if (chart.reference) legend.push(h("li", {}, swatch("reference", "2 3"), h("span", {}, chart.reference[1])));
  const summary = at === undefined ? chart.summary : `${chart.axis} ${at}: ` + chart.series.map((each) => `${each.label} ${read(each)}`).join(", ");
  return h(
    "figure",
    { class: wide ? "card plot wide" : "card plot", role: "group", tabindex: 0, "data-chart": id, "data-key": id, "aria-label": `${chart.title}. ${summary}` },
    h(
      "figcaption",
      {},
      h("div", {}, h("h4", {}, chart.title), at === undefined ? chart.note && h("p", { class: "fine" }, chart.note) : h("p", { class: "fine" }, `${chart.axis} ${short(at)}`)),
      h("ul", { class: "legend" }, legend),
    ),
    Object.entries(wide ? WIDE : SIZES).map(([size, pixels]) => h("div", { class: `for-${size}` }, svg(chart, id, pixels))),
  );
}

/** The x that a chart knows nearest to one. */
function nearest(chart, wanted) {
  const all = [...new Set(chart.series.flatMap((each) => each.x))];
  return all.reduce((best, each) => (Math.abs(each - wanted) < Math.abs(best - wanted) ? each : best), all[0]);
}

function move(id, x) {
  if (cursors.get(id) === x) return;
  if (x === undefined) cursors.delete(id);
  else cursors.set(id, x);
  redraw();
}

const chartOf = (event) => (event.target instanceof Element ? event.target.closest("[data-chart]") : null);

function pointed(event) {
  const host = chartOf(event), shown = event.target instanceof Element ? event.target.closest("svg.chart") : null;
  if (!host || !shown) return;
  const chart = drawn.get(host.dataset.chart), box = shown.getBoundingClientRect();
  if (!chart?.series.length) return;
  const [, , width] = shown.getAttribute("viewBox").split(" ").map(Number);
  const at = ((event.clientX - box.left) * width) / box.width;
  move(host.dataset.chart, nearest(chart, horizontal(chart, width).back(at)));
}

function pressed(event) {
  const host = chartOf(event);
  const chart = host && drawn.get(host.dataset.chart);
  if (!chart?.series.length) return;
  const id = host.dataset.chart;
  if (event.key === "Escape") return move(id, undefined);
  const all = [...new Set(chart.series.flatMap((each) => each.x))].sort((one, other) => one - other);
  const here = cursors.has(id) ? all.indexOf(cursors.get(id)) : null;
  const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const from = here ?? (event.key === "ArrowRight" ? -1 : all.length);
  move(id, all[Math.max(0, Math.min(all.length - 1, from + steps[event.key]))]);
}

/** Reads charts under the pointer and by keyboard; `again` shows the page again. */
export function readCharts(again) {
  redraw = again;
  document.addEventListener("pointermove", pointed);
  document.addEventListener("pointerdown", pointed);
  document.addEventListener("pointerout", (event) => {
    const host = chartOf(event);
    if (host && !host.contains(event.relatedTarget) && event.pointerType === "mouse") move(host.dataset.chart, undefined);
  });
  document.addEventListener("keydown", pressed);
}
