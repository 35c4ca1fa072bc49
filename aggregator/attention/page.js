// Who holds what of contexts, queries as they come, and how attention is spread over the nodes.

import { columnChart, rangeBar, stacked } from "/charts.js";
import { h } from "/dom.js";
import { colour, label, linked, live, named, names } from "/fleet.js";
import { bytes, clock, count, percent, plural, short, some, took } from "/format.js";
import { figure, legend, section, strips } from "/parts.js";
import { record } from "/records.js";

const SPAN = 5, SPANS = 60, LISTED = 10, STRIPS = 24;

export const links = [["memory", "Memory"], ["queries", "Queries"]];

export function sections({ state, at, width }) {
  return [
    section("memory", "Who holds what", "contexts", contextMaps(state)),
    h("div", { class: "two", key: "queries-and-mass" },
      section("queries", "Queries", "answers", answers(state, at, width("answers"))),
      section("mass", "Attention by node", "masses", massStrips(state, at))),
    section("latest", "Latest queries", "asked", latestQueries(state)),
  ];
}

/** A context: who holds it, and how it was answered. A node: what it holds, and the attention it received. */
export function own({ state, at }, kind, name) {
  if (kind === "context" && name in state.contexts) {
    const asked = Object.entries(state.queries).filter(([, query]) => query.context === name).sort((a, b) => b[0] - a[0]);
    const { dims, segments } = state.contexts[name];
    return [
      map(name, state.contexts[name], state),
      h("p", { key: "facts", class: "soft" }, `Keys of ${dims[0]} numbers and values of ${dims[1]}, in ${plural(segments, "segment")}.`),
      section("latest", "How it was answered", "asked", queriesTable(asked, "No query of it is remembered since the aggregator started.")),
      shares(asked, state),
    ];
  }
  if (kind === "node" && name in state.nodes) {
    const held = Object.entries(state.contexts).filter(([, context]) => context.holders[name]?.length);
    const columns = spans(state, at).filter(([, span]) => span && name in span.mass).length;
    return [
      section("memory", "What it holds", "contexts", held.length ? held.map(([one, context]) => map(one, context, state)) : h("p", { class: "card soft" }, "No tokens.")),
      columns ? section("mass", "Attention", "masses", strips({ key: "now", rows: [name], columns: spans(state, at).map(([start, span]) => [clock(start), whole(span, [name])]),
        from: "5 minutes ago", to: "now", tall: 40, said: (node, mean) => `${node} received ${mean} of attention on average over the last five minutes` })) : null,
    ];
  }
  return null;
}

/** The attention that each node received, query by query. */
function shares(asked, state) {
  const told = asked.filter(([, query]) => Object.keys(query.mass).length).reverse();
  const rows = names(state).filter((node) => told.some(([, query]) => node in query.mass)).slice(0, STRIPS);
  if (!rows.length) return null;
  return section("mass", "Attention by node, query by query", "masses", strips({ key: "asked", rows,
    columns: told.map(([, query]) => [clock(query.time), record([...rows.map((node) => [node, 0]), ...Object.entries(query.mass)])]),
    from: clock(told[0][1].time), to: clock(told.at(-1)[1].time), said: (node, mean) => `${node} received ${mean} of attention on average` }));
}

export function tiles({ state, at }) {
  const contexts = Object.values(state.contexts);
  const tokens = contexts.reduce((sum, context) => sum + context.stored, 0);
  const sum = totals(state, at);
  return [
    ["Tokens", count(tokens), `in ${plural(contexts.length, "context")}`],
    ["Queries", count(sum.all), sum.answered ? `in 5 minutes, ${percent(sum.exact / sum.answered)} exact` : "in the last 5 minutes"],
  ];
}

export function columns(state) {
  const held = record(names(state).map((name) => [name, 0]));
  for (const context of Object.values(state.contexts))
    for (const [name, tokens] of Object.entries(context.held)) held[name] = (held[name] ?? 0) + tokens;
  return [{ title: "Tokens", cells: record(Object.entries(held).map(([name, tokens]) => [name, count(tokens)])) }];
}

/** The last five minutes in spans of five seconds, the empty ones too. */
function spans(state, now) {
  const last = Math.floor(now / SPAN) * SPAN;
  return Array.from({ length: SPANS }, (_, i) => {
    const start = last - (SPANS - 1 - i) * SPAN;
    return [start, state.spans[String(start)]];
  });
}

function totals(state, now) {
  const sum = { exact: 0, partial: 0, failed: 0, seconds: 0, slowest: 0 };
  for (const [, span] of spans(state, now)) {
    if (!span) continue;
    for (const outcome of ["exact", "partial", "failed"]) sum[outcome] += span[outcome];
    sum.seconds += (span.mean ?? 0) * (span.exact + span.partial);
    sum.slowest = Math.max(sum.slowest, span.slowest ?? 0);
  }
  return { ...sum, answered: sum.exact + sum.partial, all: sum.exact + sum.partial + sum.failed };
}

/** The nodes whose attention is drawn, and how many more there are. */
function attended(state, now) {
  const seen = new Set(spans(state, now).flatMap(([, span]) => (span ? Object.keys(span.mass) : [])));
  return { rows: [...new Set([...names(state), ...seen])].filter((name) => seen.has(name)).slice(0, STRIPS), all: seen.size };
}

/** Pixels of the chart of answers beside so many strips, and of each strip: both cards are as high. */
const CHART = 120, STRIP = 20, ROW = 25, BESIDE = 60, TALLEST = 120;
const chartHeight = (rows) => Math.max(CHART, rows * ROW - BESIDE);
const stripHeight = (rows) => Math.max(STRIP, Math.min(TALLEST, (CHART + BESIDE) / rows - (ROW - STRIP)));

function answers(state, now, width) {
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
    columnChart({ columns, width: Math.min(width, 640), height: chartHeight(attended(state, now).rows.length), label: told }),
    h("p", { class: "axis" }, h("span", {}, "5 minutes ago"), h("span", {}, "now")),
    h("p", { class: "legend" }, legend("exact", "kexact"), legend("partial", "kpartial"), legend("failed", "kfailed")));
}

function latestQueries(state) {
  const latest = Object.entries(state.queries).sort((a, b) => b[0] - a[0]).slice(0, LISTED);
  return queriesTable(latest, "Each query is told here: whether its answer is exact, and if not by how much it can be off and why.");
}

function queriesTable(latest, without) {
  if (!latest.length) return h("div", { class: "card empty", key: "empty" }, h("p", { class: "soft" }, without));
  return h("div", { class: "card scroll", key: "table", role: "region", tabindex: 0, "aria-labelledby": "latest-title" },
    h("table", { id: "queries-table" },
      h("caption", { class: "unseen" }, "The latest queries, the newest first"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col", class: "wide" }, "At"), h("th", { scope: "col" }, "Context"),
        h("th", { scope: "col" }, "Answer"), h("th", { scope: "col", class: "num wide" }, "Took"), h("th", { scope: "col", class: "wide" }, "Of that"))),
      h("tbody", {}, latest.map(([number, query]) => row(number, query)))),
    h("p", { class: "legend wide inset" }, legend("in graphs, at the slowest node", "s0"), legend("in its queue", "s1"), legend("network", "s2"), legend("merge", "s3")));
}

function row(number, query) {
  const { seconds } = query;
  const graphs = seconds.node_run;
  const away = (seconds.wait ?? graphs ?? 0) - (graphs ?? 0);
  const network = seconds.network ?? Math.max(0, away); // an aggregator that does not tell queues apart
  const parts = [["graphs", graphs, "s0"], ["queue", seconds.queue, "s1"], ["network", network, "s2"], ["merge", seconds.merge, "s3"]]
    .filter(([, s]) => s !== undefined && s !== null);
  const badge = { exact: ["good", "exact"], partial: ["warn", "partial"], failed: ["bad", "failed"] }[query.outcome];
  const bound = query.outcome === "partial" ? `${percent(query.share)} of the tokens; off by ${query.bound === null ? "nobody knows how much" : `at most ${short(query.bound)}`}` : "";
  return h("tr", { key: number, "data-outcome": query.outcome },
    h("td", { class: "at wide" }, clock(query.time)),
    h("td", {}, named(query.context), h("span", { class: "sub narrow" }, `${clock(query.time)} · ${took(seconds.all)}`), h("span", { class: "sub" }, plural(query.queries, "query", "queries"))),
    h("td", {}, h("span", { class: `badge ${badge[0]}` }, badge[1]), bound ? h("span", { class: "sub" }, bound) : null,
      query.why.map((why) => h("span", { class: "sub" }, why))),
    h("td", { class: "num wide" }, took(seconds.all)),
    h("td", { class: "wide" }, parts.length ? [stacked(parts.map(([, s, mark]) => [s, mark]), parts.map(([name, s]) => `${name} ${took(s)}`).join(", "))] : ""));
}

function massStrips(state, now) {
  const columns = spans(state, now);
  const { rows, all } = attended(state, now);
  if (!rows.length)
    return h("div", { class: "card empty", key: "empty" }, h("p", { class: "soft" },
      "When queries are answered, this shows what share of the global attention each node's tokens received, over the last five minutes."));
  return strips({ key: "now", rows, columns: columns.map(([start, span]) => [clock(start), whole(span, rows)]), from: "5 minutes ago", to: "now",
    more: all - rows.length, tall: stripHeight(rows.length), said: (node, mean) => `${node} received ${mean} of attention on average over the last five minutes` });
}

/** The masses of a span; a node that took no part in its answers received nothing of their attention. */
function whole(span, rows) {
  if (!span || !Object.keys(span.mass).length) return record([]);
  return record([...rows.map((node) => [node, 0]), ...Object.entries(span.mass)]);
}

function contextMaps(state) {
  const contexts = Object.entries(state.contexts);
  if (!contexts.length)
    return h("div", { class: "card empty", key: "empty" },
      h("p", {}, "No context yet: a context is a long memory of keys and values, spread over the nodes. Make one and fill it:"),
      h("pre", { tabindex: 0 }, h("code", {},
        "edge-attention contexts create memory --query-heads 8 --key-heads 2 --key-dim 64\nedge-attention contexts append memory tokens.npz")));
  return contexts.map(([name, context]) => map(name, context, state));
}

function map(name, context, state) {
  const holders = names(state).filter((node) => context.holders[node]?.length);
  const said = (ranges) => some(ranges.map(([a, b]) => `${count(a)} to ${count(b)}`), 4);
  const copies = context.replicas === 1 ? "one copy" : `${context.replicas} copies`;
  const gone = context.away.reduce((sum, [a, b]) => sum + b - a, 0);
  return h("article", { class: "card", key: name, "data-context": name },
    h("div", { class: "head" }, h("h3", {}, linked("context", name)),
      h("span", { class: "soft small" },
        `${plural(context.stored, "token")} · ${bytes(context.bytes)} · ${context.heads[0]} query heads over ${context.heads[1]} · ${copies}`)),
    context.tokens === 0 ? h("p", { class: "soft" }, "Nothing in it yet.") : [
      h("div", { class: "bars" },
        holders.map((node) => {
          const here = live(state.nodes[node]);
          const ranges = context.holders[node];
          const text = `${node}${here ? "" : ", which is not here,"} holds tokens ${said(ranges)}`;
          return [label(node), rangeBar(ranges, context.tokens, `fill ${colour(node)}`, text, here ? 1 : 0.3),
            h("span", { class: "value" }, count(context.held[node]), here ? "" : h("span", { class: "wide" }, ", away"))];
        }),
        context.away.length ? [
          h("span", { class: "label name" }, "out of reach"),
          rangeBar(context.away, context.tokens, "away", `no node that is here holds tokens ${said(context.away)}`),
          h("span", { class: "value" }, count(gone))] : null,
        h("span", {}), h("span", { class: "axis", "aria-hidden": "true" }, h("span", {}, "token 0"), h("span", {}, count(context.tokens))), h("span", {})),
    ]);
}
