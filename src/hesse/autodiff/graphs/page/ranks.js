// One level of the drawing: which item stands in which row, and in which order (Sugiyama, Tagawa, Toda 1981: ranks by longest
// paths, order by barycenters). Forward edges lead down, backward ones up, so that a derivative stands beside its function.

const DOWN = [true, false, true, false]; // by lane

// items: [{key, lane, floating, source}], links: [{from, to, lane}], beside: [[key, key]] (the second not above the first)
function assignRanks(items, links, beside) {
  const after = new Map(items.map(item => [item.key, []]));
  const before = new Map(items.map(item => [item.key, []]));
  const constraints = links.map(link => (DOWN[link.lane] ? [link.from, link.to, 1] : [link.to, link.from, 1]));
  for (const [first, second] of beside) constraints.push([first, second, 0]);
  for (const edge of constraints) after.get(edge[0]).push(edge);
  const order = [], state = new Map();
  for (const item of items) visit(item.key, after, state, order);
  order.reverse();
  const place = new Map(order.map((key, index) => [key, index]));
  const kept = constraints.filter(([a, b]) => place.get(a) < place.get(b)); // what closes a cycle leads backwards
  for (const list of after.values()) list.length = 0;
  for (const edge of kept) { after.get(edge[0]).push(edge); before.get(edge[1]).push(edge); }
  const rank = new Map(), floats = new Map(), byKey = new Map(items.map(item => [item.key, item]));
  for (const key of order) {
    const edges = before.get(key);
    rank.set(key, edges.reduce((most, [a, , length]) => Math.max(most, rank.get(a) + length), 0));
    floats.set(key, !byKey.get(key).source && (byKey.get(key).floating || edges.length > 0) && edges.every(([a]) => floats.get(a)));
  }
  for (const key of [...order].reverse()) {
    const edges = after.get(key);
    if (floats.get(key) && edges.length) rank.set(key, Math.min(...edges.map(([, b, length]) => rank.get(b) - length)));
  }
  const least = Math.min(0, ...rank.values());
  for (const [key, value] of rank) rank.set(key, value - least);
  return rank;
}

function visit(start, after, state, order) {
  if (state.has(start)) return;
  const stack = [[start, 0]];
  state.set(start, 1);
  while (stack.length) {
    const top = stack[stack.length - 1];
    const edges = after.get(top[0]);
    if (top[1] < edges.length) {
      const next = edges[top[1]++][1];
      if (!state.has(next)) { state.set(next, 1); stack.push([next, 0]); }
    } else {
      order.push(top[0]);
      stack.pop();
    }
  }
}

// rows: arrays of cells {lane, up: [[cell, weight]], down: [[cell, weight]], index}
function orderRows(rows, sweeps) {
  rows.forEach(row => { row.sort((a, b) => a.lane - b.lane || a.first - b.first); number_(row); });
  for (let sweep = 0; sweep < sweeps; sweep++) {
    const downwards = sweep % 2 === 0;
    const sequence = downwards ? rows.slice(1) : rows.slice(0, -1).reverse();
    for (const row of sequence) {
      for (const cell of row) {
        const near = downwards ? cell.up : cell.down;
        let total = 0, weight = 0;
        for (const [other, w] of near) { total += w * other.index; weight += w; }
        cell.middle = weight ? total / weight : cell.index;
      }
      row.sort((a, b) => a.lane - b.lane || a.middle - b.middle || a.index - b.index);
      number_(row);
    }
  }
}

function number_(row) {
  row.forEach((cell, index) => { cell.index = row.length > 1 ? index / (row.length - 1) : 0.5; });
}

// Horizontal places: each cell wants to stand at the mean of its neighbors; a row keeps its order and its distances. The best
// such places of a row are an isotonic regression (pool adjacent violators).
function placeRows(rows, sweeps) {
  for (const row of rows) {
    let x = 0;
    for (const cell of row) { x += cell.before; cell.x = x; }
    const shift = x / 2;
    for (const cell of row) cell.x -= shift;
  }
  for (let sweep = 0; sweep < sweeps; sweep++) {
    const sequence = sweep % 2 === 0 ? rows : [...rows].reverse();
    for (const row of sequence) {
      for (const cell of row) {
        let total = 0, weight = 0;
        for (const [near, side] of [[cell.up, sweep % 2 === 0], [cell.down, sweep % 2 === 1]]) {
          for (const [other, w, own, its] of near) {
            const strength = w * (side ? 1 : sweep < sweeps - 4 ? 0.35 : 1);
            total += strength * (other.x + its - own);
            weight += strength;
          }
        }
        cell.wish = weight ? total / weight : cell.x;
        cell.weight = weight || 0.05;
      }
      regress(row);
    }
  }
}

function regress(row) {
  const blocks = [];
  let offset = 0;
  for (const cell of row) {
    offset += cell.before;
    cell.offset = offset;
    let block = { sum: (cell.wish - offset) * cell.weight, weight: cell.weight, cells: [cell] };
    while (blocks.length && blocks[blocks.length - 1].sum / blocks[blocks.length - 1].weight > block.sum / block.weight) {
      const last = blocks.pop();
      block = { sum: last.sum + block.sum, weight: last.weight + block.weight, cells: last.cells.concat(block.cells) };
    }
    blocks.push(block);
  }
  for (const block of blocks) for (const cell of block.cells) cell.x = block.sum / block.weight + cell.offset;
}
