/** What a store holds of the vision tower of an example with maps. */

import type { Tower } from "./rollout.ts";
import type { Store } from "./store.ts";

/** Its tokens: where each goes in the prompt, and where it lies in the image. */
export async function readTower(store: Store, example: number, signal?: AbortSignal): Promise<Tower> {
  const [parents, grids, boxes] = await Promise.all([
    store.arrays.read<Int32Array>("vision_parent", [example, null, null], signal),
    store.arrays.read<Int32Array>("vision_grid", [example, null, null], signal),
    store.arrays.read<Float32Array>("vision_box", [example, null, null], signal),
  ]);
  const [views, tokens] = [parents.shape[0]!, parents.shape[1]!];
  return { views, tokens, skipped: store.layout.vision_class_tokens ?? 0, parents: parents.data, grids: grids.data, boxes: boxes.data };
}

/** Packed map of one block: (view, token, token) bytes. */
export async function packedTowerMap(store: Store, block: number, example: number, signal?: AbortSignal): Promise<Uint8Array> {
  return (await store.arrays.read<Uint8Array>("vision_maps", [example, block, null, null, null], signal)).data;
}
