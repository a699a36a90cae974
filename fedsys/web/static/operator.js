// The operator's page.

import { figure, readCharts } from "./chart.js";
import { ago, bar, bytes, charts, chip, clock, count, day, facts, h, statusChip, table, time, viewCards } from "./elements.js";
import { follow, onAction } from "./live.js";

const OVER = new Set(["completed", "budget-exhausted", "cancelled", "failed", "lost"]);
const FILTERS = { all: "All", connected: "Connected", away: "Away", attention: "Attention", revoked: "Revoked" };
const MOST_ROWS = 300;
let filter = "all";
let wanted = "";

const stat = (name, value, fine, more = null) =>
  h("div", { "data-key": name }, h("dt", {}, name), h("dd", {}, value, h("span", { class: "fine" }, fine), more));

function overview(page, jobs) {
  const { counts, queue, spent } = page;
  const going = queue.running ?? 0;
  const waiting = (queue.submitted ?? 0) + (queue.waiting ?? 0) + (queue.paused ?? 0);
  const outsider = spent.views[0].epsilon;
  const others = spent.views.slice(1).map((each) => `${each.view} ${each.epsilon}`).join(" · ");
  return h(
    "section",
    { id: "overview", "data-key": "overview", "aria-label": "Overview" },
    h(
      "div",
      { class: "title" },
      h("h1", {}, page.name),
      h("p", { class: "fine" }, `coordinator at ${page.hosts.join(", ")} · fedsys ${page.version} · population ${page.population}`),
    ),
    h(
      "dl",
      { class: "stats card" },
      stat("Devices connected", `${counts.connected} of ${counts.devices}`, [counts.pending && `${counts.pending} not on the roster yet`, `roster version ${page.roster}`].filter(Boolean).join(" · "), counts.devices > 0 && bar(counts.connected / counts.devices, "share of devices connected", "good")),
      stat("Jobs running", String(going), waiting ? `${count(waiting, "more waits", "more wait")}` : `${count(jobs.length, "job")} so far`),
      page.spent.budget
        ? stat("Budget spent", `ε ${spent.promised}`, `of ${spent.budget}, by all jobs together; one that is not over counts with all that it may spend`, bar(spent.part, "share of the budget spent", spent.part > 0.9 ? "warning" : "accent"))
        : stat("Privacy spent", `ε ${outsider}`, "outsider, over all jobs; no budget is set"),
      stat("Over all jobs", `ε ${outsider}`, `outsider · ${others}`),
      stat("Machine", bytes(page.free), `free · ${bytes(page.memory)} of memory in use · up since ${clock(page.started)}`),
    ),
  );
}

function attention(page, devices, jobs) {
  const found = page.held.map((text) => ["danger", "No job runs", text, null]);
  for (const job of jobs) {
    const name = job.name || job.id;
    if (job.status === "paused") found.push(["warning", `Job ${name} is paused`, job.reason, job]);
    else if (!OVER.has(job.status) && job.stage.startsWith("waiting")) found.push(["warning", `Job ${name} waits`, job.stage.replace(/^waiting: /, ""), job]);
    else if (job === jobs.find((each) => OVER.has(each.status)) && job.status === "failed") found.push(["danger", `Job ${name} failed`, job.reason, job]);
    const behind = OVER.has(job.status) ? [] : job.witnesses.filter((each) => each.asked && (each.size ?? 0) < job.lines - 2);
    if (behind.length) found.push(["warning", `Witnesses are behind on ${name}`, behind.map((each) => each.name).join(", "), job]);
  }
  for (const device of devices) {
    for (const text of device.warnings) found.push(["warning", device.name, text, null]);
  }
  if (!found.length) return null;
  const shown = found.slice(0, 6);
  return h(
    "section",
    { class: "attention", "data-key": "attention", "aria-label": "Needs attention" },
    h("h2", {}, "Needs attention"),
    shown.map(([tone, title, text, job], at) =>
      h(
        "div",
        { class: `banner tone-${tone}`, "data-key": `${at}` },
        h("strong", {}, title),
        h("p", {}, text, job && " ", job && h("a", { href: `#job-${job.id}` }, "Show the job")),
      ),
    ),
    found.length > shown.length && h("p", { class: "fine" }, `and ${found.length - shown.length} more; the fleet's filter “Attention” lists devices`),
  );
}

function jobEntry(job, chosen) {
  const done = job.rounds ? job.round / job.rounds : 0;
  const metrics = job.metrics.slice(0, 1).map(([name, value]) => `${name} ${value}`);
  return h(
    "li",
    { "data-key": job.id },
    h(
      "a",
      { href: `#job-${job.id}`, class: "entry", "aria-current": chosen ? "true" : null },
      h("span", { class: "line" }, h("span", { class: "name" }, job.name), statusChip(job.status)),
      bar(done, `round ${job.round} of ${job.rounds}`, OVER.has(job.status) ? "unknown" : "good"),
      h("span", { class: "fine" }, [`round ${job.round} of ${job.rounds}`, ...metrics].join(" · ")),
    ),
  );
}

function jobDetail(job) {
  const held = /^(waiting|held): /.test(job.stage) || job.status === "paused";
  const why = job.reason || (held ? job.stage : "");
  const started = job.started ?? job.submitted;
  return h(
    "article",
    { class: "detail", "data-key": job.id, "aria-label": `Job ${job.name}` },
    h("div", { class: "headline" }, h("h3", {}, job.name, " ", h("code", {}, job.id)), statusChip(job.cancelled ? "cancelled" : job.status)),
    why && h("p", { class: `why ${OVER.has(job.status) ? "" : "going"}` }, why),
    facts([
      ["Round", `${job.round} of ${job.rounds}`],
      ["Stage", held ? "" : job.stage],
      ...job.metrics.map(([name, value]) => [name, value]),
      ["Task", job.task],
      ["Mechanism", job.mechanism],
      ["Devices", job.devices ? `${job.devices} chosen` : ""],
      [job.started ? "Started" : "Submitted", time(started, ago(started))],
      ["Ended", job.ended && time(job.ended, ago(job.ended))],
    ]),
    job.withheld && h("p", { class: "banner tone-warning" }, h("strong", {}, "No privacy claim: "), job.withheld),
    viewCards(job),
    charts(job, job.id, figure),
    job.problem && h("p", { class: "fine" }, `The ledger cannot be shown: ${job.problem}`),
    job.refusals.length > 0 && [
      h("h4", {}, "Refusals"),
      h(
        "ul",
        { class: "refusals" },
        job.refusals.map((each, at) =>
          h("li", { "data-key": `${at}` }, h("b", {}, each.device), ` ${each.round ? `round ${each.round}` : "the job"}${each.count > 1 ? `, ${each.count} times` : ""}: ${each.reason} `, h("span", { class: "fine" }, ago(each.at))),
        ),
      ),
    ],
  );
}

function chosenJob(jobs) {
  const id = location.hash.startsWith("#job-") ? location.hash.slice(5) : "";
  return jobs.find((job) => job.id === id) ?? jobs.find((job) => job.status === "running") ?? jobs.find((job) => !OVER.has(job.status)) ?? jobs[0];
}

function jobSection(page, jobs) {
  const chosen = chosenJob(jobs);
  return h(
    "section",
    { id: "jobs", "data-key": "jobs", "aria-labelledby": "jobs-title", tabindex: -1 },
    h("h2", { id: "jobs-title" }, "Jobs"),
    chosen
      ? h(
          "div",
          { class: "panes" },
          h("nav", { class: "card list-pane", "aria-label": "Jobs" }, h("ol", { class: "entries" }, jobs.map((job) => jobEntry(job, job === chosen))), page.older > 0 && h("p", { class: "fine more" }, `${page.older} older ones: fedsys job list`)),
          jobDetail(chosen),
        )
      : h("p", { class: "card empty" }, "No job yet. Submit one with ", h("code", {}, "fedsys job submit"), "."),
  );
}

const HAVE = {
  all: (device) => device.status !== "revoked",
  connected: (device) => device.connected,
  away: (device) => !device.connected && device.status !== "revoked",
  attention: (device) => device.warnings.length > 0,
  revoked: (device) => device.status === "revoked",
};

function standing(device) {
  if (device.status === "revoked") return chip("danger", "revoked");
  if (device.connected) return chip("good", "connected");
  return chip("unknown", "away");
}

function deviceRow(device) {
  const soon = device.expires !== null && device.expires - Date.now() / 1000 < 30 * 86400 && device.status !== "revoked";
  return h(
    "tr",
    { "data-key": String(device.id) },
    h("th", { scope: "row" }, device.name, device.labels.length > 0 && h("span", { class: "fine labels" }, device.labels.join(" · "))),
    h("td", { "data-label": "Status" }, standing(device), device.status === "pending" && chip("warning", "not on the roster")),
    h("td", { "data-label": "Last seen" }, device.connected ? "now" : time(device.seen, ago(device.seen))),
    h("td", { "data-label": "Version" }, device.version || "–"),
    h("td", { "data-label": "Certificate until", class: soon ? "soon" : null }, day(device.expires)),
    h(
      "td",
      { "data-label": "Notes", class: "notes-cell" },
      device.warnings.map((text) => h("p", { class: "warn" }, text)),
      device.refusal && h("p", {}, `refused ${device.refusal.round ? `round ${device.refusal.round}` : "a job"} ${ago(device.refusal.at)}: ${device.refusal.reason}`),
    ),
  );
}

function fleetSection(page, fleet) {
  const words = wanted.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = (device) => words.every((word) => [device.name, ...device.labels, device.version].some((text) => text.toLowerCase().includes(word)));
  const found = fleet.devices.filter((device) => HAVE[filter](device) && matches(device));
  const numbers = Object.fromEntries(Object.keys(FILTERS).map((name) => [name, fleet.devices.filter(HAVE[name]).length]));
  return h(
    "section",
    { id: "fleet", "data-key": "fleet", "aria-labelledby": "fleet-title" },
    h("h2", { id: "fleet-title" }, "Fleet"),
    h(
      "div",
      { class: "tools" },
      h("div", { class: "filters", role: "group", "aria-label": "Show devices" }, Object.entries(FILTERS).map(([name, text]) => h("button", { type: "button", "data-do": "filter", "data-filter": name, "data-key": name, "aria-pressed": String(name === filter) }, text, " ", h("span", { class: "number" }, String(numbers[name]))))),
      h("input", { type: "search", "data-do": "search", placeholder: "Name, label or version", "aria-label": "Search devices", autocomplete: "off", spellcheck: "false" }),
    ),
    found.length
      ? table("Devices", "devices", ["Device", "Status", "Last seen", "Version", "Certificate until", "Notes"], found.slice(0, MOST_ROWS).map(deviceRow))
      : h("p", { class: "card empty" }, fleet.devices.length ? "No device matches." : "No device has joined yet: fedsys coordinator enroll."),
    (found.length > MOST_ROWS || fleet.more > 0) && h("p", { class: "fine" }, `${found.length - Math.min(found.length, MOST_ROWS) + fleet.more} more are not shown: search, or fedsys coordinator nodes`),
  );
}

function ledgerRow(job, threshold) {
  const witnesses = job.witnesses.filter((each) => each.size !== null || !OVER.has(job.status));
  const vouched = witnesses.filter((each) => (each.size ?? 0) >= job.lines).length;
  return h(
    "tr",
    { "data-key": job.id },
    h("th", { scope: "row" }, h("a", { href: `#job-${job.id}` }, job.name), h("span", { class: "fine labels" }, job.id)),
    h("td", { "data-label": "Lines" }, String(job.lines)),
    h("td", { "data-label": "Head", class: "head" }, h("code", {}, job.head)),
    h(
      "td",
      { "data-label": "Witnesses", class: "notes-cell" },
      witnesses.length === 0 && h("span", { class: "muted" }, "none"),
      witnesses.map((each) => h("p", {}, chip((each.size ?? 0) >= job.lines ? "good" : each.size ? "warning" : "danger", each.size === null ? "nothing yet" : `${each.size} of ${job.lines} lines`), ` ${each.name} `, h("span", { class: "fine" }, each.at ? ago(each.at) : ""))),
      threshold > 0 && !OVER.has(job.status) && h("p", { class: "fine" }, `${vouched} vouch for every line; a round needs ${threshold}`),
    ),
  );
}

function ledgerSection(page, jobs) {
  const rows = jobs.filter((job) => job.head).slice(0, 20);
  return h(
    "section",
    { id: "ledgers", "data-key": "ledgers", "aria-labelledby": "ledgers-title" },
    h("h2", { id: "ledgers-title" }, "Ledgers"),
    h("p", { class: "lead" }, "The head fixes all lines before it. Keep it where this coordinator cannot change it, and nobody can rewrite that history unnoticed."),
    rows.length ? table("Ledgers", "ledgers", ["Job", "Lines", "Head", "Witnesses"], rows.map((job) => ledgerRow(job, page.threshold))) : h("p", { class: "card empty" }, "No ledger yet: the first job makes one."),
  );
}

function render(sections) {
  const page = sections.get("page");
  const jobs = page.order.map((id) => sections.get(`job/${id}`)).filter(Boolean);
  const fleet = sections.get("fleet") ?? { devices: [], more: 0 };
  const problem = sections.get("problem");
  document.title = `${page.name} · ${page.counts.connected} of ${page.counts.devices} connected · fedsys`;
  return [
    problem && h("p", { class: "banner tone-danger", "data-key": "problem" }, problem),
    overview(page, jobs),
    attention(page, fleet.devices, jobs),
    jobSection(page, jobs),
    fleetSection(page, fleet),
    ledgerSection(page, jobs),
    h("footer", { "data-key": "footer" }, h("p", {}, "This page only reads. Commands change things: ", h("code", {}, "fedsys job"), " and ", h("code", {}, "fedsys coordinator"), ".")),
  ];
}

const again = follow(render);
readCharts(again);
onAction({
  filter: (from) => {
    filter = from.dataset.filter;
    again();
  },
  search: (from) => {
    wanted = from.value;
    again();
  },
});
