// The toy recipe's own part of the page.

import { h } from "/dom.js";
import { figure, section } from "/parts.js";

export const links = [["roll", "Roll call"]];

export const sections = ({ state }) => [
  section("roll", "Roll call", "called", h("dl", { class: "figures" }, Object.entries(state.called).map(([node, times]) => figure(node, times)))),
];

export const tiles = ({ state }) => [["Called", Object.keys(state.called).length, "nodes have answered"]];

export const columns = (state) => [{ title: "Answers", cells: state.called }];

export const news = (state) => Object.entries(state.called).map(([node, times]) => [node, times, `Node ${node} has answered.`]);
