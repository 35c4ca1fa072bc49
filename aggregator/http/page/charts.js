// Pictures as SVG. Each says in words what it shows; a readout tells the value under pointer or arrow keys.

import { h } from "/dom.js";
import { short } from "/format.js";

const LEFT = 52, RIGHT = 12, TOP = 10, BOTTOM = 24, FLOOR = 8;
const chosen = new Map(); // chart -> index read out

/** Round numbers between low and high. */
function ticks(low, high, about) {
  const raw = (high - low) / about || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(Number(at.toPrecision(8)));
  return found;
}

/**
 * Lines over a growing x. lines: [{ name, x, y, mark }], where mark is the classes of its stroke;
 * unit: what x counts; redraw: called when what is read out changes.
 */
export function lineChart({ id, lines, width, height = 220, unit, label, redraw }) {
  const points = lines.flatMap((line) => line.x.map((x, i) => [x, line.y[i]]).filter(([, y]) => y !== null));
  if (!points.length) return null;
  const xs = points.map(([x]) => x), ys = points.map(([, y]) => y);
  const x0 = Math.min(...xs), x1 = Math.max(...xs, x0 + 1);
  let y0 = Math.min(...ys), y1 = Math.max(...ys);
  if (y0 > 0 && y0 < 0.5 * y1) y0 = 0;
  if (y1 === y0) y1 = y0 + (Math.abs(y0) || 1);
  const px = (x) => LEFT + ((x - x0) / (x1 - x0)) * (width - LEFT - RIGHT);
  const py = (y) => height - BOTTOM - ((y - y0) / (y1 - y0)) * (height - TOP - BOTTOM);
  const path = (line) => {
    let drawn = "", pen = "M";
    line.x.forEach((x, i) => {
      if (line.y[i] === null) return void (pen = "M");
      drawn += `${pen}${px(x).toFixed(1)} ${py(line.y[i]).toFixed(1)}`;
      pen = "L";
    });
    return drawn;
  };
  const long = lines.reduce((a, b) => (b.x.length > a.x.length ? b : a)).x;
  const choose = (index) => {
    if (chosen.get(id) === index) return;
    if (index === null) chosen.delete(id);
    else chosen.set(id, Math.max(0, Math.min(long.length - 1, index)));
    redraw();
  };
  const nearest = (x) => long.reduce((best, one, i) => (Math.abs(one - x) < Math.abs(long[best] - x) ? i : best), 0);
  const at = chosen.has(id) ? Math.min(chosen.get(id), long.length - 1) : null;
  const said = at === null ? "" : `${unit} ${long[at]}: ` + lines
    .map((line) => [line.name, line.y[line.x.indexOf(long[at])]])
    .filter(([, y]) => y !== undefined && y !== null)
    .map(([name, y]) => `${name} ${short(y)}`)
    .join(", ");
  return [
    h("svg", {
      class: "chart", role: "img", tabindex: 0, "aria-label": label, viewBox: `0 0 ${width} ${height}`, height,
      onpointermove: (event) => {
        const box = event.currentTarget.getBoundingClientRect();
        const x = ((event.clientX - box.left) / box.width) * width;
        choose(nearest(x0 + ((x - LEFT) / (width - LEFT - RIGHT)) * (x1 - x0)));
      },
      onpointerleave: () => choose(null),
      onblur: () => choose(null),
      onkeydown: (event) => {
        const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (move) choose((at ?? (move > 0 ? -1 : long.length)) + move);
        else if (event.key === "Home") choose(0);
        else if (event.key === "End") choose(long.length - 1);
        else return;
        event.preventDefault();
      },
    },
      ticks(y0, y1, 4).map((y) => [
        h("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: py(y), y2: py(y) }),
        h("text", { x: LEFT - 8, y: py(y) + 4, "text-anchor": "end" }, short(y)),
      ]),
      h("line", { class: "edge", x1: LEFT, x2: width - RIGHT, y1: height - BOTTOM, y2: height - BOTTOM }),
      ticks(x0, x1, Math.max(2, Math.min(8, width / 90))).filter(Number.isInteger).map((x) =>
        h("text", { x: px(x), y: height - 6, "text-anchor": "middle" }, String(x))),
      lines.map((line) => h("path", { class: `curve ${line.mark}`, d: path(line) })),
      lines.map((line) => {
        const last = line.y.findLastIndex((y) => y !== null);
        return last < 0 ? null : h("circle", { class: `dot ${line.mark}`, cx: px(line.x[last]), cy: py(line.y[last]), r: 3.5 });
      }),
      at === null ? null : h("line", { class: "cursor", x1: px(long[at]), x2: px(long[at]), y1: TOP, y2: height - BOTTOM }),
    ),
    h("p", { class: "readout", "aria-live": "polite" }, said),
  ];
}

/** Columns of stacked parts: columns: [{ parts: [[mark, value]], said }]. */
export function columnChart({ columns, width, height = 120, label }) {
  const top = Math.max(1, ...columns.map((c) => c.parts.reduce((sum, [, v]) => sum + v, 0)));
  const step = (width - LEFT) / columns.length;
  return h("svg", { class: "chart", role: "img", "aria-label": label, viewBox: `0 0 ${width} ${height}`, height },
    ticks(0, top, 3).filter(Number.isInteger).map((y) => {
      const at = height - FLOOR - (y / top) * (height - TOP - FLOOR);
      return [
        h("line", { class: "grid", x1: LEFT, x2: width, y1: at, y2: at }),
        h("text", { x: LEFT - 8, y: at + 4, "text-anchor": "end" }, String(y)),
      ];
    }),
    columns.map((column, i) => {
      let floor = height - FLOOR;
      return h("g", {},
        column.parts.map(([mark, value]) => {
          if (!value) return null;
          const tall = (value / top) * (height - TOP - FLOOR);
          floor -= tall;
          return h("rect", { class: mark, x: LEFT + i * step + 0.5, y: floor, width: Math.max(1, step - 1), height: tall });
        }),
        column.said ? h("title", {}, column.said) : null);
    }));
}

/** A strip of cells, darker with their share of `top`: cells: [[share or null, said]]. */
export function heatStrip(cells, top, label, height = 20) {
  return h("svg", { viewBox: `0 0 ${cells.length} 1`, preserveAspectRatio: "none", height, class: "crisp", role: "img", "aria-label": label },
    h("rect", { class: "sunk", width: cells.length, height: 1 }),
    cells.map(([share, said], i) => share === null || share === undefined ? null
      : h("rect", { class: "heat", x: i, width: 1, height: 1, "fill-opacity": (0.06 + 0.94 * Math.min(1, share / top)).toFixed(3) },
        h("title", {}, said))));
}

/** Ranges on a line of `total`. */
export function rangeBar(ranges, total, mark, label, opacity = 1) {
  return h("svg", { viewBox: "0 0 1000 1", preserveAspectRatio: "none", height: 16, role: "img", "aria-label": label },
    h("rect", { class: "sunk", width: 1000, height: 1 }),
    ranges.map(([start, stop]) => h("rect", {
      class: mark, x: (1000 * start) / total, width: Math.max(1.5, (1000 * (stop - start)) / total), height: 1, "fill-opacity": opacity,
    })));
}

/** A share of something as a bar. */
export function meter(share, mark, label) {
  return h("svg", { class: "meter", viewBox: "0 0 100 1", preserveAspectRatio: "none", role: "img", "aria-label": label },
    h("rect", { class: "sunk", width: 100, height: 1 }),
    h("rect", { class: mark, width: 100 * Math.max(0, Math.min(1, share)), height: 1 }));
}

/** Parts of a whole side by side: [[value, mark]]. */
export function stacked(parts, label) {
  const total = parts.reduce((sum, [value]) => sum + value, 0) || 1;
  let from = 0;
  return h("svg", { class: "meter", viewBox: "0 0 100 1", preserveAspectRatio: "none", role: "img", "aria-label": label },
    h("title", {}, label),
    parts.map(([value, mark]) => {
      const width = (100 * value) / total;
      from += width;
      return h("rect", { class: `fill ${mark}`, x: from - width, width, height: 1 });
    }));
}
