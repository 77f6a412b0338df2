/** What hiding parts of the prompt and of the image did to the answer, of one example. */

import { Fault } from "../fault.ts";
import { PARTS } from "./parts.ts";
import type { Prompt, Store } from "./store.ts";

export interface Hiding {
  /** Who could not see the target: `final` or `later` tokens. */
  mode: string;
  /** First and last block of the window in which it was hidden, such as "0-27". */
  window: string;
}

const CELL = /^cell_(\d+)_(\d+)$/;

/** The hiding that a store holds and a view asks for; its first where the view asks for none or another. */
export function hidingOf({ layout }: Store, mode: string, window: string): Hiding {
  const [modes, windows] = [layout.knockout_modes ?? [], layout.knockout_windows ?? []];
  return { mode: modes.includes(mode) ? mode : modes[0] ?? "", window: windows.includes(window) ? window : windows[0] ?? "" };
}

/** Target -> change of the difference of the first two choices' logits; null where the example's knockouts were not measured. */
export async function effectsOf(store: Store, example: number, { mode, window }: Hiding, signal?: AbortSignal): Promise<Map<string, number> | null> {
  const { knockout_modes: modes = [], knockout_windows: windows = [], knockout_targets: targets = [] } = store.layout;
  const values = await store.blockRow<Float32Array>("knockout", example, signal);
  const start = (modes.indexOf(mode) * windows.length + windows.indexOf(window)) * targets.length;
  const found = targets.flatMap((target, k) => (Number.isFinite(values[start + k]) ? [[target, values[start + k]!] as const] : []));
  return found.length ? new Map(found) : null;
}

/** One number a token: what hiding its group of image cells, or its part of the prompt, did. 0 where that was not measured. */
export function overTokens(effects: ReadonlyMap<string, number>, prompt: Prompt, parts: Int8Array): Float64Array {
  const out = Float64Array.from({ length: prompt.tokens }, (_, token) => effects.get(PARTS[parts[token]!]!) ?? 0);
  const image = prompt.spans.get("image");
  const groups = [...effects.keys()].flatMap((name) => CELL.exec(name)?.slice(1).map(Number).map((n) => n + 1) ?? []);
  if (!image || !prompt.grid || !groups.length) return out;
  const [rows, columns] = prompt.grid;
  const down = Math.max(...groups.filter((_, k) => k % 2 === 0));
  const across = Math.max(...groups.filter((_, k) => k % 2 === 1));
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const name = `cell_${Math.floor((row * down) / rows)}_${Math.floor((column * across) / columns)}`;
      out[image[0] + row * columns + column] = effects.get(name) ?? 0;
    }
  }
  return out;
}

export function notMeasured(): Fault {
  return new Fault("absent-array", "No knockout effects of this example.", "The store holds them for a sample of examples: choose another one, or extract with a larger --knockouts.");
}
