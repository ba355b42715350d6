// What a node is: the line under the pointer, and the panel of what is selected.

function valueRows(node) {
  return node.outputs.map((output, index) => {
    const bad = output.nans || output.infs;
    const title = node.outputs.length > 1 ? `${index}` : "";
    return `<tr class="${bad ? (node.meant ? "meant" : "bad") : ""}"><th>${title}</th><td>${escapeText(output.dtype)}</td>` +
      `<td>${shapeText(output)}</td><td>${escapeText(rangeText(output)) || "–"}</td></tr>`;
  }).join("");
}

function sourceText(graph, node) {
  if (!node.line) return "";
  const [file, line, name, code] = node.line;
  return `<p class="source"><span>${escapeText(graph.files[file])}:${line}</span> <span class="muted">in ${escapeText(name)}</span></p>` +
    (code ? `<pre>${escapeText(code)}</pre>` : "");
}

function breakable(text) { return escapeText(text).replace(/([._])/g, "$1<wbr>"); }

function kindText(node) {
  return node.kind === "op" ? `${PASSES[node.pass]} op` : node.kind === "gradient" ? PASSES[node.pass] : node.kind;
}

function tipMarkup(graph, view, item) {
  if (item.kind === "group") {
    const alike = item.twin >= 0 ? `<p class="muted">${graph.twins.get(item.twin).length} modules are alike</p>` : "";
    const bad = badCount(item, view);
    return `<b>${escapeText(item.path || item.label)}</b><p><code>${escapeText(item.text)}</code></p>` +
      `<p class="muted">${passesOf(item)}</p>${alike}${bad ? `<p class="bad">${count(bad, "node")} not finite</p>` : ""}`;
  }
  return `<b>${escapeText(item.kind === "op" ? item.op : item.name)}</b> <span class="muted">${kindText(item)}</span>` +
    `<table>${valueRows(item)}</table>${sourceText(graph, item)}` +
    (item.group.path ? `<p class="muted">in module ${escapeText(item.group.path)}</p>` : "");
}

function passesOf(group) {
  return PASSES.map((pass, index) => [pass, group.all.filter(node => node.pass === index && node.kind === "op").length])
    .filter(([, ops]) => ops).map(([pass, ops]) => `${ops} ${pass}`).join(", ") + " ops";
}

function linkTo(item, text) {
  return `<button type="button" class="link lane${item.kind === "group" ? "" : item.lane}" data-go="${keyOf(item)}">${escapeText(text)}</button>`;
}

function nodeLinks(graph, ids, title) {
  if (!ids.length) return "";
  const shown = ids.slice(0, 12).map(id => {
    const node = graph.nodes[id];
    const output = node.outputs[0];
    return `<li>${linkTo(node, node.kind === "op" ? node.label : node.name)} <span class="muted">${output ? shapeText(output) : ""}</span></li>`;
  });
  const rest = ids.length > 12 ? `<li class="muted">and ${ids.length - 12} more</li>` : "";
  return `<h3>${title}</h3><ul>${shown.join("")}${rest}</ul>`;
}

function nodeDetails(graph, node) {
  const partner = node.partner >= 0 ? nodeLinks(graph, [node.partner], "Derivative of") : "";
  return `<h2 class="lane${node.lane}">${breakable(node.kind === "op" ? node.op : node.name)}</h2>` +
    `<p class="muted">${kindText(node)}${node.bad ? ' · <b class="bad">not finite</b>' : node.meant ? " · infinite on purpose" : ""}</p>` +
    sourceText(graph, node) +
    (node.outputs.length ? `<table><tr><th></th><th>type</th><th>shape</th><th>range</th></tr>${valueRows(node)}</table>` : "") +
    (node.group.path ? `<p>module ${linkTo(node.group, node.group.path)}</p>` : "") + coneButtons() +
    nodeLinks(graph, node.inputs, "Reads") + nodeLinks(graph, node.users, "Read by") + partner +
    nodeLinks(graph, node.helpers, "Its derivative");
}

function groupDetails(graph, view, group, open) {
  const bad = group.all.filter(node => node.bad && view.shown[node.id]);
  const alike = group.twin < 0 ? [] : graph.twins.get(group.twin);
  const parameters = group.all.filter(node => node.kind === "parameter");
  const words = parameters.reduce((sum, node) => sum + product(node.outputs[0].shape), 0);
  const twins = alike.length ? `<h3>${alike.length} alike</h3><ul>${alike.slice(0, 24).map(g => `<li>${linkTo(g, g.path)}</li>`).join("")}</ul>` : "";
  return `<h2>${breakable(group.path || group.label)}</h2><p><code>${escapeText(group.text)}</code></p>` +
    `<p class="muted">${passesOf(group)}${parameters.length ? ` · ${count(parameters.length, "parameter")}, ${short(words)} numbers` : ""}</p>` +
    (group.id ? `<p><button type="button" data-toggle="${group.id}">${open ? "Close" : "Open"} this module</button></p>` : "") +
    (group.id ? coneButtons() : notesOf(graph) + opCounts(graph)) +
    nodeLinks(graph, bad.map(node => node.id), "Not finite") + twins + nodeLinks(graph, parameters.map(node => node.id), "Parameters");
}

function notesOf(graph) {
  return graph.notes.length ? `<h3>Notes</h3><ul>${graph.notes.map(note => `<li>${escapeText(note)}</li>`).join("")}</ul>` : "";
}

function opCounts(graph) {
  const counts = new Map();
  for (const node of graph.nodes) if (node.kind === "op") counts.set(node.label, (counts.get(node.label) || 0) + 1);
  const rows = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 16);
  return `<h3>Ops</h3><table>${rows.map(([name, times]) => `<tr><td>${times}</td><td>${escapeText(name)}</td></tr>`).join("")}</table>`;
}

function coneButtons() {
  return `<p class="cones"><button type="button" data-cone="inputs" aria-pressed="false">What led here</button>` +
    `<button type="button" data-cone="users" aria-pressed="false">What it led to</button></p>`;
}

function legendMarkup(graph) {
  const passes = [["0", "forward, downwards"], ["1", "backward, upwards"], ["2", "double backward through the backward pass"], ["3", "double backward through the forward pass"]];
  const lanes = new Set(graph.nodes.map(node => String(node.lane)));
  const line = ([lane, text]) => `<li><svg width="34" height="14"><path class="edge lane${lane}" style="stroke-width:2" d="M1 7H26" marker-end="url(#arrow${lane})"/></svg>${text}</li>`;
  const shape = (kind, text, more = "") => `<li><svg width="34" height="16"><g class="item ${kind} ${more}" transform="translate(1 1)"><path class="shape" d="${outline(kind, 30, 14)}"/></g></svg>${text}</li>`;
  const twins = graph.twins.size ? `<li><svg width="34" height="16"><rect x="4" width="24" height="15" rx="7.5" style="fill:${twinColor(0)}"/></svg>modules alike: one color</li>` : "";
  return `<ul>${passes.filter(([lane]) => lanes.has(lane)).map(line).join("")}` +
    `<li><svg width="34" height="14"><path class="kept lane1" d="M1 7H30"/></svg>value kept for a later pass</li>` +
    `${shape("input", "argument")}${shape("parameter", "parameter or buffer")}${shape("constant", "tensor from outside")}${shape("op", "operation", "lane0")}` +
    `${shape("answer", "output")}${shape("gradient", "gradient", "lane1")}${shape("op", "not finite", "bad")}${twins}</ul>` +
    `<p class="muted">Drag or scroll to move, Ctrl + scroll or pinch to zoom. Double-click, or Enter, opens and closes a module. ` +
    `Arrow keys follow the edges; / searches; 0 shows all.</p>`;
}
