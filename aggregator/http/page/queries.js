// Queries as they come, and how attention is spread over the nodes.

import { columnChart, heatStrip, stacked } from "/charts.js";
import { h } from "/dom.js";
import { colour, label, names } from "/fleet.js";
import { clock, count, percent, plural, short, took } from "/format.js";
import { record } from "/records.js";

const SPAN = 5, SPANS = 60, LISTED = 10, STRIPS = 24;

/** The last five minutes in spans of five seconds, the empty ones too. */
function spans(state, now) {
  const last = Math.floor(now / SPAN) * SPAN;
  return Array.from({ length: SPANS }, (_, i) => {
    const start = last - (SPANS - 1 - i) * SPAN;
    return [start, state.spans[String(start)]];
  });
}

export function totals(state, now) {
  const sum = { exact: 0, partial: 0, failed: 0, seconds: 0, slowest: 0 };
  for (const [, span] of spans(state, now)) {
    if (!span) continue;
    for (const outcome of ["exact", "partial", "failed"]) sum[outcome] += span[outcome];
    sum.seconds += (span.mean ?? 0) * (span.exact + span.partial);
    sum.slowest = Math.max(sum.slowest, span.slowest ?? 0);
  }
  return { ...sum, answered: sum.exact + sum.partial, all: sum.exact + sum.partial + sum.failed };
}

export function answers(state, now, width) {
  if (!Object.keys(state.queries).length)
    return h("div", { class: "card empty", key: "empty" },
      h("p", {}, "No query since the aggregator started. Ask a context something:"),
      h("pre", { tabindex: 0 }, h("code", {}, "edge-attention attend memory --random 4 --causal")));
  const sum = totals(state, now);
  const columns = spans(state, now).map(([start, span]) => ({
    parts: span ? [["exact", span.exact], ["partial", span.partial], ["failed", span.failed]] : [],
    said: span ? `${clock(start)}: ${span.exact} exact, ${span.partial} partial, ${span.failed} failed` : "",
  }));
  const told = `In the last five minutes: ${sum.exact} exact, ${sum.partial} partial, ${sum.failed} failed`;
  return h("div", { class: "card", key: "chart" },
    h("dl", { class: "figures" },
      figure("last 5 minutes", plural(sum.all, "query", "queries")),
      figure("exact", sum.answered ? percent(sum.exact / sum.answered) : "none"),
      figure("mean", sum.answered ? took(sum.seconds / sum.answered) : "none"),
      figure("slowest", sum.answered ? took(sum.slowest) : "none")),
    columnChart({ columns, width: Math.min(width, 440), label: told }),
    h("p", { class: "axis" }, h("span", {}, "5 minutes ago"), h("span", {}, "now")),
    h("p", { class: "legend" }, legend("exact", "c0"), legend("partial", "kpartial"), legend("failed", "kfailed")));
}

export function latestQueries(state) {
  const latest = Object.entries(state.queries).sort((a, b) => b[0] - a[0]).slice(0, LISTED);
  if (!latest.length)
    return h("div", { class: "card empty", key: "empty" }, h("p", { class: "soft" },
      "Each query is told here: whether its answer is exact, and if not by how much it can be off and why."));
  return h("div", { class: "card scroll", key: "table", role: "region", tabindex: 0, "aria-labelledby": "latest-title" },
    h("table", { id: "queries-table" },
      h("caption", { class: "unseen" }, "The latest queries, the newest first"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col", class: "wide" }, "At"), h("th", { scope: "col" }, "Context"),
        h("th", { scope: "col" }, "Answer"), h("th", { scope: "col", class: "num" }, "Took"), h("th", { scope: "col", class: "wide" }, "Of that"))),
      h("tbody", {}, latest.map(([number, query]) => row(number, query)))),
    h("p", { class: "legend wide inset" }, legend("in graphs, at the slowest node", "c2"), legend("in its queue", "c1"), legend("network", "c0"), legend("merge", "c3")));
}

export const figure = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
const legend = (name, mark) => h("span", {}, h("i", { class: `key ${mark}` }), name);

function row(number, query) {
  const { seconds } = query;
  const graphs = seconds.node_run;
  const away = (seconds.wait ?? graphs ?? 0) - (graphs ?? 0);
  const network = seconds.network ?? Math.max(0, away); // an aggregator that does not tell queues apart
  const parts = [["graphs", graphs, "c2"], ["queue", seconds.queue, "c1"], ["network", network, "c0"], ["merge", seconds.merge, "c3"]]
    .filter(([, s]) => s !== undefined && s !== null);
  const badge = { exact: ["good", "exact"], partial: ["warn", "partial"], failed: ["bad", "failed"] }[query.outcome];
  const bound = query.outcome === "partial" ? `${percent(query.share)} of the tokens; off by ${query.bound === null ? "nobody knows how much" : `at most ${short(query.bound)}`}` : "";
  return h("tr", { key: number, "data-outcome": query.outcome },
    h("td", { class: "at wide" }, clock(query.time)),
    h("td", {}, h("span", { class: "name" }, query.context), h("span", { class: "sub narrow" }, clock(query.time)), h("span", { class: "sub" }, plural(query.queries, "query", "queries"))),
    h("td", {}, h("span", { class: `badge ${badge[0]}` }, badge[1]), bound ? h("span", { class: "sub" }, bound) : null,
      query.why.map((why) => h("span", { class: "sub" }, why))),
    h("td", { class: "num" }, took(seconds.all)),
    h("td", { class: "wide" }, parts.length ? [stacked(parts.map(([, s, mark]) => [s, mark]), parts.map(([name, s]) => `${name} ${took(s)}`).join(", "))] : ""));
}

export function massStrips(state, now) {
  const columns = spans(state, now);
  const seen = new Set(columns.flatMap(([, span]) => (span ? Object.keys(span.mass) : [])));
  if (!seen.size)
    return h("div", { class: "card empty", key: "empty" }, h("p", { class: "soft" },
      "When queries are answered, this shows what share of the global attention each node's tokens received, over the last five minutes."));
  const rows = [...new Set([...names(state), ...seen])].filter((name) => seen.has(name)).slice(0, STRIPS);
  return strips({ key: "now", rows, columns: columns.map(([start, span]) => [clock(start), whole(span, rows)]), from: "5 minutes ago", to: "now",
    more: seen.size - rows.length, over: "the last five minutes" });
}

/** The masses of a span; a node that took no part in its answers received nothing of their attention. */
function whole(span, rows) {
  if (!span || !Object.keys(span.mass).length) return record([]);
  return record([...rows.map((node) => [node, 0]), ...Object.entries(span.mass)]);
}

/** A heat strip a node. columns: [[name, { node: share }]], in order. */
export function strips({ key, card = true, rows, columns, from, to, more = 0, over }) {
  const top = Math.max(1e-9, ...columns.flatMap(([, mass]) => rows.map((node) => mass[node] ?? 0)));
  const mean = (node) => {
    const shares = columns.map(([, mass]) => mass[node]).filter((share) => share !== undefined && share !== null);
    return shares.length ? shares.reduce((a, b) => a + b) / shares.length : null;
  };
  return h("div", { class: card ? "card" : "", key, "data-strips": key },
    h("div", { class: "bars" },
      rows.map((node) => [
        label(node),
        heatStrip(columns.map(([name, mass]) => [mass[node], `${name}: ${percent(mass[node])}`]), top,
          `${node} received ${percent(mean(node))} of attention on average over ${over}`),
        h("span", { class: "value" }, percent(mean(node)))]),
      h("span", {}), h("span", { class: "axis", "aria-hidden": "true" }, h("span", {}, from), h("span", {}, to)), h("span", { class: "value" }, "mean")),
    h("p", { class: "legend" }, h("span", {}, "0%", h("i", { class: "ramp" }), percent(top)),
      more > 0 ? h("span", {}, `and ${plural(more, "more node")}`) : null));
}
