// Deployed models: a picture of each plan, who holds what, where the time goes, and the latest requests.

import { stacked } from "/charts.js";
import { h } from "/dom.js";
import { colour, label, linked, live, named } from "/fleet.js";
import { bytes, clock, count, percent, plural, short, took } from "/format.js";
import { figure, legend, section } from "/parts.js";
import { record } from "/records.js";

const LISTED = 8, STATES = { serving: "good", waiting: "bad", planning: "note", delivering: "note", leaving: "note" };

export const links = [["models", "Models"]];

export function sections({ state }) {
  return [
    section("models", "Models", "deployed", cards(state)),
    section("infers", "Latest requests to models", "inferred", requests(state)),
  ];
}

/** A model: each of its versions that is there, and its requests. */
export function own({ state }, kind, name) {
  const versions = Object.entries(state.models).filter(([, model]) => kind === "model" && model.name === name);
  if (!versions.length) return null;
  const asked = Object.entries(state.infers).filter(([, line]) => line.model === name).sort((a, b) => b[0] - a[0]);
  return [versions.map(([key, model]) => card(key, model, state)), section("infers", "Its requests", "inferred", requestsTable(asked))];
}

export function tiles({ state }) {
  const serving = Object.values(state.models).filter((model) => model.state === "serving");
  const answered = serving.reduce((sum, model) => sum + model.requests, 0);
  return [["Models", count(serving.length), serving.length ? `serve; ${plural(answered, "request")} answered` : "none is deployed"]];
}

export function columns(state) {
  const held = record([]);
  for (const model of Object.values(state.models))
    for (const part of model.parts)
      for (const node of part.holders) held[node] = [...(held[node] ?? []), `${model.name} ${part.part}`];
  if (!Object.keys(held).length) return [];
  return [{ title: "Parts of models", cells: record(Object.entries(held).map(([node, parts]) =>
    [node, parts.length > 3 ? `${parts.slice(0, 3).join(", ")} and ${parts.length - 3} more` : parts.join(", ")])) }];
}

export const news = (state) => Object.values(state.models).map((model) =>
  [`${model.name}/${model.version}`, model.state, `Model ${model.name} is ${model.state}.`]);

function cards(state) {
  const models = Object.entries(state.models).sort(([, a], [, b]) => b.created - a.created);
  if (!models.length)
    return h("div", { class: "card empty", key: "empty" },
      h("p", {}, "No model is deployed. Any ONNX transformer can be, in parts on several nodes:"),
      h("pre", { tabindex: 0 }, h("code", {}, "edge-attention deploy model.onnx --name model\nedge-attention infer model --input ids=ids.npy")));
  return models.map(([key, model]) => card(key, model, state));
}

function card(key, model, state) {
  const mean = model.seconds.all;
  return h("article", { class: "card", key, "data-model": model.name, "data-state": model.state },
    h("div", { class: "head" }, h("h3", {}, linked("model", model.name)),
      h("span", { class: `badge ${STATES[model.state] ?? "note"}` }, model.state),
      h("span", { class: "soft small push" }, `version ${model.version} · ${bytes(model.bytes)} · plan ${model.plan}`)),
    model.detail ? h("p", { class: "waits" }, `${model.detail[0].toUpperCase()}${model.detail.slice(1)}.`) : null,
    model.text ? h("p", { class: "soft" }, model.text) : null,
    model.batching ? h("p", { class: "soft small" }, `${model.batching[0].toUpperCase()}${model.batching.slice(1)}.`) : null,
    // What has become of its plan since: planned anew, when and why.
    model.notes.length ? h("ul", { class: "notes soft small" }, model.notes.map((note) => h("li", {}, `${note[0].toUpperCase()}${note.slice(1).replace(/\.$/, "")}.`))) : null,
    model.coverage < 1 ? h("p", { class: "failed" }, `The parts do ${percent(model.coverage)} of the model: ${model.lacking}`) : null,
    model.coverage === 1 && model.lacking ? h("p", {}, `Not exact: ${model.lacking}`) : null,
    h("dl", { class: "figures" },
      figure("requests", count(model.requests)),
      model.rates.requests ? figure("requests now", rate(model.rates.requests)) : null,
      model.rates.tokens ? figure("tokens now", rate(model.rates.tokens)) : null,
      model.failed ? figure("failed", model.rates.failures ? `${count(model.failed)}, now ${rate(model.rates.failures)}` : count(model.failed)) : null,
      figure("under way", count(model.in_flight)),
      figure("in the queue", count(model.queued)),
      model.rows ? figure("run together", `${percent(model.together)}, ${short(model.rows)} rows a batch`) : null,
      mean ? figure("mean", took(mean)) : null,
      model.seconds.queue > 0.001 ? figure("of that waiting", took(model.seconds.queue)) : null,
      model.down ? figure("activations a request", `${bytes(model.down)} down, ${bytes(model.up)} up`) : null),
    model.parts.length ? picture(model, state) : null,
    parts(model, state));
}

const rate = (number) => `${number >= 10 ? count(Math.round(number)) : number.toFixed(1)} a second`;

/** The plan: layers from left to right, a row a part, in the colour of the node that holds it. */
function picture(model, state) {
  const row = 14, gap = 3, width = 100, height = model.parts.length * (row + gap);
  const said = model.parts.map((part) => `part ${part.part}: layers ${part.layers[0]} to ${part.layers[1] - 1}, ${part.share}, on ${part.holders.join(" and ") || "no node"}`).join("; ");
  return h("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": said, width: "100%", height: Math.min(height, 240) },
    model.parts.map((part, i) => {
      const [start, stop] = part.layers;
      const node = part.live[0] ?? part.holders[0] ?? "";
      const whole = Math.max(model.layers, 1);
      return h("rect", { key: String(part.part), class: `fill ${colour(node)}`, x: (start / whole) * width, y: i * (row + gap),
        width: Math.max(((stop - start) / whole) * width, 0.5), height: row, opacity: part.live.some((one) => live(state.nodes[one])) ? 1 : 0.3 });
    }));
}

function parts(model, state) {
  if (!model.parts.length) return null;
  const slowest = Math.max(...Object.values(model.part_seconds), 0);
  return h("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": `Parts of ${model.name}` },
    h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Part"), h("th", { scope: "col" }, "Layers"), h("th", { scope: "col", class: "wide" }, "Share"),
        h("th", { scope: "col", class: "num" }, "Weights"), h("th", { scope: "col" }, "Held by"), h("th", { scope: "col", class: "num wide" }, "In graphs"))),
      h("tbody", {}, model.parts.map((part) => h("tr", { key: String(part.part) },
        h("td", {}, String(part.part)), h("td", {}, `${part.layers[0]} to ${part.layers[1] - 1}`), h("td", { class: "wide" }, part.share),
        h("td", { class: "num" }, bytes(part.bytes)),
        h("td", {}, part.holders.map((node) => h("span", { key: node, class: "pair" }, label(node), live(state.nodes[node]) ? "" : h("span", { class: "soft" }, " away")))),
        h("td", { class: "num wide" }, time(model.part_seconds[String(part.part)], slowest)))))));
}

function time(seconds, slowest) {
  if (!seconds) return "";
  return [stacked([[seconds, "s0"], [Math.max(slowest - seconds, 0), "rest"]], `${took(seconds)} in graphs, ${took(slowest)} at the slowest part`), took(seconds)];
}

const requests = (state) => requestsTable(Object.entries(state.infers).sort((a, b) => b[0] - a[0]).slice(0, LISTED));

function requestsTable(latest) {
  if (!latest.length)
    return h("div", { class: "card empty", key: "empty" }, h("p", { class: "soft" }, "Each request to a model is told here: how it ended, and where its time went."));
  return h("div", { class: "card scroll", key: "table", role: "region", tabindex: 0, "aria-labelledby": "infers-title" },
    h("table", { id: "infers-table" },
      h("caption", { class: "unseen" }, "The latest requests to models, the newest first"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col", class: "wide" }, "At"), h("th", { scope: "col" }, "Model"), h("th", { scope: "col" }, "Answer"),
        h("th", { scope: "col", class: "num" }, "Took"), h("th", { scope: "col", class: "wide" }, "Of that"))),
      h("tbody", {}, latest.map(([number, line]) => row(number, line)))),
    h("p", { class: "legend wide inset" }, legend("until it was ready", "s1"), legend("waiting for nodes", "s2"), legend("folding here", "s3")));
}

function row(number, line) {
  const badge = { exact: ["good", "exact"], partial: ["warn", "partial"], failed: ["bad", "failed"] }[line.outcome];
  const spent = [["ready", line.seconds.ready, "s1"], ["nodes", line.seconds.wait, "s2"], ["fold", line.seconds.fold, "s3"]].filter(([, s]) => s);
  return h("tr", { key: number, "data-outcome": line.outcome },
    h("td", { class: "at wide" }, clock(line.time)),
    h("td", {}, named(line.model), h("span", { class: "sub" }, line.shapes)),
    h("td", {}, h("span", { class: `badge ${badge[0]}` }, badge[1]), line.why ? h("span", { class: "sub" }, line.why) : null),
    h("td", { class: "num" }, took(line.seconds.all)),
    h("td", { class: "wide" }, spent.length ? [stacked(spent.map(([, s, mark]) => [s, mark]), spent.map(([name, s]) => `${name} ${took(s)}`).join(", "))] : ""));
}
