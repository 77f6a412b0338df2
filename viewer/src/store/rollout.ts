/** Attention rollout and the bound of attention flow (Abnar & Zuidema 2020) of the final token, from one example's maps. */

/** Rollout through all blocks: (layer + 1) rows of tokens, row 0 onto the inputs, the last row the final token itself.
 *
 * The final row of the product of (A + I) / 2, as a chain of vector-matrix products from the top down. */
export function rollout(maps: readonly Float64Array[], tokens: number): Float64Array[] {
  const rows: Float64Array[] = new Array(maps.length + 1);
  const top = new Float64Array(tokens);
  top[tokens - 1] = 1;
  rows[maps.length] = top;
  for (let layer = maps.length - 1; layer >= 0; layer--) {
    const above = rows[layer + 1]!;
    const map = maps[layer]!;
    const below = new Float64Array(tokens);
    for (let query = 0; query < tokens; query++) {
      const share = above[query]!;
      if (!share) continue;
      for (let key = 0, at = query * tokens; key < tokens; key++, at++) below[key]! += share * map[at]!;
    }
    for (let key = 0; key < tokens; key++) below[key] = 0.5 * (below[key]! + above[key]!);
    rows[layer] = below;
  }
  return rows;
}

/** Upper bound, in closed form, of the flow from the final token through blocks k and up to every token that enters block k: rows by k.
 *
 * Capacities are (A + I) / 2. The bound is the smallest column cut: of what leaves the final token's own column for the target or a later
 * token, going on along it; or of what enters the target's column from outside it. */
export function flowBounds(maps: readonly Float64Array[], tokens: number): Float64Array[] {
  const last = tokens - 1;
  const top = maps.length - 1;
  const rows: Float64Array[] = new Array(maps.length + 1);
  rows[maps.length] = new Float64Array(tokens).fill(0, 0, last).fill(1, last);
  const own = maps.map((map) => Float64Array.from({ length: tokens }, (_, i) => 0.5 + 0.5 * map[i * tokens + i]!));
  const entering = maps.map((map, layer) => enteringColumn(map, tokens, layer === top));
  // what leaves the source's column above a level, for token j or later ones, summed from the top down
  const leaving = new Float64Array(tokens);
  const source = new Float64Array(tokens).fill(Infinity);
  for (let first = top; first >= 0; first--) {
    const row = maps[first]!.subarray(last * tokens, (last + 1) * tokens);
    const bound = new Float64Array(tokens);
    for (let j = 0; j < tokens; j++) {
      // on the lowest level only the target itself counts
      const direct = j === last ? own[first]![last]! : 0.5 * row[j]!;
      const cut = Math.min(source[j]!, leaving[j]! + direct);
      bound[j] = Math.min(cut, targetCut(own, entering, j, last, first, top));
    }
    rows[first] = bound;
    let later = 0;
    for (let j = last; j >= 0; j--) {
      if (j !== last) later += 0.5 * row[j]!;
      leaving[j]! += later;
      source[j] = Math.min(source[j]!, leaving[j]! + own[first]![last]!);
    }
  }
  return rows;
}

function enteringColumn(map: Float64Array, tokens: number, onlyLast: boolean): Float64Array {
  const sums = new Float64Array(tokens);
  for (let query = onlyLast ? tokens - 1 : 0; query < tokens; query++) {
    for (let key = 0; key < tokens; key++) if (key !== query) sums[key]! += 0.5 * map[query * tokens + key]!;
  }
  return sums;
}

/** Smallest over k of what enters the target's column aside in its lowest k + 1 steps, and what comes down along it in step k. */
function targetCut(own: readonly Float64Array[], entering: readonly Float64Array[], j: number, last: number, first: number, top: number): number {
  let aside = 0;
  let least = Infinity;
  for (let layer = first; layer <= top; layer++) {
    aside += entering[layer]![j]!;
    // at the top the only node is the final token
    const along = layer === top && j !== last ? 0 : own[layer]![j]!;
    least = Math.min(least, aside + along);
  }
  return least;
}
