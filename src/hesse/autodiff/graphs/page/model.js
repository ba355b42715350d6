// The graph as objects: nodes, modules, and the edges that remain once views are hidden.

const PASSES = ["forward", "backward", "double backward"];
const FROM_OUTSIDE = new Set(["input", "parameter", "buffer", "constant"]);

function decode(data) {
  const groups = data.modules.map(([path, text, parent, twin], id) => ({
    id, path, text, parent, twin, kind: "group", children: [], nodes: [], all: [], label: "", cls: text.split("(")[0],
  }));
  for (const group of groups) {
    if (group.id === 0) { group.label = data.title; continue; }
    const above = groups[group.parent < 0 ? 0 : group.parent];
    group.parent = above.id;
    above.children.push(group);
    group.label = group.path.slice(above.path ? above.path.length + 1 : 0);
  }
  const nodes = data.nodes.map(([name, op, kind, pass, lane, module, line, outputs, inputs, partner, flags], id) => ({
    id, name, op: data.ops[op], kind, pass, lane, group: groups[module], line: data.lines[line] || null, inputs, partner,
    outputs: outputs.map(([dtype, shape, low, high, nans = 0, infs = 0]) => ({ dtype: data.dtypes[dtype], shape, low, high, nans, infs })),
    users: [], helpers: [], bad: !!(flags & 1), meant: !!(flags & 2), view: !!(flags & 4),
  }));
  for (const node of nodes) {
    node.label = shortName(node);
    node.group.nodes.push(node);
    for (const input of node.inputs) nodes[input].users.push(node.id);
    if (node.partner >= 0) nodes[node.partner].helpers.push(node.id);
    for (let group = node.group; group; group = groups[group.parent]) group.all.push(node);
  }
  for (const group of groups) {
    // a view is drawn where its module does nothing but views
    group.plain = !group.nodes.some(node => node.kind === "op" && !node.view);
  }
  const twins = new Map();
  for (const group of groups) {
    if (group.twin >= 0) twins.set(group.twin, [...(twins.get(group.twin) || []), group]);
  }
  return { title: data.title, notes: data.notes, files: data.files, nodes, groups, twins };
}

function shortName(node) {
  if (node.kind === "op") {
    const parts = node.op.split(".");
    return parts.length > 1 && parts[0] === "aten" ? parts[1] : parts.length > 2 ? parts.slice(0, -1).join(".") : node.op;
  }
  if (node.kind === "parameter" || node.kind === "buffer") return node.op.split(".").pop();
  if (node.kind === "gradient") return (node.pass > 1 ? "∂² " : "∂ ") + node.op.replace(/^.* by /, "").split(".").slice(-1)[0];
  return node.op;
}

function shapeText(output) {
  return output.shape.length ? output.shape.join("×") : "scalar";
}

function rangeText(output) {
  const parts = [];
  if (output.low !== null) parts.push(output.low === output.high ? `${number(output.low)}` : `${number(output.low)} … ${number(output.high)}`);
  if (output.nans) parts.push(`${output.nans} NaN`);
  if (output.infs) parts.push(`${output.infs} inf`);
  return parts.join(", ");
}

function number(value) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  const text = size >= 1e5 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  return text.replace("-", "−").replace("e+", "e");
}

function count(number_, word) {
  return `${number_.toLocaleString("en-US")} ${word}${number_ === 1 ? "" : "s"}`;
}

// Which nodes are shown, and what each reads of them: hidden views lead on to what they view.
function shownGraph(graph, settings) {
  const shown = graph.nodes.map(node => settings.passes.has(node.pass) && (settings.views || !node.view || node.group.plain));
  const sources = new Array(graph.nodes.length);
  const follow = id => {
    if (shown[id]) return [id];
    if (!sources[id]) {
      sources[id] = [];
      const node = graph.nodes[id];
      if (node.view && settings.passes.has(node.pass)) sources[id] = [...new Set(node.inputs.flatMap(follow))];
    }
    return sources[id];
  };
  const edges = [];
  for (const node of graph.nodes) {
    if (!shown[node.id]) continue;
    for (const from of new Set(node.inputs.flatMap(follow))) edges.push([from, node.id]);
  }
  const partner = graph.nodes.map(node => {
    let other = node.partner;
    while (other >= 0 && !shown[other]) {
      const inputs = graph.nodes[other].inputs;
      other = graph.nodes[other].view && inputs.length ? inputs[0] : -1;
    }
    return other;
  });
  return { shown, edges, partner };
}

// The modules that are open at first: level by level, as long as what is drawn stays within a number.
function startOpen(graph, shown, most) {
  const open = new Set([0]);
  const drawn = group => group.nodes.filter(node => shown[node.id]).length + group.children.filter(child => child.all.some(n => shown[n.id])).length;
  let level = [graph.groups[0]];
  let total = drawn(graph.groups[0]);
  while (level.length) {
    const next = level.flatMap(group => group.children).filter(child => child.all.some(node => shown[node.id]));
    const more = next.reduce((sum, child) => sum + drawn(child) - 1, 0);
    if (!next.length || total + more > most) break;
    next.forEach(child => open.add(child.id));
    total += more;
    level = next;
  }
  return open;
}
