// Puts the page together: what comes over the feed is drawn, at most once a frame; news is also spoken.
//
// What a recipe has to show it draws itself. Its script, which /recipes.js lists, exports any of:
//   links     [[id of a section, words]], for the page's navigation
//   sections  ({ state, at, width, redraw }) => its sections, as elements (see section in /parts.js); `at` is now in seconds
//             since 1970, width(id) the pixels inside of a card in the element of that id, redraw() draws again
//   tiles     the same => [[name, value, more]], for the line at the top
//   columns   (state) => [{ title, cells }] of the table of nodes; cells has a node's text by its name
//   own       ({ state, at, width, redraw }, kind, name) => what it has to tell on the page of one thing, as that of a node
//   news      (state) => [[key, word, sentence]]; a sentence is spoken when the word of its key changes

import { h, patch } from "/dom.js";
import { follow } from "/feed.js";
import { live, nodePage, nodesTable, STATES } from "/fleet.js";
import { bytes, span, when } from "/format.js";
import recipes from "/recipes.js";
import { record } from "/records.js";

const $ = (id) => document.getElementById(id);
const WORDS = { bad: "Wrong:", warn: "Look:", note: "Note:" };

let state = null;
let drawing = false;
let connected = false;

/** What the recipes that export `name` give for it. */
const all = (name, ...given) => recipes.filter((one) => name in one).flatMap((one) => one[name](...given));

/** What has a page of its own is named in the address: #node/NAME. Everything else is on one page. */
function chosen() {
  const [, kind, name] = location.hash.match(/^#([a-z]+)\/(.+)$/) ?? [];
  if (!kind) return null;
  try {
    return { kind, name: decodeURIComponent(name) };
  } catch {
    return { kind, name };
  }
}

/** Pixels inside of a card in the element `id`; before it is drawn, in all of the page. */
const width = (id) => Math.max(260, (document.getElementById(id) ?? $(chosen() ? "own" : "recipes")).clientWidth - 34);

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
  const page = { state, at, width, redraw: draw };
  const one = chosen(), body = $(one ? "own-body" : "recipes");
  for (const id of ["tiles", "fleet", "recipes"]) $(id).hidden = one !== null;
  $("own").hidden = one === null;
  const first = !body.hasChildNodes();
  patch($("troubles"), troubles(at));
  patch($("past"), past(at));
  // What is not shown is not kept: ids are there once.
  patch($("tiles"), one ? null : tiles(page));
  patch($("nodes"), one ? null : nodesTable(state, at, all("columns", state)));
  patch($("recipes"), one ? null : all("sections", page));
  patch($("own-title"), one ? `${one.kind[0].toUpperCase()}${one.kind.slice(1)} ${one.name}` : null);
  patch($("own-body"), one ? ownPage(one, page) : null);
  if (first) draw(); // only now is it known how wide each element is
  const self = state.aggregator.self;
  patch($("about"), `Edge Attention ${self.software}; the aggregator has run since ${when(self.started)}, nodes dial ${self.address}.`);
  $("signout").hidden = !state.you;
  if (state.you) patch($("you"), `${state.you.name} (${state.you.role})`);
}

function ownPage({ kind, name }, page) {
  const found = [kind === "node" ? nodePage(state, page.at, name, all("columns", state)) : null, all("own", page, kind, name)].flat(Infinity).filter(Boolean);
  return found.length ? found : h("div", { class: "card empty", key: "empty" }, h("p", {}, `There is no ${kind} of this name, or there is none any more.`));
}

function troubles(at) {
  const found = ranked().filter(([, one]) => !one.over);
  const serious = found.filter(([, one]) => one.severity !== "note").length;
  const wrong = found.filter(([, one]) => one.severity === "bad").length;
  let title = "All is well";
  if (state.aggregator.self.phase === "draining") title = "The aggregator is stopping";
  else if (wrong) title = wrong === 1 ? "One thing is wrong" : `${wrong} things are wrong`;
  else if (serious) title = serious === 1 ? "One thing to look at" : `${serious} things to look at`;
  else if (!Object.keys(state.nodes).length) title = "Ready for its first node";
  patch($("state-title"), title);
  document.title = serious ? `(${serious}) Edge Attention` : "Edge Attention";
  return found.map(([key, one]) => trouble(key, one, at));
}

const ranked = () => Object.entries(state.troubles).sort((a, b) => a[1].rank - b[1].rank);

function trouble(key, one, at) {
  const since = one.since && !one.over ? ` ${one.nodes.length > 1 ? "The first of them for" : "For"} ${span(at - one.since)} now.` : "";
  return h("div", { key, class: `trouble ${one.over ? "over" : one.severity}`, "data-trouble": key },
    h("p", {}, one.over ? null : h("span", { class: "word" }, WORDS[one.severity]), one.text, since,
      one.more ? [" ", h("a", { href: `#${one.more}` }, "Why, and what to do")] : null),
    one.remedy ? h("p", {}, one.remedy) : null,
    one.over ? h("button", { type: "button", "aria-label": `Put away: ${one.text}`, onclick: () => putAway(key, one) }, "Put away") : null);
}

// What was wrong and is over is put away by whoever has seen it, in this browser.

const KEPT = "edge-attention-put-away", MOST = 100;
const away = record(remembered());

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(KEPT) ?? "[]").filter((one) => Array.isArray(one) && one.length === 2);
  } catch {
    return []; // storage is off, or holds what is none of this page's
  }
}

/** What tells one end of it from the next. */
const mark = (one) => one.since ?? one.text;

function putAway(key, one) {
  away[key] = mark(one);
  keep();
  render();
  ($("past").querySelector("button") ?? $("main")).focus({ preventScroll: true });
}

function keep() {
  try {
    localStorage.setItem(KEPT, JSON.stringify(Object.entries(away).slice(-MOST)));
  } catch {
    // Then it is put away for as long as the page is open.
  }
}

function past(at) {
  // What is told no more, or is wrong again, is not put away any longer.
  const gone = Object.keys(away).filter((key) => !state.troubles[key]?.over);
  for (const key of gone) delete away[key];
  if (gone.length) keep();
  const found = ranked().filter(([key, one]) => one.over && away[key] !== mark(one));
  return found.length ? [h("h2", { key: "title" }, "What was wrong"), found.map(([key, one]) => trouble(key, one, at))] : null;
}

function tiles(page) {
  const nodes = Object.values(state.nodes), here = nodes.filter(live);
  const used = here.reduce((sum, node) => sum + node.memory, 0), limit = here.reduce((sum, node) => sum + node.limit, 0);
  return [
    tile("Nodes", nodes.length ? `${here.length} of ${nodes.length}` : "0", nodes.length ? "are here" : "none has come yet"),
    tile("Memory", bytes(used), limit ? `of ${bytes(limit)} on the nodes` : "no node, no memory"),
    all("tiles", page).map(([name, value, more]) => tile(name, value, more)),
    // Of recipes whose aggregator tells the line itself.
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
    troubles: record(Object.entries(state.troubles)),
    away: record(Object.entries(state.troubles).filter(([key]) => key.startsWith("nodes/"))
      .flatMap(([, one]) => one.nodes.map((name) => [name, one.text]))),
    nodes: record(Object.entries(state.nodes).map(([name, node]) => [name, node.state])),
    recipes: record(recipes.flatMap((one, at) => (one.news?.(state) ?? []).map(([key, word, text]) => [`${at}/${key}`, [word, text]]))),
  };
  const before = told;
  told = is;
  if (!before) return;
  const said = [];
  // A sentence that several nodes have in common is news when one more has it; that of nodes that are away is told below.
  const fresh = (one, old) => !old || (one.over && !old.over) || one.nodes.some((name) => !old.nodes.includes(name));
  for (const [key, one] of Object.entries(is.troubles)) if (!key.startsWith("nodes/") && fresh(one, before.troubles[key])) said.push(one.text);
  const changed = Object.entries(is.nodes).filter(([name, word]) => before.nodes[name] !== word);
  said.push(...new Set(changed.map(([name, word]) => is.away[name] ?? `Node ${name} is ${STATES[word]?.[1] ?? word}.`)));
  for (const [key, [word, text]] of Object.entries(is.recipes)) if (before.recipes[key]?.[0] !== word) said.push(text);
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

addEventListener("hashchange", () => {
  if (!state) return;
  render();
  if (chosen()) {
    scrollTo(0, 0);
    $("main").focus({ preventScroll: true });
  } else document.getElementById(location.hash.slice(1))?.scrollIntoView();
});
setInterval(draw, 1000);
const resized = new ResizeObserver(draw);
for (const id of ["recipes", "own"]) resized.observe($(id));
patch($("sections"), [["fleet", "Fleet"], ...recipes.flatMap((one) => one.links ?? [])]
  .map(([id, words]) => h("a", { key: id, href: `#${id}` }, words)));
