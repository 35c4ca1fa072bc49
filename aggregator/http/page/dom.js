// Elements described as plain objects, and the page brought to match: what stays keeps its focus and scroll.

const SVG = "http://www.w3.org/2000/svg";

/** An element: h("p", { class: "soft" }, "text", h("b", {}, "more")). `key` tells siblings apart that move. */
export function h(tag, attributes = {}, ...children) {
  const { key, ...rest } = attributes;
  return { tag, key, attributes: rest, children };
}

/** Make the children of `parent` what `content` says: elements, text, lists of them; null is nothing. */
export function patch(parent, ...content) {
  const wanted = content.flat(Infinity).filter((one) => one !== null && one !== undefined && one !== false);
  const keyed = new Map();
  for (const node of parent.childNodes) if (node.key !== undefined) keyed.set(node.key, node);
  let at = parent.firstChild;
  for (const want of wanted) {
    const node = typeof want === "object" ? element(parent, at, keyed, want) : text(at, String(want));
    if (node === at) at = at.nextSibling;
    else parent.insertBefore(node, at);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

function text(at, want) {
  if (!at || at.nodeType !== Node.TEXT_NODE) return document.createTextNode(want);
  if (at.data !== want) at.data = want;
  return at;
}

function element(parent, at, keyed, want) {
  let node = want.key !== undefined ? keyed.get(want.key) : at && at.key === undefined ? at : null;
  if (!node || node.nodeType !== Node.ELEMENT_NODE || node.localName !== want.tag) {
    const drawn = want.tag === "svg" || (parent.namespaceURI === SVG && parent.localName !== "foreignObject");
    node = drawn ? document.createElementNS(SVG, want.tag) : document.createElement(want.tag);
    node.key = want.key;
    node.given = {};
  }
  for (const [name, value] of Object.entries(want.attributes)) {
    if (node.given[name] === value) continue;
    if (name.startsWith("on")) node[name] = value;
    else if (value === null || value === undefined || value === false) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const name of Object.keys(node.given)) {
    if (name in want.attributes) continue;
    if (name.startsWith("on")) node[name] = null;
    else node.removeAttribute(name);
  }
  node.given = want.attributes;
  patch(node, want.children);
  return node;
}
