/** What the page shows: all of it can be written into a link and read back. */

import { MEASURES, type Choice, type Heads, type Measure } from "../store/measures.ts";
import { PALETTES, type Palette } from "./colour.ts";
import type { Order, Shade } from "./example-map.ts";
import type { ScaleKind } from "./scale.ts";

export interface PaneView extends Choice {
  example: number;
  layer: number;
}

export interface View {
  /** All examples or one of them; empty: all where there are results and the link names no example. */
  page: "" | "overview" | "example";
  a: PaneView;
  /** The second example or layer, beside the first. */
  b: PaneView | null;
  active: "a" | "b";
  /** Whether a step of one pane's layer moves the other too. */
  together: boolean;
  overlay: "heat" | "spotlight" | "off";
  scale: ScaleKind;
  palette: Palette;
  strength: number;
  smooth: boolean;
  boxes: boolean;
  /** What the grid of heads is coloured by: a part of the prompt, or `logit`. */
  grid: string;
  task: string;
  /** Position of the probes in the overview, and the layer of the residual stream that it marks; -1: the last. */
  position: string;
  residual: number;
  order: Order;
  shade: Shade;
  query: string;
  relation: string;
  outcome: "" | "right" | "wrong";
  /** Address of the store, where it is not the page's own. */
  store: string;
}

export const START: View = {
  page: "",
  a: { example: 0, layer: -1, measure: "attention", heads: "mean", head: 0, mode: "", window: "", token: -1 }, b: null, active: "a", together: false,
  overlay: "heat", scale: "all", palette: "viridis", strength: 0.8, smooth: false, boxes: false, grid: "image",
  task: "", position: "", residual: -1, order: "number", shade: "probability", query: "", relation: "", outcome: "", store: "",
};

const ONE_OF = {
  measure: Object.keys(MEASURES), heads: ["mean", "max", "one"], overlay: ["heat", "spotlight", "off"], scale: ["layer", "all", "log"],
  palette: PALETTES, outcome: ["", "right", "wrong"],
  page: ["", "overview", "example"], order: ["number", "probability"], shade: ["probability", "right"],
} as const;

/** Of a text in a link: a longer one is no search of a person, and no address. */
const LONGEST = 2000;

type Plain = Record<string, string | number | boolean>;

/** The part of an address behind `#`: only what differs from the start. */
export function toHash(view: View): string {
  const out = new URLSearchParams();
  const { a, b, active, ...rest } = view;
  put(out, "", a as unknown as Plain, START.a as unknown as Plain);
  if (b) {
    // the second pane is told whole, so that it is there
    for (const [key, value] of Object.entries(b)) out.set(`b.${key}`, String(value));
    if (active === "b") out.set("active", "b");
  }
  put(out, "", rest as unknown as Plain, START as unknown as Plain);
  return out.toString();
}

/** The view that a link asks for; what of it means nothing is told to `ignored`, as it was written. */
export function fromHash(hash: string, ignored: (what: string) => void = () => {}): View {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const view: View = { ...START, a: taken(given, "", START.a as unknown as Plain, ignored) as unknown as PaneView };
  const { a: _a, b: _b, active: _active, ...rest } = START;
  Object.assign(view, taken(given, "", rest as unknown as Plain, ignored));
  const known = new Set([...Object.keys(START.a), ...Object.keys(rest)]);
  if (given.has("b.example") || given.has("b.layer")) {
    view.b = taken(given, "b.", view.a as unknown as Plain, ignored) as unknown as PaneView;
    view.active = given.get("active") === "b" ? "b" : "a";
    for (const key of Object.keys(START.a)) known.add(`b.${key}`);
    known.add("active");
  }
  for (const key of new Set(given.keys())) if (!known.has(key)) ignored(key);
  view.strength = Math.min(1, Math.max(0.2, view.strength));
  view.store = view.store.trim();
  return view;
}

function put(out: URLSearchParams, prefix: string, values: Plain, start: Plain): void {
  for (const [key, value] of Object.entries(values)) {
    if (value !== start[key]) out.set(prefix + key, typeof value === "boolean" ? (value ? "1" : "0") : String(value));
  }
}

function taken(given: URLSearchParams, prefix: string, start: Plain, ignored: (what: string) => void): Plain {
  const out: Plain = { ...start };
  for (const [key, value] of Object.entries(start)) {
    const text = given.get(prefix + key);
    if (text === null) continue;
    const allowed = (ONE_OF as Record<string, readonly string[]>)[key];
    const number = typeof value === "number" && text.trim() ? Number(text) : NaN;
    const good = typeof value === "number" ? Number.isFinite(number) : typeof value === "boolean" ? text === "0" || text === "1"
      : allowed ? allowed.includes(text) : text.length <= LONGEST;
    if (!good) ignored(`${prefix}${key}=${text}`);
    else if (typeof value === "number") out[key] = key === "strength" ? number : Math.trunc(number);
    else out[key] = typeof value === "boolean" ? text === "1" : text;
  }
  return out;
}

/** Whether a link says anything of an example. */
export function namesExample(hash: string): boolean {
  return [...new URLSearchParams(hash.replace(/^#/, "")).keys()].some((key) => key.replace(/^b\./, "") in START.a);
}

export const nextMeasure = (all: readonly Measure[], measure: Measure, by = 1): Measure => cycled(all, measure, by);
export const nextHeads = (heads: Heads): Heads => cycled(["mean", "max", "one"] as Heads[], heads, 1);

function cycled<T>(all: readonly T[], now: T, by: number): T {
  return all[(all.indexOf(now) + by + all.length) % all.length]!;
}
