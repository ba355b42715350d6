// Places for everything that is drawn: each open module is laid out by itself, then as one box within the module around it.
// A value that crosses a module's border does so at a port, which the layouts on both sides know.

const GAP = { row: 26, item: 16, thread: 9, lane: 26, pad: 15, head: 27 };
const ASIDE = { parameter: -0.3, buffer: -0.3, constant: -0.2, gradient: 0.3 }; // weights to the left, gradients to the right

function layout(graph, view, open, measure) {
  const groupOf = id => graph.groups[id];
  const isOpen = group => { for (let g = group; g; g = groupOf(g.parent)) if (!open.has(g.id)) return false; return true; };
  const opened = graph.groups.map(isOpen);
  const stands = graph.nodes.map(node => {
    let rep = null;
    for (let g = node.group; g; g = groupOf(g.parent)) if (!opened[g.id]) rep = g;
    return rep;
  });
  const levels = new Map();
  const level = group => {
    if (!levels.has(group.id)) levels.set(group.id, { group, items: new Map(), links: new Map(), ports: new Map() });
    return levels.get(group.id);
  };
  graph.groups.forEach(group => { if (opened[group.id]) level(group); });
  for (const node of graph.nodes) {
    if (!view.shown[node.id]) continue;
    const rep = stands[node.id];
    let around = rep ? groupOf(rep.parent) : node.group;
    addItem(level(around), rep || node, node);
    for (; around.id !== 0; around = groupOf(around.parent)) addItem(level(groupOf(around.parent)), around, node);
  }
  const crossing = new Map();
  for (const [a, b] of view.edges) {
    const [u, v] = [graph.nodes[a], graph.nodes[b]];
    const [from, to] = [stands[a] || u, stands[b] || v];
    if (from === to) continue;
    if (u.lane !== v.lane) { addCrossing(crossing, from, to, u, v); continue; }
    addLinks(graph, level, from, to, u);
  }
  const deepFirst = [...levels.values()].sort((a, b) => depth(graph, b.group) - depth(graph, a.group));
  const boxes = new Map();
  for (const one of deepFirst) boxes.set(one.group.id, layoutLevel(one, boxes, view, measure));
  return { ...absolute(boxes, graph), crossing: [...crossing.values()], stands, opened };
}

function keyOf(item) { return (item.kind === "group" ? "g" : "n") + item.id; }

function depth(graph, group) { let deep = 0; while (group.parent >= 0) { deep++; group = graph.groups[group.parent]; } return deep; }

function addItem(level, item, node) {
  const key = keyOf(item);
  if (!level.items.has(key)) level.items.set(key, { key, item, lanes: new Set(), first: node.id });
  level.items.get(key).lanes.add(node.lane);
}

function addCrossing(crossing, from, to, u, v) {
  const key = keyOf(from) + ">" + keyOf(to);
  if (!crossing.has(key)) crossing.set(key, { from: keyOf(from), to: keyOf(to), lane: v.lane, values: new Set(), readers: new Set() });
  crossing.get(key).values.add(u.id);
  crossing.get(key).readers.add(v.id);
}

// An edge in pieces: out of every module around its start, across the module around both ends, into every module around its end.
function addLinks(graph, level, from, to, u) {
  const path = item => {
    const found = [];
    for (let g = item.kind === "group" ? graph.groups[item.parent] : item.group; g; g = graph.groups[g.parent]) found.push(g);
    return found;
  };
  const [up, down] = [path(from), path(to)];
  const both = new Set(up);
  const common = down.find(g => both.has(g));
  let start = { item: from, port: null };
  for (const g of up) {
    if (g === common) break;
    const port = `out ${u.id} ${u.lane}`;
    addLink(level(g), keyOf(start.item), start.port, "port", port, u);
    start = { item: g, port };
  }
  let end = { item: to, port: null };
  for (const g of down) {
    if (g === common) break;
    const port = `in ${u.id} ${u.lane}`;
    addLink(level(g), "port", port, keyOf(end.item), end.port, u);
    end = { item: g, port };
  }
  addLink(level(common), keyOf(start.item), start.port, keyOf(end.item), end.port, u);
}

function addLink(level, from, fromPort, to, toPort, u) {
  const key = `${from}/${fromPort}>${to}/${toPort}/${u.lane}`;
  if (from === "port") level.ports.set(fromPort, { lane: u.lane, out: false });
  if (to === "port") level.ports.set(toPort, { lane: u.lane, out: true });
  if (!level.links.has(key)) level.links.set(key, { from, fromPort, to, toPort, lane: u.lane, values: new Set() });
  level.links.get(key).values.add(u.id);
}

function layoutLevel(level, boxes, view, measure) {
  level.titleWidth = measure.title(level.group);
  const items = [...level.items.values()].sort((a, b) => a.first - b.first);
  for (const entry of items) {
    const box = boxes.get(entry.item.kind === "group" ? entry.item.id : -1);
    [entry.w, entry.h] = box ? [box.w, box.h] : measure.item(entry.item, entry.lanes);
    entry.box = box;
    const lanes = [...entry.lanes];
    entry.lane = entry.item.kind === "group" ? (lanes.length > 1 ? 0.5 : lanes[0]) : lanes[0] + (ASIDE[entry.item.kind] || 0);
    entry.floating = ["parameter", "buffer", "constant", "gradient"].includes(entry.item.kind);
    entry.source = entry.item.kind === "input";
  }
  const links = [...level.links.values()];
  for (const link of links) if (link.from === "port" && level.items.has(link.to)) level.items.get(link.to).source = true;
  const inner = links.filter(link => link.from !== "port" && link.to !== "port");
  const beside = [];
  for (const { item, key } of items) {
    if (item.kind === "group" || view.partner[item.id] < 0) continue;
    const other = "n" + view.partner[item.id];
    if (other !== key && level.items.has(other)) beside.push([other, key]);
  }
  const rank = items.length ? assignRanks(items, inner, beside) : new Map();
  return placeLevel(level, items, links, rank);
}

function placeLevel(level, items, links, rank) {
  const last = Math.max(0, ...rank.values()) + 2;
  const rows = Array.from({ length: last + 1 }, () => []);
  const cells = new Map();
  const cell = (key, row, data) => {
    const made = { key, row, up: [], down: [], w: 0, h: 0, ...data };
    rows[row].push(made);
    cells.set(key, made);
    return made;
  };
  for (const entry of items) cell(entry.key, rank.get(entry.key) + 1, { ...entry, entry });
  for (const [name, port] of level.ports) {
    const top = DOWN[port.lane] !== port.out;
    cell(`port ${name}`, top ? 0 : last, { lane: port.lane, first: Number(name.split(" ")[1]), port: name });
  }
  const pieces = new Map(), loops = [];
  for (const link of links) thread(link, cells, cell, pieces, loops);
  const threads = [...pieces.values()];
  connect(threads);
  orderRows(rows, 8);
  for (const row of rows) row.forEach((one, index) => { one.before = index ? distance(row[index - 1], one) : 0; });
  placeRows(rows, 32);
  return finish(level, rows, items, threads, loops);
}

// The cells that an edge passes: those of the edges from the same end are shared.
function thread(link, cells, cell, pieces, loops) {
  const add = (a, aPort, b, bPort, end) => {
    const key = `${a.key}/${aPort}>${b.key}/${bPort}/${link.lane}`;
    const same = pieces.get(key);
    if (same) link.values.forEach(value => same.values.add(value));
    else pieces.set(key, { a, b, aPort, bPort, link, end, values: new Set(link.values) });
  };
  const source = link.from === "port" ? `port ${link.fromPort}` : link.from;
  const target = link.to === "port" ? `port ${link.toPort}` : link.to;
  const [a, b] = [cells.get(source), cells.get(target)];
  const step = DOWN[link.lane] ? 1 : -1;
  if ((b.row - a.row) * step <= 0) { loops.push({ a, b, link }); return; }
  let now = a, port = link.fromPort;
  for (let row = a.row + step; row !== b.row; row += step) {
    const key = `via ${source} ${link.fromPort} ${link.lane} ${row}`;
    const next = cells.get(key) || cell(key, row, { lane: link.lane, first: a.first, via: true });
    add(now, port, next, null, false);
    [now, port] = [next, null];
  }
  add(now, port, b, link.toPort, true);
}

function connect(threads) {
  for (const one of threads) {
    one.ax = one.a.key.startsWith("port") ? 0 : portPlace(one.a, one.aPort, one.link.lane);
    one.bx = one.b.key.startsWith("port") ? 0 : portPlace(one.b, one.bPort, one.link.lane);
    const thin = [one.a, one.b].filter(end => end.via || end.port).length;
    const weight = [1, 2, 6][thin] * (one.link.lane === 0 ? 3 : 1); // the forward pass is drawn straightest
    const [high, low] = one.a.row < one.b.row ? [one.a, one.b] : [one.b, one.a];
    const [highX, lowX] = high === one.a ? [one.ax, one.bx] : [one.bx, one.ax];
    high.down.push([low, weight, highX, lowX]);
    low.up.push([high, weight, lowX, highX]);
  }
}

// Where an edge meets an item, from its middle: at a port of an open module, at a lane's place of a closed one.
function portPlace(one, port, lane) {
  if (one.via || one.port || !one.entry) return 0;
  if (one.box && port) return one.box.ports.get(port) ?? 0;
  if (one.entry.item.kind !== "group") return 0;
  const lanes = [...one.entry.lanes].sort();
  return (lanes.indexOf(lane) - (lanes.length - 1) / 2) * [0, 0, 76, 44, 32][lanes.length]; // alike for all, so that edges are straight
}

function distance(a, b) {
  const thin = a.via || a.port || b.via || b.port;
  const gap = Math.abs(a.lane - b.lane) > 0.6 ? GAP.lane : thin ? GAP.thread : GAP.item;
  return (a.w + b.w) / 2 + gap;
}

function finish(level, rows, items, threads, loops) {
  let left = Infinity, right = -Infinity;
  for (const row of rows) for (const one of row) { left = Math.min(left, one.x - one.w / 2); right = Math.max(right, one.x + one.w / 2); }
  if (left === Infinity) [left, right] = [0, 60];
  const root = level.group.id === 0;
  const least = root ? 0 : level.titleWidth || 0;
  const extra = Math.max(0, least - (right - left)) / 2;
  const pad = GAP.pad + (loops.length ? 10 : 0);
  [left, right] = [left - pad - extra, right + pad + extra];
  const middle = (left + right) / 2;
  const heights = rows.map(row => Math.max(0, ...row.map(one => one.h)));
  let y = root ? 0 : GAP.head;
  const tops = rows.map((row, index) => {
    const top = index === 0 ? 0 : y;
    if (index > 0) y += heights[index] + (index < rows.length - 2 ? GAP.row : 0);
    if (index === 0 && !root) y += row.length ? 8 : 0;
    return top;
  });
  const height = y + GAP.pad;
  tops[rows.length - 1] = height;
  rows.forEach((row, index) => row.forEach(one => {
    one.cx = one.x - middle;
    one.top = tops[index] + (heights[index] - one.h) / 2;
    one.rowTop = tops[index];
    one.rowBottom = tops[index] + heights[index];
  }));
  const ports = new Map();
  for (const index of [0, rows.length - 1]) for (const one of rows[index]) ports.set(one.port, one.cx);
  return { group: level.group, w: right - left, h: height, ports, cells: rows.flat(), threads, loops };
}

// From places within each module to places on the page.
function absolute(boxes, graph) {
  const items = new Map(), pieces = [];
  const put = (box, x, y) => {
    for (const one of box.cells) {
      if (!one.entry) continue;
      const [left, top] = [x + box.w / 2 + one.cx - one.w / 2, y + one.top];
      items.set(one.key, { key: one.key, item: one.entry.item, x: left, y: top, w: one.w, h: one.h, open: !!one.box, lanes: one.entry.lanes, row: one.row });
      if (one.box) put(one.box, left, top);
    }
    for (const one of box.threads) pieces.push(piece(one, x + box.w / 2, y));
    for (const one of box.loops) pieces.push(loop(one, x + box.w / 2, y, box));
  };
  const root = boxes.get(0);
  put(root, 0, 0);
  return { items, pieces, w: root.w, h: root.h };
}

function piece({ a, b, ax, bx, link, end, values }, x, y) {
  const down = a.row < b.row;
  const leave = down ? a.top + a.h : a.top, arrive = down ? b.top : b.top + b.h;
  const [edgeA, edgeB] = down ? [a.rowBottom, b.rowTop] : [a.rowTop, b.rowBottom];
  const [x1, x2] = [x + a.cx + ax, x + b.cx + bx];
  const passing = one => one.via && one.rowBottom > one.rowTop;
  const start = passing(a) ? edgeA : leave, stop = passing(b) ? edgeB : arrive;
  const bend = (edgeA + edgeB) / 2 + y;
  let path = `M${r(x1)} ${r(start + y)}`;
  if (Math.abs(start - edgeA) > 0.5) path += `L${r(x1)} ${r(edgeA + y)}`;
  path += `C${r(x1)} ${r(bend)} ${r(x2)} ${r(bend)} ${r(x2)} ${r(edgeB + y)}`;
  if (Math.abs(stop - edgeB) > 0.5) path += `L${r(x2)} ${r(stop + y)}`;
  if (passing(b)) path += `L${r(x2)} ${r((down ? b.rowBottom : b.rowTop) + y)}`;
  const arrow = end && link.to !== "port" && !(b.box && link.toPort);
  const group = [a, b].some(one => one.entry && one.entry.item.kind === "group");
  return { path, lane: link.lane, values, arrow, group, label: end && b.entry && a.entry ? [(x1 + x2) / 2, bend] : null };
}

// An edge against the direction of its lane goes around the side.
function loop({ a, b, link }, x, y, box) {
  const side = x + Math.max(a.cx + a.w / 2, b.cx + b.w / 2) + 12;
  const [x1, y1, x2, y2] = [x + a.cx + a.w / 2, y + a.top + a.h / 2, x + b.cx + b.w / 2, y + b.top + b.h / 2];
  return { path: `M${r(x1)} ${r(y1)}C${r(side)} ${r(y1)} ${r(side)} ${r(y2)} ${r(x2)} ${r(y2)}`, lane: link.lane, values: link.values, arrow: true, label: null };
}

function r(value) { return Math.round(value * 10) / 10; }
