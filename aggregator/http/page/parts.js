// Parts that the sections of several recipes are made of.

import { heatStrip } from "/charts.js";
import { h } from "/dom.js";
import { label } from "/fleet.js";
import { percent, plural } from "/format.js";

/** A section of the page, `id`, with its title; what is in it is in the element `body`. */
export const section = (id, title, body, ...content) =>
  h("section", { id, key: id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title), h("div", { id: body }, content));

export const figure = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
export const legend = (name, mark) => h("span", {}, h("i", { class: `key ${mark}` }), name);

/** A heat strip a node. columns: [[name, { node: share }]], in order; said: a sentence on a node and its mean;
    tall: pixels of a strip. */
export function strips({ key, card = true, rows, columns, from, to, more = 0, said, tall = 20 }) {
  const top = Math.max(1e-9, ...columns.flatMap(([, mass]) => rows.map((node) => mass[node] ?? 0)));
  const mean = (node) => {
    const shares = columns.map(([, mass]) => mass[node]).filter((share) => share !== undefined && share !== null);
    return shares.length ? shares.reduce((a, b) => a + b) / shares.length : null;
  };
  return h("div", { class: card ? "card" : "", key, "data-strips": key },
    h("div", { class: "bars" },
      rows.map((node) => [
        label(node),
        heatStrip(columns.map(([name, mass]) => [mass[node], `${name}: ${percent(mass[node])}`]), top, said(node, percent(mean(node))), tall),
        h("span", { class: "value" }, percent(mean(node)))]),
      h("span", {}), h("span", { class: "axis", "aria-hidden": "true" }, h("span", {}, from), h("span", {}, to)), h("span", { class: "value" }, "mean")),
    h("p", { class: "legend" }, h("span", {}, "0%", h("i", { class: "ramp" }), percent(top)),
      more > 0 ? h("span", {}, `and ${plural(more, "more node")}`) : null));
}
