// The stream of sections, and the token that it needs.
//
// The token comes in the address's fragment, which browsers send to nobody, and goes into this
// tab's session storage: out of the address bar, and out of what is bookmarked or copied.

import { patch } from "./elements.js";

const KEPT = "fedsys-token";
const WAITS = [1000, 2000, 5000];
const SILENCE = 75_000;

function takeToken() {
  const found = /^#token=([0-9a-f]{64})$/.exec(location.hash);
  if (found) {
    sessionStorage.setItem(KEPT, found[1]);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(KEPT) ?? "";
}

let token = takeToken();
addEventListener("hashchange", () => {
  const fresh = takeToken();
  if (fresh !== token) location.reload();
});

const authorized = (more = {}) => ({
  headers: { authorization: `Bearer ${token}` },
  credentials: "omit",
  cache: "no-store",
  referrerPolicy: "no-referrer",
  ...more,
});

/** The JSON answer to a question. */
export async function ask(name, query) {
  const answer = await fetch(`/api/${name}?${new URLSearchParams(query)}`, authorized());
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

/** Shows the page again whenever a section changed, and every few seconds for the sake of times. */
export function follow(render) {
  const sections = new Map();
  const page = document.getElementById("page");
  const live = document.getElementById("live");
  let due = false;

  function show() {
    due = false;
    if (!sections.has("page")) return;
    const fresh = page.cloneNode(false);
    fresh.append(...render(sections).filter(Boolean));
    patch(page, fresh);
  }
  function soon() {
    if (due) return;
    due = true;
    requestAnimationFrame(show);
  }
  function say(state, text) {
    if (live.dataset.state === state && live.textContent === text) return;
    live.dataset.state = state;
    live.textContent = text;
  }
  function problem(text) {
    if (sections.has("page")) return;
    page.replaceChildren(Object.assign(document.createElement("p"), { className: "lead empty", textContent: text }));
  }

  async function read() {
    const stop = new AbortController();
    let watch = setTimeout(() => stop.abort(), SILENCE);
    const answer = await fetch("/events", authorized({ signal: stop.signal }));
    if (answer.status === 401) return "no token";
    if (!answer.ok) throw new Error((await answer.text()).trim());
    say("live", "live");
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ; ) {
      const { done, value } = await reader.read();
      if (done) return "ended";
      clearTimeout(watch);
      watch = setTimeout(() => stop.abort(), SILENCE);
      text += value;
      const events = text.split("\n\n");
      text = events.pop();
      for (const event of events) {
        if (!event.startsWith("data: ")) continue;
        for (const [name, content] of Object.entries(JSON.parse(event.slice(6)))) {
          if (content === null) sections.delete(name);
          else sections.set(name, content);
        }
      }
      soon();
    }
  }

  async function forever() {
    for (let failures = 0; ; ) {
      let why = "";
      try {
        const end = token ? await read() : "no token";
        if (end === "no token") {
          say("off", "no access");
          sections.clear();
          problem(
            "The token is missing or no longer valid. Open the whole address that the command " +
              "prints, with what follows the #.",
          );
          return;
        }
        failures = 0;
      } catch (error) {
        why = error instanceof TypeError || error.name === "AbortError" ? "" : error.message;
        failures += 1;
      }
      say("away", why || "connection lost, trying again");
      problem(why || "Nobody answers yet; trying again.");
      await pause(WAITS[Math.min(failures, WAITS.length - 1)]);
    }
  }

  setInterval(soon, 5000);
  addEventListener("hashchange", soon);
  forever();
  return soon;
}

/** Runs the handler that `data-do` names when its element is clicked or changed. */
export function onAction(handlers) {
  for (const kind of ["click", "input"]) {
    document.addEventListener(kind, (event) => {
      const from = event.target instanceof Element ? event.target.closest("[data-do]") : null;
      if (!from || (from.matches("input[type=search]") ? "input" : "click") !== kind) return;
      handlers[from.dataset.do]?.(from, event);
    });
  }
}
