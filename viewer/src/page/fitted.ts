/** A view as a store has it: layers, heads and examples that it does not hold are those next to them. */

import { hidingOf } from "../store/knockouts.ts";
import type { Store } from "../store/store.ts";
import { clamp } from "./numbers.ts";
import type { PaneView, View } from "./view.ts";

export function fitted(view: View, store: Store): View {
  return { ...view, a: fittedPane(view.a, store), b: view.b && fittedPane(view.b, store) };
}

export function fittedPane(pane: PaneView, store: Store): PaneView {
  const { layers, heads, layout } = store;
  // at two thirds of the depth is where most decoders look at the image
  const layer = layers.includes(pane.layer) ? pane.layer : pane.layer < 0 ? layers[Math.floor((layers.length * 2) / 3)]! : layers.at(-1)!;
  const hiding = pane.measure === "knockout" ? hidingOf(store, pane.mode, pane.window) : {};
  // only the attention, fused over heads, is kept for every token
  const token = pane.measure === "attention" && pane.heads === "mean" ? Math.max(-1, pane.token) : -1;
  return { ...pane, ...hiding, token, layer, head: clamp(pane.head, 0, heads - 1), example: clamp(pane.example, 0, layout.examples - 1) };
}
