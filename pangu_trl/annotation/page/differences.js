// Which words two texts do not share (Myers, "An O(ND) Difference Algorithm", 1986), within bounds.

// Beyond so many differences the middle counts as replaced as a whole.
const MOST_EDITS = 1000;
// One character each in scripts without spaces; else words, blanks and signs.
const WORDS = /[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[\p{L}\p{M}\p{N}_]+?(?=[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])|[\p{L}\p{M}\p{N}_]+|\s+|./gsu;

// Pieces of both texts in order: {kind: "same" | "gone" | "new", text}, "gone" from the base, "new" in the other.
export function differences(base, other) {
  const from = base.match(WORDS) ?? [];
  const to = other.match(WORDS) ?? [];
  let start = 0;
  while (start < from.length && start < to.length && from[start] === to[start]) start += 1;
  let end = 0;
  while (end < from.length - start && end < to.length - start && from.at(-1 - end) === to.at(-1 - end)) end += 1;
  const pieces = [];
  add(pieces, "same", from.slice(0, start));
  middle(pieces, from.slice(start, from.length - end), to.slice(start, to.length - end));
  add(pieces, "same", from.slice(from.length - end));
  return pieces;
}

function middle(pieces, from, to) {
  const trace = from.length && to.length ? furthest(from, to) : null;
  if (trace === null) {
    add(pieces, "gone", from);
    add(pieces, "new", to);
    return;
  }
  // Back along the trace.
  const steps = [];
  let x = from.length;
  let y = to.length;
  for (let edits = trace.length - 1; edits > 0; edits -= 1) {
    const before = trace[edits - 1];
    const diagonal = x - y;
    const isNew = diagonal === -edits || (diagonal !== edits && at(before, diagonal - 1) < at(before, diagonal + 1));
    const fromX = at(before, isNew ? diagonal + 1 : diagonal - 1);
    const fromY = fromX - (isNew ? diagonal + 1 : diagonal - 1);
    const editX = isNew ? fromX : fromX + 1;
    for (; x > editX; x -= 1, y -= 1) steps.push(["same", from[x - 1]]);
    steps.push(isNew ? ["new", to[fromY]] : ["gone", from[fromX]]);
    x = fromX;
    y = fromY;
  }
  for (; x > 0; x -= 1) steps.push(["same", from[x - 1]]);
  for (const [kind, word] of steps.reverse()) add(pieces, kind, [word]);
}

// For each number of edits how far every diagonal gets; null if they are too many.
function furthest(from, to) {
  const trace = [];
  for (let edits = 0; edits <= Math.min(from.length + to.length, MOST_EDITS); edits += 1) {
    const reached = new Int32Array(2 * edits + 1).fill(-1);
    for (let diagonal = -edits; diagonal <= edits; diagonal += 2) {
      let x = 0;
      if (edits > 0) {
        const before = trace[edits - 1];
        const isNew = diagonal === -edits || (diagonal !== edits && at(before, diagonal - 1) < at(before, diagonal + 1));
        const came = at(before, isNew ? diagonal + 1 : diagonal - 1);
        if (came < 0) continue;
        x = isNew ? came : came + 1;
      }
      let y = x - diagonal;
      if (x > from.length || y > to.length || y < 0) continue;
      while (x < from.length && y < to.length && from[x] === to[y]) {
        x += 1;
        y += 1;
      }
      reached[diagonal + edits] = x;
      if (x >= from.length && y >= to.length) {
        trace.push(reached);
        return trace;
      }
    }
    trace.push(reached);
  }
  return null;
}

function at(reached, diagonal) {
  const index = diagonal + (reached.length - 1) / 2;
  return index < 0 || index >= reached.length ? -1 : reached[index];
}

function add(pieces, kind, words) {
  if (words.length === 0) return;
  if (pieces.at(-1)?.kind === kind) pieces.at(-1).text += words.join("");
  else pieces.push({ kind, text: words.join("") });
}
