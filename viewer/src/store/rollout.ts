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

/** The tokens of the vision tower of one example: (view, token) places, of which the first `skipped` of a view are no patches. */
export interface Tower {
  views: number;
  tokens: number;
  skipped: number;
  /** (view, token) prompt token that each is part of; -1: none. */
  parents: Int32Array;
  /** (view, 2) rows and columns of patches; -1 where the image has no such view. */
  grids: Int32Array;
  /** (view, 4) left, top, right, bottom as shares of the image. */
  boxes: Float32Array;
}

/** A map over patches: as fine as the finest view. */
export interface Patches { grid: readonly [rows: number, columns: number]; weights: Float64Array }

/** (view, token) what each token that leaves the tower gets of a rollout onto the prompt, in equal shares of each prompt token. */
export function enteringTower(onto: Float64Array, { parents }: Tower): Float64Array {
  const counts = new Float64Array(onto.length);
  for (const parent of parents) if (parent >= 0) counts[parent]! += 1;
  return Float64Array.from(parents, (parent) => (parent < 0 ? 0 : onto[parent]! / counts[parent]!));
}

/** Rollout through one block of the tower: (view, token) above it -> below it. `packed` is (view, query, key). */
export function throughBlock(above: Float64Array, packed: Uint8Array, { views, tokens }: Tower): Float64Array {
  const below = above.map((share) => 0.5 * share);
  for (let view = 0; view < views; view++) {
    for (let query = 0; query < tokens; query++) {
      const share = above[view * tokens + query]!;
      if (!share) continue;
      const row = packed.subarray((view * tokens + query) * tokens, (view * tokens + query + 1) * tokens);
      let total = 0;
      for (const root of row) total += root * root;
      for (let key = 0; key < tokens; key++) below[view * tokens + key]! += (0.5 * share * row[key]! ** 2) / total;
    }
  }
  return below;
}

/** Sums of the patches of all views over cells of the image; what lies outside the image is left out. */
export function patchPicture(values: Float64Array, { views, tokens, skipped, grids, boxes }: Tower): Patches {
  const held = Array.from({ length: views }, (_, view) => view).filter((view) => grids[2 * view]! > 0);
  const fine = (axis: number) => Math.max(...held.map((view) => Math.round(grids[2 * view + axis]! / (boxes[4 * view + 3 - axis]! - boxes[4 * view + 1 - axis]!))));
  const [rows, columns] = [fine(0), fine(1)];
  const weights = new Float64Array(rows * columns);
  for (const view of held) {
    const [height, width] = [grids[2 * view]!, grids[2 * view + 1]!];
    const down = overlaps(rows, height, boxes[4 * view + 1]!, boxes[4 * view + 3]!);
    const across = overlaps(columns, width, boxes[4 * view]!, boxes[4 * view + 2]!);
    for (let patch = 0; patch < height * width; patch++) {
      const value = values[view * tokens + skipped + patch]!;
      for (const [row, high] of down[Math.floor(patch / width)]!) for (const [column, wide] of across[patch % width]!) weights[row * columns + column]! += value * high * wide;
    }
  }
  return { grid: [rows, columns], weights };
}

/** Of each patch between `start` and `stop`, the cells between 0 and 1 that it lies in, with its share in each. */
function overlaps(cells: number, patches: number, start: number, stop: number): [cell: number, share: number][][] {
  const size = (stop - start) / patches;
  return Array.from({ length: patches }, (_, patch) => {
    const [low, high] = [start + patch * size, start + (patch + 1) * size];
    const found: [number, number][] = [];
    for (let cell = Math.max(0, Math.floor(low * cells) - 1); cell < Math.min(cells, high * cells + 1); cell++) {
      const common = Math.min(high, (cell + 1) / cells) - Math.max(low, cell / cells);
      if (common > 0) found.push([cell, common / size]);
    }
    return found;
  });
}
