// The fleet as a table; recipes add columns to it.

import { meter } from "/charts.js";
import { h } from "/dom.js";
import { bytes, count, percent, plural, since, some, span } from "/format.js";
import { figure } from "/parts.js";

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
  return h("span", { class: "label" }, h("i", { class: `key ${colour(name)}` }), named(name));
}

/** The name of something that has a page of its own, and leads there. */
export const linked = (kind, name) => h("a", { class: "own", href: `#${kind}/${encodeURIComponent(name)}` }, named(name));

/** A name on one line, whatever its length: the whole of it is its title. */
export const named = (name) => h("span", { class: "name", title: name }, name);

/** How nodes reach the aggregator, as far as this page knows. */
export function address(self) {
  const port = self.address.slice(self.address.lastIndexOf(":"));
  const host = self.address.slice(0, -port.length);
  return (["0.0.0.0", "[::]", "::"].includes(host) ? location.hostname : host) + port;
}

/** The table of nodes. columns: [{ title, cells }] of recipes, where cells has a node's text by its name. */
export function nodesTable(state, now, columns) {
  const self = state.aggregator.self;
  const all = names(state);
  all.forEach(colour);
  if (!all.length) return h("div", { class: "card empty", key: "empty" }, howToAdd(self, "No node has come yet. On a box that holds data, start one:"));
  return [
    h("div", { class: "card scroll", key: "table", role: "region", tabindex: 0, "aria-labelledby": "fleet-title" },
      h("table", { id: "nodes-table" },
        h("caption", { class: "unseen" }, "Nodes: state, memory, tasks, and what each lets leave"),
        h("thead", {}, h("tr", {},
          h("th", { scope: "col" }, "Node"), h("th", { scope: "col" }, "State"), h("th", { scope: "col" }, "Memory"),
          columns.map(({ title }) => h("th", { scope: "col", class: "num wide" }, title)), h("th", { scope: "col", class: "num wide" }, "Tasks"),
          h("th", { scope: "col", class: "wide" }, "Lets leave"))),
        h("tbody", {}, all.map((name) => row(name, state.nodes[name], columns.map(({ cells }) => cells[name] ?? ""), now))))),
    h("details", { class: "small", key: "more" }, h("summary", {}, "Add a node"), howToAdd(self, "")),
  ];
}

function row(name, node, more, now) {
  const [mark, word] = STATES[node.state] ?? ["note", node.state];
  const silent = node.since === null || node.since === undefined ? null
    : node.seen ? `silent for ${span(now - node.since)}` : "not seen since the aggregator started";
  const share = node.limit ? node.memory / node.limit : 0;
  const kept = node.seen ? `${bytes(node.memory)} of ${bytes(node.limit)}` : "";
  return h("tr", { key: name, class: live(node) ? "" : "gone", "data-node": name, "data-state": node.state },
    h("th", { scope: "row" }, h("span", { class: "label" }, h("i", { class: `key ${colour(name)}` }), linked("node", name)), node.seen ? h("span", { class: "sub" }, about(node)) : null),
    h("td", {}, h("span", { class: `badge ${mark}` }, word), silent ? h("span", { class: "sub" }, silent) : null,
      node.days !== undefined ? h("span", { class: "sub" }, `certificate: ${node.days} days left`) : null),
    h("td", {}, node.seen ? [meter(share, share > 0.9 ? "away" : `fill ${colour(name)}`, `${percent(share)} of its memory limit`), h("span", { class: "sub" }, kept)] : ""),
    more.map((text) => h("td", { class: "num wide" }, text)),
    h("td", { class: "num wide" }, node.seen ? count(node.tasks) : ""),
    h("td", { class: "wide small" }, node.seen ? releases(node.releases) : ""));
}

/** A node on a page of its own: how it is, what it has, and what became of it. columns: as of the table. */
export function nodePage(state, now, name, columns) {
  const node = state.nodes[name];
  if (!node) return null;
  const [mark, word] = STATES[node.state] ?? ["note", node.state];
  const turns = [...(node.turns ?? [])].reverse();
  return [
    h("div", { class: "card", key: "facts", "data-node": name },
      h("p", { class: "head" }, h("span", { class: `badge ${mark}` }, word),
        node.since ? h("span", { class: "soft small" }, node.seen ? `silent for ${span(now - node.since)}` : "not seen since the aggregator started") : null),
      h("dl", { class: "figures" },
        node.seen ? [figure("memory", `${bytes(node.memory)} of ${bytes(node.limit)}`), figure("threads", count(node.threads)), figure("computes on", node.provider),
          figure("tasks", count(node.tasks)), figure("release", node.software || "unknown")] : null,
        columns.map(({ title, cells }) => figure(title.toLowerCase(), cells[name] ?? "none")),
        node.days !== undefined ? figure("certificate", `${node.days} days left`) : null),
      node.seen ? h("p", {}, "Its data: ", node.datasets.map((d) => `${d.name} (${plural(d.rows, "row")})`).join(", ") || "none",
        ". Lets leave: ", releases(node.releases), ".") : null),
    h("section", { key: "turns", "aria-labelledby": "turns-title" }, h("h3", { id: "turns-title" }, "What became of it"),
      turns.length
        ? h("ul", { class: "card" }, turns.map(([time, why, state], i) => h("li", { key: `${turns.length - i}` },
          h("span", { class: "at" }, `${since(time, now)} `), `${STATES[state]?.[1] ?? state}: ${why}`)))
        : h("p", { class: "card soft" }, "Nothing is remembered of it: it has not come since the aggregator started.")),
  ];
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
