// Curves: drawn from the page's own data; hover reads them, a drag zooms, a double click shows all again.
"use strict";
const WIDTH = 360, HEIGHT = 220, LEFT = 54, RIGHT = 10, TOP = 8, BOTTOM = 34;
const LOGARITHMIC = 10;
const data = JSON.parse(document.getElementById("data").textContent);
const hidden = new Set();
let axis = data.axes[0].key;

function make(name, attributes, parent, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

function short(value) {
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (size >= unit && (unit > 1e3 || size >= 1e4)) return String(+(value / unit).toPrecision(3)) + letter;
  return String(+value.toPrecision(size < 1 ? 2 : 4));
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(by => by * power).find(size => size >= rough);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
  return found;
}

// A tick with as many digits as tell it from the next.
function tickLabel(at, step) {
  return Math.abs(at) >= 1e4 ? short(at) : String(+at.toFixed(Math.min(12, Math.max(0, -Math.floor(Math.log10(step))))));
}

function powers(low, high) {
  const found = [];
  for (let at = Math.ceil(Math.log10(low) - 1e-9); at <= Math.log10(high) + 1e-9; at++) found.push(10 ** at);
  return found.length > 1 ? found : [low, high];
}

// Position of a value on the page and back; logarithmic where it has to be.
function scale(low, high, from, to, logarithmic) {
  const map = logarithmic ? Math.log10 : value => value, back = logarithmic ? value => 10 ** value : value => value;
  const a = map(low), b = map(high);
  return { at: value => from + (map(value) - a) / (b - a) * (to - from), value: at => back(a + (at - from) / (to - from) * (b - a)) };
}

function visible(panel) {
  return panel.series.filter(one => !hidden.has(one.name) && one.axes[axis]);
}

function extent(panel) {
  const ends = [], starts = [];
  for (const one of visible(panel)) {
    const x = one.axes[axis].x;
    if (x.length > 1) { ends.push(x[x.length - 1]); starts.push(x.find(value => value > 0)); }
  }
  const far = ends.length > 1 && Math.max(...ends) > LOGARITHMIC * Math.min(...ends) && Math.min(...starts) > 0;
  return { low: far ? Math.min(...starts) : 0, high: ends.length ? Math.max(...ends) : 1, far };
}

function heights(panel, low, high) {
  let least = Infinity, most = -Infinity;
  for (const one of visible(panel)) {
    const line = one.axes[axis];
    line.x.forEach((x, i) => {
      if (line.x.length > 1 && (x < low || x > high)) return;
      least = Math.min(least, line.low ? line.low[i] : line.y[i]);
      most = Math.max(most, line.high ? line.high[i] : line.y[i]);
    });
  }
  if (least > most) return [0, 1];
  const margin = (most - least) * 0.05 || Math.abs(most) * 0.05 || 1;
  return [least - margin, most + margin];
}

function draw(view) {
  const { panel, svg } = view, whole = extent(panel);
  const [low, high] = view.zoom || [whole.low, whole.high], far = whole.far && low > 0;
  const [bottom, top] = heights(panel, low, high);
  view.x = scale(low, high, LEFT, WIDTH - RIGHT, far);
  view.y = scale(bottom, top, HEIGHT - BOTTOM, TOP, false);
  svg.replaceChildren();
  const clip = `clip-${view.number}`;
  make("rect", { x: LEFT, y: TOP, width: WIDTH - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM }, make("clipPath", { id: clip }, svg));
  const rungs = ticks(bottom, top, 5), places = far ? powers(low, high) : ticks(low, high, 5);
  for (const at of rungs) {
    make("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: view.y.at(at), y2: view.y.at(at) }, svg);
    make("text", { x: LEFT - 5, y: view.y.at(at) + 4, "text-anchor": "end" }, svg, tickLabel(at, rungs[1] - rungs[0] || 1));
  }
  for (const at of places) {
    const said = far ? short(at) : tickLabel(at, places[1] - places[0] || 1);
    make("text", { x: view.x.at(at), y: HEIGHT - BOTTOM + 14, "text-anchor": "middle" }, svg, said);
  }
  make("path", { class: "frame", fill: "none", d: `M${LEFT} ${TOP}V${HEIGHT - BOTTOM}H${WIDTH - RIGHT}` }, svg);
  const name = data.axes.find(one => one.key === axis).label + (far ? ", logarithmic" : "");
  make("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 5, "text-anchor": "middle" }, svg, name);
  const lines = make("g", { "clip-path": `url(#${clip})` }, svg);
  for (const one of visible(panel)) drawLine(view, one, lines, far);
  view.over = make("g", {}, svg);
}

function drawLine(view, one, lines, far) {
  const line = one.axes[axis], style = { fill: "none", stroke: one.colour, "stroke-width": 1.7, "stroke-dasharray": one.dash };
  if (line.x.length === 1) {
    make("path", { ...style, d: `M${LEFT} ${view.y.at(line.y[0])}H${WIDTH - RIGHT}` }, lines);
    return;
  }
  const kept = line.x.map((_, i) => i).filter(i => !far || line.x[i] > 0);
  const path = (values, order) => order.map(i => `${view.x.at(line.x[i]).toFixed(1)} ${view.y.at(values[i]).toFixed(1)}`).join("L");
  if (line.low) make("path", { fill: one.colour, opacity: 0.16, d: `M${path(line.high, kept)}L${path(line.low, [...kept].reverse())}Z` }, lines);
  make("path", { ...style, d: `M${path(line.y, kept)}` }, lines);
}

function nearest(xs, x) {
  let best = 0;
  xs.forEach((value, i) => { if (Math.abs(value - x) < Math.abs(xs[best] - x)) best = i; });
  return best;
}

function hover(view, at) {
  const x = view.x.value(at), rows = [];
  view.over.replaceChildren();
  make("line", { class: "cross", x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM }, view.over);
  for (const one of visible(view.panel)) {
    const line = one.axes[axis], i = nearest(line.x, x), flat = line.x.length === 1;
    if (!flat && (x < line.x[0] || x > line.x[line.x.length - 1])) continue;
    make("circle", { cx: flat ? at : view.x.at(line.x[i]), cy: view.y.at(line.y[i]), r: 3, fill: one.colour }, view.over);
    rows.push([one, `${short(line.y[i])}${line.low ? " ± " + short(line.high[i] - line.y[i]) : ""}`]);
  }
  view.tip.replaceChildren(document.createTextNode(short(x)));
  for (const [one, said] of rows) {
    const row = document.createElement("div"), dot = document.createElement("i");
    dot.style.background = one.colour;
    row.append(dot, `${one.name}  ${said}`);
    view.tip.append(row);
  }
  const box = view.svg.getBoundingClientRect(), across = at / WIDTH * box.width;
  view.tip.hidden = false;
  view.tip.style.top = "2rem";
  view.tip.style[at < WIDTH / 2 ? "left" : "right"] = `${(at < WIDTH / 2 ? across : box.width - across) + 12}px`;
  view.tip.style[at < WIDTH / 2 ? "right" : "left"] = "auto";
}

function listen(view) {
  let from = null, box = null;
  const place = event => {
    const size = view.svg.getBoundingClientRect();
    return Math.min(Math.max((event.clientX - size.left) / size.width * WIDTH, LEFT), WIDTH - RIGHT);
  };
  view.svg.addEventListener("pointerdown", event => { from = place(event); box = null; });
  view.svg.addEventListener("pointermove", event => {
    const at = place(event);
    hover(view, at);
    if (from === null || Math.abs(at - from) < 4) return;
    box = [Math.min(from, at), Math.max(from, at)];
    make("rect", { class: "zoom", x: box[0], y: TOP, width: box[1] - box[0], height: HEIGHT - TOP - BOTTOM }, view.over);
  });
  view.svg.addEventListener("pointerup", () => {
    if (box) { view.zoom = box.map(view.x.value); draw(view); }
    from = box = null;
  });
  view.svg.addEventListener("pointerleave", () => { from = box = null; view.over.replaceChildren(); view.tip.hidden = true; });
  view.svg.addEventListener("dblclick", () => { view.zoom = null; draw(view); });
}

const views = [...document.querySelectorAll("figure[data-panel]")].map((figure, number) => {
  const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" }, figure), tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  figure.append(tip);
  const view = { panel: data.panels[figure.dataset.panel], svg, tip, number, zoom: null };
  listen(view);
  return view;
});

function redraw() {
  for (const button of document.querySelectorAll("button[data-axis]")) button.setAttribute("aria-pressed", button.dataset.axis === axis);
  for (const button of document.querySelectorAll("button[data-name]")) button.classList.toggle("off", hidden.has(button.dataset.name));
  views.forEach(draw);
}

for (const button of document.querySelectorAll("button[data-axis]"))
  button.addEventListener("click", () => { axis = button.dataset.axis; for (const view of views) view.zoom = null; redraw(); });
for (const button of document.querySelectorAll("button[data-name]"))
  button.addEventListener("click", () => {
    if (!hidden.delete(button.dataset.name)) hidden.add(button.dataset.name);
    redraw();
  });
redraw();
