/** Attention maps in one byte a weight, as the format packs them: round(255 * sqrt(weight / row maximum)). */

import { Fault } from "../fault.ts";

/** Unpack one layer's map: squares, every row scaled to sum to 1.
 *
 * `packed` is (size, size) row by row, of which the first `tokens` rows and columns are the prompt's own; the result is (tokens, tokens). */
export function decodeMap(packed: Uint8Array, size: number, tokens: number): Float64Array {
  const out = new Float64Array(tokens * tokens);
  for (let query = 0; query < tokens; query++) out.set(decodeRow(packed, size, tokens, query), query * tokens);
  return out;
}

/** One row of a packed map, as `decodeMap` has it: what the token `query` attends to. */
export function decodeRow(packed: Uint8Array, size: number, tokens: number, query: number): Float64Array {
  const out = new Float64Array(tokens);
  let total = 0;
  for (let key = 0; key < tokens; key++) {
    const root = packed[query * size + key]!;
    total += root * root;
  }
  if (!total) throw new Fault("damaged", `The attention map's row ${query} is empty.`, "Run `stratascope verify` on the store.");
  for (let key = 0; key < tokens; key++) out[key] = packed[query * size + key]! ** 2 / total;
  return out;
}
