// The drawing itself, as SVG.

const FONTS = { label: "600 12.5px", small: "400 10.5px" };
const context = document.createElement("canvas").getContext("2d");

const widths = new Map();

function textWidth(text, font) {
  const key = `${font} ${text}`;
  if (!widths.has(key)) {
    context.font = `${FONTS[font]} ${textWidth.family ||= getComputedStyle(document.body).fontFamily}`;
    widths.set(key, context.measureText(text).width);
  }
  return widths.get(key);
}

function cut(text, most) {
  return text.length > most ? text.slice(0, Math.ceil(most / 2) - 1) + "…" + text.slice(1 - Math.floor(most / 2)) : text;
}

// The lines of text in an item.
function linesOf(item, view) {
  if (item.kind !== "group") {
    const output = item.outputs[0];
    const more = item.outputs.length > 1 ? ` +${item.outputs.length - 1}` : "";
    return [cut(item.label, 26), output ? shapeText(output) + more : ""];
  }
  const inside = item.all.filter(node => view.shown[node.id]);
  const ops = inside.filter(node => node.kind === "op").length;
  const weights = item.all.reduce((sum, node) => sum + (node.kind === "parameter" ? product(node.outputs[0].shape) : 0), 0);
  return [titleText(item), [count(ops, "op"), weights ? short(weights) + " parameters" : ""].filter(Boolean).join(" · ")];
}

function product(shape) { return shape.reduce((a, b) => a * b, 1); }

function short(value) {
  const units = ["", "k", "M", "G"];
  let unit = 0;
  while (value >= 1000 && unit < 3) { value /= 1000; unit++; }
  return `${Number(value.toPrecision(3))}${units[unit]}`;
}

function measurer(view) {
  const texts = new Map();
  const lines = item => {
    const key = keyOf(item);
    if (!texts.has(key)) texts.set(key, linesOf(item, view));
    return texts.get(key);
  };
  return {
    lines,
    item(item) {
      const [first, second] = lines(item);
      const wide = Math.max(textWidth(first, "label"), textWidth(second, "small"));
      if (item.kind === "group") return [Math.max(130, wide + 46 + (item.twin >= 0 ? 38 : 0)), 40];
      const slanted = item.kind === "op" ? 20 : 34;
      return [Math.max(46, wide + slanted), second ? 36 : 26];
    },
    title(group) {
      return group.id === 0 ? 0 : textWidth(titleText(group), "label") + 60 + (group.twin >= 0 ? 40 : 0);
    },
  };
}

function titleText(group) { return group.label === group.cls ? group.label : `${cut(group.label, 26)} ${cut(group.cls, 28)}`; }

function titleMarkup(group) {
  return escapeText(cut(group.label, 26)) + (group.label === group.cls ? "" : ` <tspan>${escapeText(cut(group.cls, 28))}</tspan>`);
}

function outline(kind, w, h) {
  const s = 8;
  if (kind === "input" || kind === "constant") return `M0 0H${w}L${w - s} ${h}H${s}Z`;
  if (kind === "gradient") return `M${s} 0H${w - s}L${w} ${h}H0Z`;
  if (kind === "answer") return `M${s} 0H${w - s}L${w} ${s}V${h - s}L${w - s} ${h}H${s}L0 ${h - s}V${s}Z`;
  const c = kind === "parameter" || kind === "buffer" ? h / 2 : kind === "group" ? 9 : 6;
  return `M${c} 0H${w - c}A${c} ${c} 0 0 1 ${w} ${c}V${h - c}A${c} ${c} 0 0 1 ${w - c} ${h}H${c}A${c} ${c} 0 0 1 0 ${h - c}V${c}A${c} ${c} 0 0 1 ${c} 0Z`;
}

function escapeText(text) {
  return String(text).replace(/[&<>"]/g, mark => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[mark]);
}

function badCount(item, view) {
  return item.kind === "group" ? item.all.filter(node => node.bad && view.shown[node.id]).length : item.bad ? 1 : 0;
}

function twinColor(twin) { return `hsl(${(205 + twin * 67) % 360} 55% var(--twin))`; }

function itemMarkup(graph, view, measure, box) {
  const { item, w, h, key } = box;
  const bad = badCount(item, view);
  const group = item.kind === "group";
  const lane = group ? "" : `lane${item.lane}`;
  const classes = ["item", group ? (box.open ? "open" : "shut") : item.kind, lane, bad ? "bad" : "", item.meant ? "meant" : ""].join(" ");
  const [first, second] = measure.lines(item);
  const name = group ? `module ${item.path || item.label}, ${item.text}` : `${item.label} ${second}, ${PASSES[item.pass]}`;
  const label = `${name}${bad ? `, ${bad} not finite` : ""}`;
  const state = group ? ` aria-expanded="${box.open}"` : "";
  let inside = `<path class="shape" d="${outline(item.kind, w, h)}"/>`;
  if (group) {
    inside += `<g class="toggle"><rect x="0" y="0" width="30" height="${box.open ? 26 : h}" fill="transparent"/>` +
      `<path class="arrow" d="${box.open ? "M11 11h9l-4.5 6z" : `M13 ${h / 2 - 5}v10l6-5z`}"/></g>`;
    if (item.twin >= 0) inside += twinMarkup(graph, item, box);
  }
  const x = group ? 30 : w / 2;
  if (!box.open) {
    inside += `<text class="label" x="${r(x)}" y="${second ? (group ? 17 : 15.5) : 17.5}">${group ? titleMarkup(item) : escapeText(first)}</text>`;
    if (second) inside += `<text class="small" x="${r(x)}" y="${group ? 31.5 : 28.5}">${escapeText(second)}</text>`;
  }
  if (bad) inside += `<g class="alarm" transform="translate(${r(w)} 0)"><circle r="${group ? 11 : 8}"/><text y="3.5">${group ? short(bad) : "!"}</text></g>`;
  return `<g class="${classes}" id="${key}" data-key="${key}" transform="translate(${r(box.x)} ${r(box.y)})" role="button" tabindex="-1" aria-label="${escapeText(label)}"${state}>${inside}</g>`;
}

function twinMarkup(graph, group, box) {
  const alike = graph.twins.get(group.twin);
  const text = `×${alike.length}`;
  const wide = textWidth(text, "small") + 12;
  const x = box.w - wide - 10, y = box.open ? 6 : box.h / 2 - 8;
  return `<g class="twins" transform="translate(${r(x)} ${r(y)})"><rect width="${r(wide)}" height="16" rx="8" style="fill:${twinColor(group.twin)}"/>` +
    `<text x="${r(wide / 2)}" y="11.8">${text}</text></g>`;
}

function edgeLabel(graph, one) {
  const first = graph.nodes[one.values.values().next().value];
  const more = one.values.size > 1 ? ` +${one.values.size - 1}` : "";
  return first.outputs.length ? shapeText(first.outputs[0]) + more : "";
}

function drawEdges(graph, drawn) {
  return drawn.pieces.map((one, index) => {
    const wide = one.values.size > 1 ? Math.min(3.2, 1.5 + 0.45 * Math.log2(one.values.size)) : 1.5;
    const bad = [...one.values].some(id => graph.nodes[id].bad);
    return `<path class="edge lane${one.lane}${bad ? " bad" : ""}" data-piece="${index}" d="${one.path}" style="stroke-width:${r(wide)}"` +
      `${one.arrow ? ` marker-end="url(#arrow${bad ? "bad" : one.lane})"` : ""}/>`;
  }).join("");
}

function drawLabels(graph, drawn) {
  const taken = new Set();
  return drawn.pieces.filter(one => one.label && one.lane === 0 && one.group).map(one => {
    const text = edgeLabel(graph, one), key = `${Math.round(one.label[0] / 40)} ${Math.round(one.label[1] / 12)}`;
    if (!text || taken.has(key)) return "";
    taken.add(key);
    return `<text class="flow" x="${r(one.label[0] + 6)}" y="${r(one.label[1] + 3.5)}">${escapeText(text)}</text>`;
  }).join("");
}

// Edges between passes: values that the forward pass keeps for the backward pass. Straight from item to item.
function crossingPath(from, to) {
  const leftward = to.x + to.w / 2 < from.x + from.w / 2;
  const x1 = leftward ? from.x : from.x + from.w, x2 = leftward ? to.x + to.w : to.x;
  const y1 = from.y + Math.min(from.h, 46) / 2, y2 = to.y + Math.min(to.h, 46) / 2;
  const bend = Math.max(24, Math.abs(x2 - x1) * 0.45) * (leftward ? -1 : 1);
  return `M${r(x1)} ${r(y1)}C${r(x1 + bend)} ${r(y1)} ${r(x2 - bend)} ${r(y2)} ${r(x2)} ${r(y2)}`;
}

function drawCrossing(drawn) {
  return drawn.crossing.map((one, index) => {
    const [from, to] = [drawn.items.get(one.from), drawn.items.get(one.to)];
    return from && to ? `<path class="kept lane${one.lane}" data-crossing="${index}" d="${crossingPath(from, to)}" marker-end="url(#arrow${one.lane})"/>` : "";
  }).join("");
}

function drawAll(graph, view, drawn, measure) {
  const boxes = [...drawn.items.values()];
  const open = boxes.filter(box => box.open).sort((a, b) => b.w * b.h - a.w * a.h);
  const rest = boxes.filter(box => !box.open);
  const markup = list => list.map(box => itemMarkup(graph, view, measure, box)).join("");
  const titles = open.filter(box => box.item.id).map(box => `<text class="title" x="${r(box.x + 28)}" y="${r(box.y + 18)}">${titleMarkup(box.item)}</text>`).join("");
  return `<g class="frames">${markup(open)}</g><g class="edges">${drawEdges(graph, drawn)}</g>` +
    `<g class="crossing">${drawCrossing(drawn)}</g><g class="flows">${drawLabels(graph, drawn)}</g><g class="titles">${titles}</g><g class="items">${markup(rest)}</g><g class="marks"></g>`;
}

function markers() {
  return ["0", "1", "2", "3", "bad"].map(name =>
    `<marker id="arrow${name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7.5" markerHeight="7.5" markerUnits="userSpaceOnUse" orient="auto">` +
    `<path class="head lane${name}" d="M0 0.8L7.5 4L0 7.2Z"/></marker>`).join("");
}
