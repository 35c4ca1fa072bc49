// Puts the page together: what comes over the feed is drawn, at most once a frame; news is also spoken.

import { h, patch } from "/dom.js";
import { follow } from "/feed.js";
import { contextMaps, live, nodesTable, STATES } from "/fleet.js";
import { bytes, count, percent, plural, span, when } from "/format.js";
import { answers, latestQueries, massStrips, totals } from "/queries.js";
import { record } from "/records.js";
import { roundsTable, runCards } from "/training.js";

const $ = (id) => document.getElementById(id);
const WORDS = { bad: "Wrong:", warn: "Look:", note: "Note:" };

let state = null;
let drawing = false;
let connected = false;

const now = () => Date.now() / 1000 + (state?.skew ?? 0);

function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    if (state) render();
  });
}

function render() {
  const at = connected ? now() : state.until;
  const width = Math.max(260, $("runs").clientWidth - 34);
  patch($("troubles"), troubles(at));
  patch($("tiles"), tiles(at));
  patch($("nodes"), nodesTable(state, at));
  patch($("contexts"), contextMaps(state));
  patch($("answers"), answers(state, at, Math.max(260, $("answers").clientWidth - 34)));
  patch($("asked"), latestQueries(state));
  patch($("masses"), massStrips(state, at));
  patch($("runs"), runCards(state, width, draw));
  patch($("committed"), roundsTable(state));
  const self = state.aggregator.self;
  patch($("about"), `Edge Attention ${self.software}; the aggregator has run since ${when(self.started)}, nodes dial ${self.address}.`);
  $("signout").hidden = !state.you;
  if (state.you) patch($("you"), `${state.you.name} (${state.you.role})`);
}

function troubles(at) {
  const found = Object.entries(state.troubles).sort((a, b) => a[1].rank - b[1].rank);
  const serious = found.filter(([, one]) => one.severity !== "note").length;
  const wrong = found.filter(([, one]) => one.severity === "bad").length;
  let title = "All is well";
  if (state.aggregator.self.phase === "draining") title = "The aggregator is stopping";
  else if (wrong) title = wrong === 1 ? "One thing is wrong" : `${wrong} things are wrong`;
  else if (serious) title = serious === 1 ? "One thing to look at" : `${serious} things to look at`;
  else if (!Object.keys(state.nodes).length) title = "Ready for its first node";
  patch($("state-title"), title);
  document.title = serious ? `(${serious}) Edge Attention` : "Edge Attention";
  return found.map(([key, one]) => h("div", { key, class: `trouble ${one.severity}`, "data-trouble": key },
    h("p", {}, h("span", { class: "word" }, WORDS[one.severity]), one.text, one.since ? ` For ${span(at - one.since)} now.` : ""),
    one.remedy ? h("p", {}, one.remedy) : null));
}

function tiles(at) {
  const nodes = Object.values(state.nodes), here = nodes.filter(live);
  const used = here.reduce((sum, node) => sum + node.memory, 0), limit = here.reduce((sum, node) => sum + node.limit, 0);
  const contexts = Object.values(state.contexts);
  const tokens = contexts.reduce((sum, context) => sum + context.tokens, 0);
  const sum = totals(state, at);
  const going = Object.values(state.runs).filter((run) => run.state === "running");
  const waiting = going.filter((run) => run.waiting).length;
  return [
    tile("Nodes", nodes.length ? `${here.length} of ${nodes.length}` : "0", nodes.length ? "are here" : "none has come yet"),
    tile("Memory", bytes(used), limit ? `of ${bytes(limit)} on the nodes` : "no node, no memory"),
    tile("Tokens", count(tokens), `in ${plural(contexts.length, "context")}`),
    tile("Queries", count(sum.all), sum.answered ? `in 5 minutes, ${percent(sum.exact / sum.answered)} exact` : "in the last 5 minutes"),
    tile("Training", plural(going.length, "run"), going.length === 1 && !waiting ? `round ${going[0].round} of ${going[0].rounds}`
      : waiting ? `${waiting === going.length && going.length === 1 ? "it waits" : `${waiting} wait`}` : going.length ? "going on" : "none going on"),
    // Of recipes that this page has no section for.
    Object.entries(state.tiles).map(([name, { value, more }]) => tile(name, value, more)),
  ];
}

const tile = (name, value, more) => h("div", { key: name }, h("dt", {}, name), h("dd", {}, value), h("dd", { class: "small" }, more));

// News for those who listen rather than look: only what has changed, in one sentence or two.

const TOLD = 6; // sentences kept, so that one that comes close upon another is not lost
let told = null;
let news = [];
let spoken = 0;

function speak() {
  const is = {
    troubles: record(Object.entries(state.troubles).map(([key, one]) => [key, one.text])),
    nodes: record(Object.entries(state.nodes).map(([name, node]) => [name, node.state])),
    runs: record(Object.entries(state.runs).map(([id, run]) => [id, run.state])),
  };
  const before = told;
  told = is;
  if (!before) return;
  const said = [];
  for (const [key, text] of Object.entries(is.troubles)) if (!(key in before.troubles) && !key.startsWith("node/")) said.push(text);
  for (const [name, word] of Object.entries(is.nodes))
    if (before.nodes[name] !== word) said.push(is.troubles[`node/${name}`] ?? `Node ${name} is ${STATES[word]?.[1] ?? word}.`);
  for (const [id, word] of Object.entries(is.runs)) if (before.runs[id] !== word) said.push(`Run ${id} is ${word}.`);
  if (!said.length) return;
  news = [...news, ...said.slice(0, TOLD).map((text) => h("p", { key: (spoken += 1) }, text))].slice(-TOLD);
  patch($("news"), news);
}

follow(
  (next) => {
    state = next;
    speak();
    draw();
  },
  (word, text) => {
    if (word === "lost" && connected && state) state.until = now();
    connected = word === "live";
    $("connection").className = `connection ${word}`;
    patch($("connection"), text);
    document.body.classList.toggle("stale", !connected && state !== null);
    draw();
  },
);

setInterval(draw, 1000);
new ResizeObserver(draw).observe($("runs"));
