/** The elements of a pane: its controls, its image, its legend and the bar of layers; what it asks of the page. */

import type { Answers } from "../store/answers.ts";
import { MEASURES, offered, type Heads, type Measure } from "../store/measures.ts";
import type { Store } from "../store/store.ts";
import { freshId, h } from "./dom.ts";
import type { Box } from "./image.ts";
import { clamp } from "./numbers.ts";
import { segmented, type Segmented } from "./segmented.ts";
import type { PaneView, View } from "./view.ts";

export interface PaneHost {
  store: Store;
  answers: Answers;
  view: () => View;
  change: (patch: Partial<PaneView>, which: "a" | "b") => void;
  activate: (which: "a" | "b") => void;
  play: (which: "a" | "b") => void;
  /** The pane shows something new: its example, or only other weights. */
  drawn: (which: "a" | "b", what: "example" | "weights") => void;
  boxes: (example: number) => Promise<Box[]>;
  /** Exact flow onto what enters a layer, from a results file; null where there is none. */
  exactFlow: (example: number, layer: number) => Promise<Float64Array | null>;
  say: (text: string) => void;
}

export type PaneParts = ReturnType<typeof layout>;

export function layout(which: "a" | "b", host: PaneHost) {
  const { store } = host;
  const measure: Segmented = segmented("Map", offered(store).map((value) => ({ value, text: MEASURES[value].name, title: MEASURES[value].explains })),
    (value) => host.change({ measure: value as Measure }, which));
  const heads: Segmented = segmented("Heads", [
    { value: "mean", text: "Mean", title: "Over all heads" }, { value: "max", text: "Max", title: "The largest over heads" },
    { value: "one", text: "One", title: "A single head" },
  ], (value) => host.change({ heads: value as Heads }, which));
  const head = h("input", {
    type: "number", min: "0", max: String(store.heads - 1), "aria-label": "Head",
    onchange: (event: Event) => host.change({ head: clamp(Math.trunc(Number((event.target as HTMLInputElement).value)) || 0, 0, store.heads - 1), heads: "one" }, which),
  });
  const headBox = h("label", { class: "head" }, "head", head);
  const title = h("h2", { class: "caption", id: freshId("caption") });
  const chips = h("span", { class: "chips" });
  const base = h("canvas", { "aria-hidden": "true" });
  const over = h("canvas", { class: "over", role: "img", tabIndex: 0 });
  const note = h("div", { class: "note", role: "alert", hidden: true });
  const frame = h("div", { class: "frame" }, base, over, note, h("div", { class: "work", "aria-hidden": "true" }));
  const [low, high, fact] = [h("span", { class: "num" }), h("span", { class: "num" }), h("span", { class: "fact num" })];
  const ramp = h("canvas", { class: "ramp", width: 132, height: 10, "aria-hidden": "true" });
  const legend = h("div", { class: "legend" }, low, ramp, high, fact);
  const spark = h("canvas", { class: "spark", "aria-hidden": "true" });
  const slider = h("input", {
    type: "range", min: "0", max: String(store.layers.length - 1), step: "1", "aria-label": "Layer",
    oninput: (event: Event) => host.change({ layer: store.layers[Number((event.target as HTMLInputElement).value)]! }, which),
  });
  const layerName = h("span", { class: "layer-name num" });
  const step = (by: number) => {
    const k = clamp(Number(slider.value) + by, 0, store.layers.length - 1);
    host.change({ layer: store.layers[k]! }, which);
  };
  const play = h("button", { class: "button icon play", "aria-label": "Play through the layers", "aria-pressed": "false", title: "Play (space)", onclick: () => host.play(which) }, "▶");
  const layerBar = h("div", { class: "layer" },
    h("button", { class: "button icon", "aria-label": "Previous layer", title: "Previous layer (←)", onclick: () => step(-1) }, "‹"),
    play,
    h("button", { class: "button icon", "aria-label": "Next layer", title: "Next layer (→)", onclick: () => step(1) }, "›"),
    layerName, h("div", { class: "track" }, spark, slider));
  const section = h("section", { class: "pane card", "aria-labelledby": title.id },
    h("div", { class: "heading" }, h("span", { class: "badge", "aria-hidden": "true" }, which.toUpperCase()), title, chips),
    h("div", { class: "tools" }, measure.element, heads.element, headBox), frame, legend, layerBar);
  return { section, measure, heads, head, headBox, title, chips, base, over, note, frame, low, high, fact, ramp, legend, spark, slider, layerName, play };
}
