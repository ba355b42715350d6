// The page's state and what changes it: opening modules, moving, searching, selecting.

const graph = decode(JSON.parse(document.getElementById("data").textContent));
const byId = id => document.getElementById(id);
const [drawing, world, stage, details, tip, search, found] = ["drawing", "world", "stage", "details", "tip", "search", "found"].map(byId);
const settings = { passes: new Set(graph.nodes.map(node => node.pass)), views: false, kept: false };
const camera = { x: 0, y: 0, scale: 1 };
const MOST_AT_FIRST = 44;
let view = shownGraph(graph, settings);
let open = startOpen(graph, view.shown, MOST_AT_FIRST);
let drawn = null, selected = null, cone = null, focused = null;

function render(keep) {
  const before = keep && drawn && drawn.items.get(keep);
  view = shownGraph(graph, settings);
  const measure = measurer(view);
  drawn = layout(graph, view, open, measure);
  world.innerHTML = drawAll(graph, view, drawn, measure);
  drawing.classList.toggle("keeps", settings.kept);
  const after = keep && drawn.items.get(keep);
  if (before && after) { camera.x += (before.x - after.x) * camera.scale; camera.y += (before.y - after.y) * camera.scale; }
  move();
  mark();
  if (focused && drawn.items.has(focused)) setFocus(focused, false);
}

function move() {
  world.setAttribute("transform", `translate(${r(camera.x)} ${r(camera.y)}) scale(${camera.scale.toFixed(4)})`);
  drawing.classList.toggle("far", camera.scale < 0.45);
}

function free() {
  const box = drawing.getBoundingClientRect();
  const narrow = box.width < 700;
  const panel = details.hidden || narrow ? 0 : details.getBoundingClientRect().width;
  const sheet = !details.hidden && narrow ? details.getBoundingClientRect().height : 0;
  return { w: box.width - panel, h: box.height - (sheet || (narrow ? 52 : 0)) };
}

function fit(least = 0) {
  const space = free();
  const scale = Math.min((space.w - 48) / drawn.w, (space.h - 48) / drawn.h, 1.15);
  camera.scale = Math.max(scale, least, 0.02);
  camera.x = Math.max((space.w - drawn.w * camera.scale) / 2, 16); // what is too wide begins at the left
  camera.y = Math.max((space.h - drawn.h * camera.scale) / 2, 24);
  move();
}

function zoom(factor, x, y) {
  const scale = Math.min(4, Math.max(0.02, camera.scale * factor));
  camera.x = x - (x - camera.x) * (scale / camera.scale);
  camera.y = y - (y - camera.y) * (scale / camera.scale);
  camera.scale = scale;
  move();
}

function center(key) {
  const box = drawn.items.get(key), space = free();
  if (!box) return;
  camera.scale = Math.max(camera.scale, 0.8);
  camera.x = space.w / 2 - (box.x + box.w / 2) * camera.scale;
  camera.y = space.h / 2 - (box.y + Math.min(box.h, space.h / camera.scale) / 2) * camera.scale;
  move();
}

function itemOf(key) { return key[0] === "g" ? graph.groups[Number(key.slice(1))] : graph.nodes[Number(key.slice(1))]; }

function toggle(group) {
  if (group.id === 0) return;
  if (open.has(group.id)) open.delete(group.id); else open.add(group.id);
  render(keyOf(group));
  setFocus(keyOf(group), true);
  if (selected === keyOf(group)) showDetails();
}

// Everything that must be open for an item to be seen.
function reveal(item) {
  let changed = false;
  if (item.kind !== "group" && !view.shown[item.id]) { settings.views = settings.views || item.view; settings.passes.add(item.pass); changed = true; syncTools(); }
  for (let g = item.kind === "group" ? graph.groups[item.parent] : item.group; g; g = graph.groups[g.parent]) {
    if (!open.has(g.id)) { open.add(g.id); changed = true; }
  }
  if (changed) render();
}

function go(key) {
  const item = itemOf(key);
  reveal(item);
  select(key);
  center(key);
  setFocus(key, true);
}

function select(key) {
  selected = key;
  cone = null;
  showDetails();
  mark();
  if (drawn.items.has(key)) seeFocus(key);
}

function showDetails() {
  details.hidden = !selected;
  if (!selected) return;
  const item = itemOf(selected);
  details.innerHTML = `<button type="button" class="close" aria-label="Close details">×</button>` +
    (item.kind === "group" ? groupDetails(graph, view, item, open.has(item.id)) : nodeDetails(graph, item));
}

// All that a node was computed from ("inputs"), or all that was computed from it ("users").
function coneOf(item, links) {
  const waiting = item.kind === "group" ? item.all.map(node => node.id) : [item.id];
  const seen = new Set(waiting);
  while (waiting.length) for (const id of graph.nodes[waiting.pop()][links]) if (!seen.has(id)) { seen.add(id); waiting.push(id); }
  return seen;
}

function mark() {
  const item = selected && selected !== "g0" && itemOf(selected);
  const read = new Set(!item || item.kind === "group" ? [] : view.edges.filter(([, to]) => to === item.id).map(([from]) => from));
  const chosen = new Set(!item ? [] : item.kind === "group" ? item.all.map(node => node.id) : [item.id]);
  for (const element of world.querySelectorAll(".item")) {
    const own = itemOf(element.dataset.key);
    const within = cone && (own.kind === "group" ? own.all.some(node => cone.has(node.id)) : cone.has(own.id));
    element.classList.toggle("selected", element.dataset.key === selected);
    element.classList.toggle("dim", !!cone && !within);
  }
  for (const element of world.querySelectorAll(".edge")) {
    const values = [...drawn.pieces[Number(element.dataset.piece)].values];
    element.classList.toggle("dim", !!cone && !values.some(id => cone.has(id)));
    element.classList.toggle("near", values.some(id => chosen.has(id)) || values.some(id => read.has(id)));
  }
  for (const element of world.querySelectorAll(".kept")) {
    const one = drawn.crossing[Number(element.dataset.crossing)];
    element.classList.toggle("dim", !!cone && !([...one.values].some(id => cone.has(id)) && [...one.readers].some(id => cone.has(id))));
    element.classList.toggle("near", !!selected && (one.from === selected || one.to === selected));
  }
}

function setFocus(key, grab) {
  world.querySelectorAll('[tabindex="0"]').forEach(element => element.setAttribute("tabindex", "-1"));
  const element = byId(key);
  focused = element ? key : null;
  if (!element) return;
  element.setAttribute("tabindex", "0");
  if (grab) element.focus({ preventScroll: true });
}

// Keyboard: along edges where there are some, else to what lies in that direction.
function neighbor(key, direction) {
  const box = drawn.items.get(key);
  if (!box) return null;
  const from = [box.x + box.w / 2, box.y + (box.open ? 13 : box.h / 2)];
  let best = null, least = Infinity;
  for (const other of drawn.items.values()) {
    if (other.key === key) continue;
    const dx = other.x + other.w / 2 - from[0], dy = other.y + (other.open ? 13 : other.h / 2) - from[1];
    const [along, across] = { ArrowDown: [dy, dx], ArrowUp: [-dy, dx], ArrowRight: [dx, dy], ArrowLeft: [-dx, dy] }[direction];
    const far = along + 2.5 * Math.abs(across);
    if (along > 4 && far < least) { least = far; best = other.key; }
  }
  return best;
}

function seeFocus(key) {
  const box = drawn.items.get(key), space = free();
  const x = camera.x + box.x * camera.scale, y = camera.y + box.y * camera.scale;
  if (x < 10 || y < 10 || x + box.w * camera.scale > space.w - 10 || y + Math.min(box.h, 60) * camera.scale > space.h - 10) center(key);
}

function onKey(event) {
  if (event.target === search) return;
  const key = event.key, middle = free();
  if (key === "/") { search.focus(); search.select(); }
  else if (key === "+" || key === "=") zoom(1.25, middle.w / 2, middle.h / 2);
  else if (key === "-") zoom(0.8, middle.w / 2, middle.h / 2);
  else if (key === "0") fit();
  else if (key === "Escape") { cone = null; selected = null; showDetails(); mark(); hideTip(); }
  else if (!drawing.contains(event.target)) return;
  else if (key.startsWith("Arrow")) {
    const next = focused ? neighbor(focused, key) : drawn.items.keys().next().value;
    if (next) { setFocus(next, true); seeFocus(next); showTip(next); }
  } else if ((key === "Enter" || key === " ") && focused) {
    const item = itemOf(focused);
    if (item.kind === "group" && key === "Enter") toggle(item); else select(focused);
  } else return;
  event.preventDefault();
}

function showTip(key, x, y) {
  const element = byId(key);
  if (!element) return;
  tip.innerHTML = tipMarkup(graph, view, itemOf(key));
  tip.hidden = false;
  const box = stage.getBoundingClientRect(), own = element.getBoundingClientRect(), size = tip.getBoundingClientRect();
  const left = x === undefined ? own.right - box.left + 10 : x - box.left + 16;
  const top = y === undefined ? own.top - box.top : y - box.top + 18;
  tip.style.left = `${Math.max(6, left + size.width > box.width - 6 ? left - size.width - 32 : left)}px`;
  tip.style.top = `${Math.max(6, Math.min(top, box.height - size.height - 6))}px`;
}

function hideTip() { tip.hidden = true; }

function keyAt(event) {
  const element = event.target.closest && event.target.closest(".item");
  return element && world.contains(element) ? element.dataset.key : null;
}

// Pointer: drag moves, two fingers zoom, a click selects.
const pointers = new Map();
let dragged = false;

drawing.addEventListener("pointerdown", event => { pointers.set(event.pointerId, [event.clientX, event.clientY]); dragged = false; });
window.addEventListener("pointermove", event => {
  const last = pointers.get(event.pointerId);
  if (!last) return;
  const now = [event.clientX, event.clientY];
  if (!dragged && pointers.size === 1 && Math.hypot(now[0] - last[0], now[1] - last[1]) < 4) return;
  dragged = true;
  hideTip();
  drawing.classList.add("moving");
  if (pointers.size === 1) { camera.x += now[0] - last[0]; camera.y += now[1] - last[1]; move(); }
  else if (pointers.size === 2) {
    const other = [...pointers].find(([id]) => id !== event.pointerId)[1], box = drawing.getBoundingClientRect();
    const factor = Math.hypot(now[0] - other[0], now[1] - other[1]) / Math.max(1, Math.hypot(last[0] - other[0], last[1] - other[1]));
    camera.x += (now[0] - last[0]) / 2;
    camera.y += (now[1] - last[1]) / 2;
    zoom(factor, (now[0] + other[0]) / 2 - box.left, (now[1] + other[1]) / 2 - box.top);
  }
  pointers.set(event.pointerId, now);
});
for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, event => { pointers.delete(event.pointerId); drawing.classList.remove("moving"); });
drawing.addEventListener("wheel", event => {
  event.preventDefault();
  hideTip();
  const box = drawing.getBoundingClientRect(), unit = event.deltaMode === 1 ? 16 : 1;
  if (event.ctrlKey || event.metaKey) zoom(Math.exp(-event.deltaY * unit * 0.004), event.clientX - box.left, event.clientY - box.top);
  else {
    camera.x -= (event.shiftKey ? event.deltaY : event.deltaX) * unit;
    camera.y -= (event.shiftKey ? 0 : event.deltaY) * unit;
    move();
  }
}, { passive: false });
drawing.addEventListener("click", event => {
  if (dragged) return;
  const key = keyAt(event);
  if (!key) { selected = null; cone = null; showDetails(); mark(); return; }
  setFocus(key, true);
  if (event.target.closest(".toggle") && key[0] === "g") toggle(itemOf(key)); else select(key);
});
drawing.addEventListener("dblclick", event => { const key = keyAt(event); if (key && key[0] === "g" && !event.target.closest(".toggle")) toggle(itemOf(key)); });
drawing.addEventListener("pointerover", event => { const key = keyAt(event); if (key && event.pointerType === "mouse" && !pointers.size) showTip(key, event.clientX, event.clientY); else hideTip(); });
drawing.addEventListener("pointerleave", hideTip);
drawing.addEventListener("focus", () => { if (!focused) setFocus(drawn.items.keys().next().value, true); });
document.addEventListener("keydown", onKey);

details.addEventListener("click", event => {
  const target = event.target.closest("button");
  if (!target) return;
  if (target.classList.contains("close")) { selected = null; cone = null; showDetails(); mark(); }
  else if (target.dataset.go) go(target.dataset.go);
  else if (target.dataset.toggle) toggle(graph.groups[Number(target.dataset.toggle)]);
  else if (target.dataset.cone) {
    const pressed = target.getAttribute("aria-pressed") === "true";
    cone = pressed ? null : coneOf(itemOf(selected), target.dataset.cone);
    details.querySelectorAll("[data-cone]").forEach(button => button.setAttribute("aria-pressed", String(!pressed && button === target)));
    mark();
  }
});

// Search: operations, names, modules and lines; "nan" finds what is not finite.
function matches(text) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return [];
  const odd = ["nan", "inf", "non-finite", "not finite"].includes(wanted), scored = [];
  for (const item of [...graph.groups.slice(1), ...graph.nodes]) {
    const group = item.kind === "group";
    const name = (group ? item.label : item.label.replace(/^_+/, "")).toLowerCase();
    const rest = group ? [item.path, item.cls] : [item.name, item.op, item.line ? `${graph.files[item.line[0]]}:${item.line[1]} ${item.line[3]}` : ""];
    let score = name === wanted ? 1 : name.startsWith(wanted) ? 2 : name.includes(wanted) ? 3 : rest.some(part => part.toLowerCase().includes(wanted)) ? 4 : 0;
    if (odd && !group && item.bad) score = 0.5;
    if (score) scored.push([score + (item.view ? 5 : 0) + (item.pass || 0) * 1.5, item]);
  }
  return scored.sort((a, b) => a[0] - b[0] || a[1].id - b[1].id).map(([, item]) => item);
}

function showFound() {
  const items = matches(search.value);
  found.hidden = !search.value.trim();
  search.setAttribute("aria-expanded", String(!found.hidden));
  found.innerHTML = items.slice(0, 60).map((item, index) => {
    const where = item.kind === "group" ? item.text : [item.group.path, item.outputs[0] && shapeText(item.outputs[0])].filter(Boolean).join(" · ");
    return `<li role="option" id="found${index}" data-go="${keyOf(item)}" class="lane${item.kind === "group" ? "" : item.lane}${item.bad ? " bad" : ""}" aria-selected="${index === 0}">` +
      `<b>${escapeText(item.kind === "group" ? item.path : item.kind === "op" ? item.label : item.name)}</b> <span>${escapeText(cut(where, 60))}</span></li>`;
  }).join("") + (items.length > 60 ? `<li class="muted">and ${items.length - 60} more</li>` : items.length ? "" : `<li class="muted">nothing found</li>`);
}

function choose(step) {
  const options = [...found.querySelectorAll("[data-go]")];
  const now = options.findIndex(option => option.getAttribute("aria-selected") === "true");
  const next = options[(now + step + options.length) % options.length];
  options.forEach(option => option.setAttribute("aria-selected", String(option === next)));
  if (next) { next.scrollIntoView({ block: "nearest" }); search.setAttribute("aria-activedescendant", next.id); }
}

function closeSearch() { found.hidden = true; search.setAttribute("aria-expanded", "false"); }

search.addEventListener("input", showFound);
search.addEventListener("focus", () => { if (search.value) showFound(); });
search.addEventListener("keydown", event => {
  if (event.key === "ArrowDown" || event.key === "ArrowUp") { choose(event.key === "ArrowDown" ? 1 : -1); event.preventDefault(); }
  else if (event.key === "Enter") {
    const option = found.querySelector('[aria-selected="true"]');
    if (option) { go(option.dataset.go); closeSearch(); }
  } else if (event.key === "Escape") { closeSearch(); drawing.focus(); }
});
found.addEventListener("mousedown", event => { event.preventDefault(); const option = event.target.closest("[data-go]"); if (option) { go(option.dataset.go); closeSearch(); } });
search.addEventListener("blur", () => setTimeout(closeSearch, 120));

// One level more or less, of all that is shown.
function oneLevel(deeper) {
  const depths = [...open].map(id => depth(graph, graph.groups[id]));
  const deepest = Math.max(...depths), before = open.size;
  if (deeper) graph.groups.filter(group => group.parent >= 0 && open.has(group.parent) && drawn.items.has(keyOf(group))).forEach(group => open.add(group.id));
  else if (deepest > 0) open = new Set([...open].filter(id => depth(graph, graph.groups[id]) < deepest));
  if (open.size === before) return;
  render();
  fit(0.4);
}

// On paper: all of it, as large as the page allows.
function print(on) {
  if (on) {
    drawing.setAttribute("viewBox", `-8 -8 ${r(drawn.w + 16)} ${r(drawn.h + 16)}`);
    world.removeAttribute("transform");
    drawing.classList.remove("far");
  } else {
    drawing.removeAttribute("viewBox");
    move();
  }
}

function syncTools() {
  byId("views").checked = settings.views;
  byId("kept").checked = settings.kept;
  byId("passes").querySelectorAll("button").forEach(button => button.setAttribute("aria-pressed", String(settings.passes.has(Number(button.dataset.pass)))));
}

function startTools() {
  const passes = [...new Set(graph.nodes.map(node => node.pass))].sort();
  byId("passes").innerHTML = passes.length < 2 ? "" : passes.map(pass => `<button type="button" class="lane${pass}" data-pass="${pass}" aria-pressed="true">${PASSES[pass]}</button>`).join("");
  byId("passes").addEventListener("click", event => {
    const pass = Number(event.target.dataset.pass);
    if (Number.isNaN(pass)) return;
    if (!settings.passes.delete(pass)) settings.passes.add(pass);
    syncTools(); render(); fit(0.3);
  });
  for (const name of ["views", "kept"]) byId(name).addEventListener("change", event => { settings[name] = event.target.checked; render(); });
  byId("views").parentElement.hidden = !graph.nodes.some(node => node.view && !node.group.plain);
  byId("kept").parentElement.hidden = !graph.nodes.some(node => node.inputs.some(input => graph.nodes[input].lane !== node.lane));
  const bad = graph.nodes.filter(node => node.bad && node.kind !== "answer" && node.kind !== "gradient");
  byId("bad").hidden = !bad.length;
  byId("bad").textContent = `${bad.length} not finite`;
  byId("bad").title = "Go to the first one in time";
  byId("bad").addEventListener("click", () => go(keyOf(bad[0])));
  const acts = { in: () => zoom(1.25, free().w / 2, free().h / 2), out: () => zoom(0.8, free().w / 2, free().h / 2), fit, deeper: () => oneLevel(true), shallower: () => oneLevel(false) };
  for (const [name, act] of Object.entries(acts)) byId(name).addEventListener("click", () => act());
  for (const button of document.querySelectorAll(".zoom button")) button.setAttribute("aria-label", button.title);
  byId("about").addEventListener("click", () => select("g0"));
  byId("theme").addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).getPropertyValue("--dark").trim() === "1";
    document.documentElement.dataset.theme = dark ? "light" : "dark";
  });
}

function start() {
  drawing.querySelector("defs").innerHTML = markers();
  const ops = graph.nodes.filter(node => node.kind === "op").length;
  const modules = graph.groups.length - 1;
  byId("summary").textContent = count(ops, "op") + (modules ? ` · ${count(modules, "module")}` : "") + (graph.notes.length ? ` · ${count(graph.notes.length, "note")}` : "");
  if (graph.notes.length) byId("about").title = graph.notes.join("\n");
  byId("legend").querySelector("div").innerHTML = legendMarkup(graph);
  startTools();
  settings.kept = graph.nodes.length < 60 && graph.groups.length < 2 && graph.nodes.every(node => node.lane < 2);
  syncTools();
  render();
  fit(0.72);
  window.addEventListener("resize", () => { if (!matchMedia("print").matches) fit(0.72); });
  window.addEventListener("beforeprint", () => print(true));
  window.addEventListener("afterprint", () => print(false));
}

start();
