// Runs: where each stands, what it waits for, its curves; and rounds as they are committed.

import { lineChart } from "/charts.js";
import { h } from "/dom.js";
import { label, linked, named, names } from "/fleet.js";
import { clock, count, percent, plural, sentence, short, some, took, when } from "/format.js";
import { figure, section, strips } from "/parts.js";
import { record } from "/records.js";

const SHOWN = 3, LISTED = 8;

export const links = [["training", "Training"]];

export function sections({ state, width, redraw }) {
  return [
    section("training", "Training", "runs", runCards(state, width("runs"), redraw)),
    section("rounds", "Rounds as they happen", "committed", roundsTable(rounds(state).filter((round) => round.time !== null).slice(0, LISTED), "Each round of a run is told here when its version is committed.")),
  ];
}

/** A run: how it stands, and its rounds. A node: what it does for runs, and where it was left out. */
export function own({ state, width, redraw }, kind, name) {
  if (kind === "run" && name in state.runs) {
    const run = state.runs[name];
    return [
      card(name, run, state, width("own-body"), redraw),
      run.notes.length ? h("ul", { class: "notes soft", key: "notes" }, run.notes.map((note) => h("li", {}, note))) : null,
      section("rounds", "Its rounds", "committed", roundsTable(rounds(state).filter((round) => round.run === name),
        run.round ? `Only the latest rounds are remembered here: edge-attention train watch ${name} tells all.` : "It has committed none.")),
    ];
  }
  if (kind === "node" && name in state.nodes) {
    const takesPart = Object.entries(state.runs).filter(([, run]) => run.state === "running" && name in run.nodes);
    const out = rounds(state).filter((round) => name in round.left_out);
    if (!takesPart.length && !out.length) return null;
    return section("training", "Training", "runs", h("ul", { class: "card" },
      takesPart.map(([id, run]) => h("li", { key: id }, linked("run", id), `: ${run.nodes[name]}`)),
      out.map((round) => h("li", { key: `${round.run}/${round.number}` }, h("span", { class: "at" }, `${at(round)} `), linked("run", round.run),
        ` went without it in round ${count(round.number)}: ${round.left_out[name]}`))));
  }
  return null;
}

// Those of an earlier life of the aggregator have no time: they come last, as they were told.
const rounds = (state) => Object.values(state.rounds).reverse().sort((a, b) => (b.time ?? 0) - (a.time ?? 0));

export function tiles({ state }) {
  const going = Object.values(state.runs).filter((run) => run.state === "running");
  const waiting = going.filter((run) => run.waiting).length;
  return [["Training", plural(going.length, "run"), going.length === 1 && !waiting ? `round ${going[0].round} of ${going[0].rounds}`
    : waiting ? `${waiting === going.length && going.length === 1 ? "it waits" : `${waiting} wait`}` : going.length ? "going on" : "none going on"]];
}

export const news = (state) => Object.entries(state.runs).map(([id, run]) => [id, run.state, `Run ${id} is ${run.state}.`]);

const STATES = { running: "good", finished: "done", stopped: "note", failed: "bad" };

function runCards(state, width, redraw) {
  const runs = Object.entries(state.runs).sort(([, a], [, b]) => (b.state === "running") - (a.state === "running") || b.created - a.created);
  if (!runs.length)
    return h("div", { class: "card empty", key: "empty" },
      h("p", {}, "No training run yet. A job is a TOML file over an ONNX model; see first what it would run and what nodes have to let leave:"),
      h("pre", { tabindex: 0 }, h("code", {}, "edge-attention train job.toml --plan\nedge-attention train job.toml --watch")));
  const going = runs.filter(([, run]) => run.state === "running").length;
  const shown = Math.max(SHOWN, Math.min(going, 8));
  return [
    runs.slice(0, shown).map(([id, run]) => card(id, run, state, width, redraw)),
    runs.length > shown ? h("details", { class: "card", key: "earlier" }, h("summary", {}, plural(runs.length - shown, "earlier run")),
      h("ul", {}, runs.slice(shown).map(([id, run]) => h("li", { key: id, id: `run-${id}` },
        linked("run", id), `: ${run.state}, round ${count(run.round)} of ${count(run.rounds)}, begun ${when(run.created)}`,
        run.state === "failed" ? failed(run) : null)))) : null,
  ];
}

function last(curve, name) {
  const values = curve?.y[name] ?? [];
  const at = values.findLastIndex((value) => value !== null);
  return at < 0 ? null : { x: curve.x[at], y: values[at] };
}

function card(id, run, state, width, redraw) {
  const curves = state.curves[id];
  const loss = last(curves?.loss, "loss"), held = last(curves?.evaluation, "loss");
  const metrics = Object.keys(curves?.evaluation.y ?? {}).filter((name) => name !== "loss");
  const waits = run.state === "running" && run.waiting;
  const said = run.waiting.includes(" waits for ") ? run.waiting : `waits for ${run.waiting}`;
  return h("article", { class: "card", id: `run-${id}`, key: id, "data-run": id, "data-state": run.state },
    h("div", { class: "head" }, h("h3", {}, linked("run", id)), h("span", { class: `badge ${STATES[run.state] ?? "note"}` }, run.state),
      h("span", { class: "soft small push" }, `${run.name}, begun ${when(run.created)}`)),
    waits ? h("p", { class: "waits" }, `${sentence(said)}.`) : null,
    run.state === "failed" ? failed(run) : run.detail ? h("p", { class: "soft" }, sentence(run.detail)) : null,
    h("dl", { class: "figures" },
      figure("round", `${count(run.round)} of ${count(run.rounds)}`),
      figure("version", count(run.version)),
      run.best === null ? null : figure("best version", count(run.best)),
      loss ? figure("loss", short(loss.y)) : null,
      held ? figure("held-out loss", short(held.y)) : null,
      metrics.map((name) => [name, last(curves.evaluation, name)]).filter(([, v]) => v).map(([name, value]) => figure(`held out: ${name}`, percent(value.y))),
      run.samples ? figure("samples", `${count(run.samples.train)} to train, ${count(run.samples.holdout)} held out`) : null),
    run.state === "finished" ? null : h("progress", { max: run.rounds, value: run.round, "aria-label": `round ${run.round} of ${run.rounds}` }),
    curves && curves.loss.x.length > 1 ? lossChart(id, curves, width, redraw) : null,
    doing(run, state),
    curves && curves.mass.x.length ? [
      h("h4", { class: "soft small" }, "Attention by node, round by round"),
      strips({ key: `mass-${id}`, card: false, rows: Object.keys(curves.mass.y).slice(0, 24), from: `round ${curves.mass.x[0]}`, to: `round ${curves.mass.x.at(-1)}`,
        columns: curves.mass.x.map((x, i) => [`round ${x}`, record(Object.entries(curves.mass.y).map(([n, v]) => [n, v[i]]))]),
        said: (node, mean) => `${node} received ${mean} of attention on average over the run` }),
    ] : null);
}

/** Why it failed and what to do: said here only, and pointed to from what was wrong. */
const failed = (run) => h("div", { class: "failed" }, h("p", {}, sentence(run.detail)), run.remedy ? h("p", { class: "soft small" }, run.remedy) : null);

function lossChart(id, curves, width, redraw) {
  const { loss, evaluation } = curves;
  const values = loss.y.loss.filter((value) => value !== null);
  const lines = [{ name: "loss", x: loss.x, y: loss.y.loss, mark: "s0" }];
  if (evaluation.y.loss?.length) lines.push({ name: "held-out loss", x: evaluation.x, y: evaluation.y.loss, mark: "s1 dashed" });
  if (!values.length) return null;
  const told = `Loss from ${short(values[0])} at round ${loss.x[0]} to ${short(values.at(-1))} at round ${loss.x.at(-1)}; arrow keys read it out`;
  return h("div", { class: "losses" },
    lineChart({ id, lines, width, unit: "round", label: told, redraw }),
    lines.length > 1 ? h("p", { class: "legend" }, lines.map((line) => h("span", {}, h("i", { class: `key ${line.mark}` }), line.name))) : null);
}

function doing(run, state) {
  const told = Object.entries(run.nodes);
  if (run.state !== "running" || !told.length) return null;
  const order = names(state);
  told.sort(([a], [b]) => order.indexOf(a) - order.indexOf(b));
  return h("div", { class: "doing", "aria-label": "What each node of the round does", role: "group" },
    told.slice(0, 40).map(([name, what]) => h("span", { key: name, class: "pair" }, label(name), h("span", { class: "soft" }, what))),
    told.length > 40 ? h("span", {}, `and ${told.length - 40} more`) : null);
}

function roundsTable(latest, without) {
  if (!latest.length) return h("div", { class: "card empty", key: "empty" }, h("p", { class: "soft" }, without));
  return h("div", { class: "card scroll", key: "table", role: "region", tabindex: 0, "aria-labelledby": "rounds-title" },
    h("table", { id: "rounds-table" },
      h("caption", { class: "unseen" }, "The latest rounds, the newest first"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col", class: "wide" }, "At"), h("th", { scope: "col" }, "Run"), h("th", { scope: "col", class: "num" }, "Round"),
        h("th", { scope: "col", class: "num" }, "Loss"), h("th", { scope: "col", class: "num wide" }, "Took"), h("th", { scope: "col", class: "wide" }, "Nodes"))),
      h("tbody", {}, latest.map((round) => h("tr", { key: `${round.run}/${round.number}` },
        h("td", { class: "at wide" }, at(round)), h("td", {}, named(round.run)), h("td", { class: "num" }, count(round.number)),
        h("td", { class: "num" }, round.loss === null ? "not finite" : short(round.loss)),
        h("td", { class: "num wide" }, took(round.seconds)), h("td", { class: "wide" }, plural(round.nodes, "node"), left(round.left_out)))))));
}

const at = (round) => (round.time === null ? "earlier" : clock(round.time));

function left(out) {
  const told = Object.entries(out).map(([name, why]) => `${name}: ${why}`);
  return told.length ? h("span", { class: "sub" }, `left out ${some(told, 3)}`) : null;
}
