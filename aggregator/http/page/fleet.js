// The fleet as a table, and who holds what as a map.

import { meter, rangeBar } from "/charts.js";
import { h } from "/dom.js";
import { bytes, count, percent, plural, some, span } from "/format.js";
import { record } from "/records.js";

export const STATES = { ready: ["good", "ready"], suspect: ["warn", "connection broke"], lost: ["bad", "lost"], draining: ["note", "leaving"] };

const colours = new Map();

/** A node's colour, the same in every picture for as long as the page is open. */
export function colour(name) {
  if (!colours.has(name)) colours.set(name, `c${colours.size % 8}`);
  return colours.get(name);
}

export const live = (node) => node !== undefined && (node.state === "ready" || node.state === "draining");
export const names = (state) => Object.keys(state.nodes).sort((a, b) => a.localeCompare(b, "en", { numeric: true }));

export function label(name) {
  return h("span", { class: "label" }, h("i", { class: `key ${colour(name)}` }), h("span", { class: "name" }, name));
}

/** How nodes reach the aggregator, as far as this page knows. */
export function address(self) {
  const port = self.address.slice(self.address.lastIndexOf(":"));
  const host = self.address.slice(0, -port.length);
  return (["0.0.0.0", "[::]", "::"].includes(host) ? location.hostname : host) + port;
}

export function nodesTable(state, now) {
  const self = state.aggregator.self;
  const all = names(state);
  all.forEach(colour);
  if (!all.length) return h("div", { class: "card empty", key: "empty" }, howToAdd(self, "No node has come yet. On a box that holds data, start one:"));
  const held = record([]);
  for (const context of Object.values(state.contexts))
    for (const [name, tokens] of Object.entries(context.held)) held[name] = (held[name] ?? 0) + tokens;
  return [
    h("div", { class: "card scroll", key: "table", role: "region", tabindex: 0, "aria-labelledby": "fleet-title" },
      h("table", { id: "nodes-table" },
        h("caption", { class: "unseen" }, "Nodes: state, memory, tokens, tasks, and what each lets leave"),
        h("thead", {}, h("tr", {},
          h("th", { scope: "col" }, "Node"), h("th", { scope: "col" }, "State"), h("th", { scope: "col" }, "Memory"),
          h("th", { scope: "col", class: "num wide" }, "Tokens"), h("th", { scope: "col", class: "num wide" }, "Tasks"),
          h("th", { scope: "col", class: "wide" }, "Lets leave"))),
        h("tbody", {}, all.map((name) => row(name, state.nodes[name], held[name] ?? 0, now))))),
    h("details", { class: "small", key: "more" }, h("summary", {}, "Add a node"), howToAdd(self, "")),
  ];
}

function row(name, node, tokens, now) {
  const [mark, word] = STATES[node.state] ?? ["note", node.state];
  const silent = node.since === null || node.since === undefined ? null
    : node.seen ? `silent for ${span(now - node.since)}` : "not seen since the aggregator started";
  const share = node.limit ? node.memory / node.limit : 0;
  const kept = node.seen ? `${bytes(node.memory)} of ${bytes(node.limit)}` : "";
  return h("tr", { key: name, class: live(node) ? "" : "gone", "data-node": name, "data-state": node.state },
    h("th", { scope: "row" }, label(name), node.seen ? h("span", { class: "sub" }, about(node)) : null),
    h("td", {}, h("span", { class: `badge ${mark}` }, word), silent ? h("span", { class: "sub" }, silent) : null,
      node.days !== undefined ? h("span", { class: "sub" }, `certificate: ${node.days} days left`) : null),
    h("td", {}, node.seen ? [meter(share, share > 0.9 ? "away" : `fill ${colour(name)}`, `${percent(share)} of its memory limit`), h("span", { class: "sub" }, kept)] : ""),
    h("td", { class: "num wide" }, count(tokens)),
    h("td", { class: "num wide" }, node.seen ? count(node.tasks) : ""),
    h("td", { class: "wide small" }, node.seen ? releases(node.releases) : ""));
}

function about(node) {
  const data = node.datasets.map((d) => `${d.name} (${plural(d.rows, "row")})`);
  return [node.provider, plural(node.threads, "thread"), some(data, 2)].filter(Boolean).join(" · ");
}

function releases(all) {
  if (!all.length) return h("span", { class: "soft" }, "nothing computed from its data");
  const named = all.filter((one) => !/^[0-9a-f]{12,}/.test(one));
  const graphs = all.length - named.length;
  return [...named, ...(graphs ? [plural(graphs, "graph")] : [])].join(", ");
}

function howToAdd(self, why) {
  const where = address(self);
  return [
    why ? h("p", {}, why) : null,
    self.tls
      ? [h("p", { class: "soft" }, "Here, a token that lets one box in; there, the node:"),
        h("pre", { tabindex: 0 }, h("code", {}, `edge-aggregator token create\nedge-node --aggregator ${where} --join-token eaj_... --store /var/lib/edge-node`))]
      : h("pre", { tabindex: 0 }, h("code", {}, `edge-node --aggregator ${where} --name a --store ./a`)),
    h("p", { class: "soft small" }, "Nodes dial out: no port has to be opened on the box. It shows up here by itself."),
  ];
}

export function contextMaps(state) {
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
    h("div", { class: "head" }, h("h3", { class: "name" }, name),
      h("span", { class: "soft small" },
        `${plural(context.tokens, "token")} · ${bytes(context.bytes)} · ${context.heads[0]} query heads over ${context.heads[1]} · ${copies}`)),
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
