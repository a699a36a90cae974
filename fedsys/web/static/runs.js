// The researcher's page: runs below a folder, live, and side by side.

import { figure, readCharts } from "./chart.js";
import { ago, bar, capital, charts, chip, count, facts, h, statusChip, table, time, viewCards } from "./elements.js";
import { ask, follow, onAction } from "./live.js";

const MOST_COMPARED = 12;
const chosen = new Set();
let compared = null; // the answer, or an error's text
let wanted = "";
let sections = new Map();

const address = (key) => `#run/${encodeURIComponent(key)}`;

function current(runs) {
  const key = location.hash.startsWith("#run/") ? decodeURIComponent(location.hash.slice(5)) : "";
  return runs.find((run) => run.key === key) ?? runs[0];
}

const epsilonOf = (run, view) => run.views.find((each) => each.view === view)?.epsilon ?? "–";
const metric = (run, name) => run.metrics.find(([each]) => each === name)?.[1] ?? "–";

function row(run, shown, names) {
  const done = run.rounds ? run.round / run.rounds : 0;
  return h(
    "tr",
    { "data-key": run.key, class: run === shown ? "chosen" : null },
    h("td", { class: "pick" }, h("input", { type: "checkbox", "data-do": "pick", "data-run": run.key, "aria-label": `Compare ${run.key}` })),
    h("th", { scope: "row" }, h("a", { href: address(run.key), "aria-current": run === shown ? "true" : null }, run.key), h("span", { class: "fine labels" }, [run.task, run.mechanism].filter(Boolean).join(" · "))),
    h("td", { "data-label": "Status" }, statusChip(run.status)),
    h("td", { "data-label": "Round" }, h("span", { class: "rounds" }, run.rounds ? `${run.round} of ${run.rounds}` : "–", run.rounds > 0 && bar(done, `round ${run.round} of ${run.rounds}`, run.status === "running" ? "good" : "unknown"))),
    names.map((name) => h("td", { "data-label": capital(name), class: "figure" }, metric(run, name))),
    h("td", { "data-label": "ε outsider", class: "figure" }, run.withheld ? chip("warning", "withheld") : epsilonOf(run, "outsider")),
    h("td", { "data-label": "Last written" }, time(run.written, ago(run.written))),
  );
}

function metricNames(runs) {
  const counts = new Map();
  for (const run of runs) for (const [name] of run.metrics) counts.set(name, (counts.get(name) ?? 0) + 1);
  const leading = ["accuracy", "loss"];
  const rank = (name) => (leading.includes(name) ? leading.indexOf(name) : leading.length);
  return [...counts.keys()].sort((one, other) => rank(one) - rank(other) || counts.get(other) - counts.get(one)).slice(0, 2);
}

function list(page, runs, shown) {
  const words = wanted.toLowerCase().split(/\s+/).filter(Boolean);
  const found = runs.filter((run) => words.every((word) => `${run.key} ${run.task} ${run.mechanism} ${run.status}`.toLowerCase().includes(word)));
  const names = metricNames(runs);
  const going = runs.filter((run) => run.status === "running").length;
  return h(
    "section",
    { id: "runs", "data-key": "runs", "aria-labelledby": "runs-title", tabindex: -1 },
    h("div", { class: "title" }, h("h1", { id: "runs-title" }, "Runs"), h("p", { class: "fine" }, h("code", {}, page.root), ` · ${count(runs.length, "run")}, ${going} training · fedsys ${page.version}`)),
    h(
      "div",
      { class: "tools" },
      h("button", { type: "button", class: "main", "data-do": "compare", disabled: chosen.size === 0 }, chosen.size ? `Compare ${chosen.size}` : "Compare"),
      chosen.size > 0 ? h("button", { type: "button", "data-do": "clear", "data-key": "clear" }, "Clear") : h("span", { class: "fine", "data-key": "hint" }, "Tick runs to compare them."),
      h("input", { type: "search", "data-do": "search", "data-key": "search", placeholder: "Name, task or status", "aria-label": "Search runs", autocomplete: "off", spellcheck: "false" }),
    ),
    found.length
      ? table("Runs", "runs", ["", "Run", "Status", "Round", ...names.map(capital), "ε outsider", "Last written"], found.map((run) => row(run, shown, names)))
      : h("p", { class: "card empty" }, runs.length ? "No run matches." : "No run here yet. Start one with fedsys simulate."),
  );
}

function detail(run) {
  return h(
    "section",
    { id: "run", "data-key": "run", "aria-label": `Run ${run.key}` },
    h("div", { class: "headline" }, h("h2", {}, run.key), statusChip(run.status)),
    facts([
      ["Round", run.rounds ? `${run.round} of ${run.rounds}` : ""],
      ...run.metrics.map(([name, value]) => [name, value]),
      ["Task", run.task],
      ["Mechanism", run.mechanism],
      ["δ", run.delta === "–" ? "" : run.delta],
      ["Last written", time(run.written, ago(run.written))],
    ]),
    run.withheld && h("p", { class: "banner tone-warning" }, h("strong", {}, "No privacy claim: "), run.withheld),
    viewCards(run),
    charts(run, run.key, figure),
    run.problem && h("p", { class: "fine" }, `The ledger cannot be shown: ${run.problem}`),
    h(
      "dl",
      { class: "card list" },
      [["Folder", run.folder], ["Ledger head", run.head], ["Audit", `fedsys audit ${run.folder}`]].filter(([, text]) => text).map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, h("code", {}, text)))),
    ),
  );
}

function comparison() {
  if (compared === null) return null;
  if (typeof compared === "string") {
    return h("section", { id: "comparison", "data-key": "comparison", tabindex: -1 }, h("p", { class: "banner tone-danger" }, compared));
  }
  return h(
    "section",
    { id: "comparison", "data-key": "comparison", "aria-labelledby": "comparison-title", tabindex: -1 },
    h("h2", { id: "comparison-title" }, compared.title),
    h("p", { class: "lead" }, compared.intro),
    compared.chart && figure(compared.chart, "comparison", { wide: true }),
    compared.findings.length > 0 && h("ul", { class: "findings" }, compared.findings.map(([tone, word, text]) => h("li", {}, chip(tone, word), ` ${text}`))),
    compared.tables.map((each) => [
      h("h3", {}, each.title),
      h("p", { class: "lead" }, each.lead),
      table(each.title, "comparison", each.columns.map((name, at) => (each.title.startsWith("Settings") && at ? name : capital(name))), each.rows.map(([name, cells]) => h("tr", { "data-key": name }, h("th", { scope: "row" }, name), cells.map((cell) => h("td", { class: "figure" }, cell))))),
    ]),
    h("dl", { class: "card list" }, compared.origin.map(([name, text, code]) => h("div", {}, h("dt", {}, name), h("dd", {}, code ? h("code", {}, text) : text)))),
  );
}

function render(found) {
  sections = found;
  const page = found.get("page");
  const runs = page.order.map((key) => found.get(`run/${key}`)).filter(Boolean);
  const shown = current(runs);
  for (const key of chosen) if (!found.has(`run/${key}`)) chosen.delete(key);
  document.title = `${runs.length} runs · fedsys`;
  const problem = found.get("problem");
  return [
    problem && h("p", { class: "banner tone-danger", "data-key": "problem" }, problem),
    list(page, runs, shown),
    comparison(),
    shown && detail(shown),
    h("footer", { "data-key": "footer" }, h("p", {}, "This page only reads. ε is derived from each run's ledger as it grows; ", h("code", {}, "fedsys audit"), " checks every claim.")),
  ];
}

const again = follow(render);
readCharts(again);
onAction({
  pick: (from) => {
    if (from.checked && chosen.size >= MOST_COMPARED) from.checked = false;
    else if (from.checked) chosen.add(from.dataset.run);
    else chosen.delete(from.dataset.run);
    again();
  },
  clear: () => {
    chosen.clear();
    for (const box of document.querySelectorAll("[data-do=pick]")) box.checked = false;
    compared = null;
    again();
  },
  search: (from) => {
    wanted = from.value;
    again();
  },
  compare: async () => {
    try {
      compared = await ask("compare", [...chosen].map((key) => ["run", key]));
    } catch (error) {
      compared = error.message || "the comparison failed";
    }
    again();
    requestAnimationFrame(() => document.getElementById("comparison")?.focus());
  },
});
