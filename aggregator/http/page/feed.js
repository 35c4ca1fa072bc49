// The aggregator's state, kept up to date over server-sent events; comes back by itself.

import { parse, record } from "/records.js";

const QUIET = 16000; // three times the aggregator's own "alive"
const LONGEST = 15000;
const PATIENCE = 4000; // for why the connection was lost: one that is frozen never says

/** Calls `changed(state)` at every change and `connection(word, text)` when the connection comes or goes. */
export function follow(changed, connection) {
  let state = record([]);
  let source = null;
  let watchdog = 0;
  let again = 0;
  let tries = 0;
  let opening = false;

  const heard = (data) => {
    state.skew = data.now - Date.now() / 1000; // the page's clock need not be the aggregator's
    clearTimeout(watchdog);
    watchdog = setTimeout(lost, QUIET);
  };

  const open = () => {
    clearTimeout(again);
    source?.close();
    source = new EventSource("/api/events");
    watchdog = setTimeout(lost, QUIET);
    source.addEventListener("state", (event) => {
      const data = parse(event.data);
      state = data;
      tries = 0;
      heard(data);
      connection("live", "live");
      changed(state, true);
    });
    source.addEventListener("change", (event) => {
      const data = parse(event.data);
      for (const [section, values] of Object.entries(data)) {
        if (section === "now") continue;
        const part = record(Object.entries(state[section] ?? {}));
        for (const [key, value] of Object.entries(values)) {
          if (value === null) delete part[key];
          else part[key] = value;
        }
        state[section] = part;
      }
      heard(data);
      changed(state, false);
    });
    source.addEventListener("alive", (event) => heard(parse(event.data)));
    source.onerror = lost;
  };

  async function lost() {
    clearTimeout(watchdog);
    source?.close();
    source = null;
    if (opening) return;
    opening = true;
    const wait = Math.min(LONGEST, 500 * 2 ** Math.min(tries, 10)) * (0.75 + Math.random() / 2);
    tries += 1;
    let why = "connection lost, trying again";
    try {
      const answer = await fetch("/api/events", { method: "HEAD", cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
      if (answer.status === 401) {
        location.assign("/signin");
        return;
      }
      if (answer.status === 503) why = "too many pages watch, or the aggregator is stopping; trying again";
    } catch {
      // It is away; so is what it would have said.
    } finally {
      opening = false;
    }
    connection("lost", why);
    clearTimeout(again);
    again = setTimeout(open, wait);
  }

  const hurry = () => {
    if (source === null && !opening) open();
  };
  addEventListener("online", hurry);
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && hurry());
  open();
}
