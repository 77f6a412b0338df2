/** Heads by layers: what each head gives to a part of the prompt; one is picked by a click or the arrow keys. */

import { faultOf, isAbort } from "../fault.ts";
import { MEASURES, headWeights, unavailable, type Measure } from "../store/measures.ts";
import { PARTS, partName, shares, type Part } from "../store/parts.ts";
import type { Store } from "../store/store.ts";
import { colourOf, css } from "./colour.ts";
import { h, hideTip, setText, setWorded, showTip } from "./dom.ts";
import { bytes, clamp, percent } from "./numbers.ts";
import type { Shown } from "./pane.ts";
import type { PaneView, View } from "./view.ts";

/** Rows of all heads that are read without being asked for. */
const UNASKED = 1.5e6;
/** zstd leaves about this much of half-precision attention. */
const PACKED = 0.75;
const AT_ONCE = 4;
const LOGIT = "logit";

type HeadMeasure = Extract<Measure, "attention" | "norm" | "attribution">;

interface GridHost {
  store: Store;
  view: () => View;
  pick: (layer: number, head: number) => void;
  colourBy: (grid: string) => void;
}

export class HeadGrid {
  readonly element: HTMLElement;
  readonly #host: GridHost;
  readonly #canvas = h("canvas", { tabIndex: 0, role: "application", "aria-label": "Heads by layers. Arrow keys pick a head." });
  readonly #by: HTMLSelectElement;
  readonly #ask = h("button", { class: "button", type: "button", hidden: true });
  readonly #note = h("p", { class: "missing", hidden: true, role: "status" });
  readonly #range = h("small", { class: "num" });
  #shown: Shown | null = null;
  #pane: PaneView | null = null;
  /** (layer, head) numbers of the example at hand; NaN where not read. */
  #values = new Map<string, Float64Array>();
  #example = -1;
  #measure: HeadMeasure = "attention";
  #stop: AbortController | undefined;

  constructor(host: GridHost) {
    this.#host = host;
    const { store } = host;
    const options: [string, string][] = PARTS.filter((part) => part === "template" || part === "caption_rest" || store.layout.spans.includes(part))
      .map((part: Part) => [part, `on ${partName(part)}`]);
    if (store.has("head_logits")) options.push([LOGIT, "direct effect on the logits"]);
    this.#by = h("select", { "aria-label": "What the grid shows", onchange: () => host.colourBy(this.#by.value) }, options.map(([value, text]) => h("option", { value }, text)));
    this.#ask.addEventListener("click", () => void this.#readAll());
    this.element = h("section", { class: "card heads" }, h("h2", {}, "Heads × layers", this.#range, this.#by),
      h("div", { class: "grid-frame" }, this.#canvas, h("div", { class: "ask" }, this.#ask)), this.#note);
    this.#canvas.addEventListener("pointermove", (event) => this.#hover(event));
    this.#canvas.addEventListener("pointerleave", hideTip);
    this.#canvas.addEventListener("click", (event) => {
      const { layer, head } = this.#at(event);
      host.pick(layer, head);
    });
    this.#canvas.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.draw()).observe(this.#canvas.parentElement!);
  }

  /** Another example, or another layer or head of it. */
  show(shown: Shown | null, pane: PaneView): void {
    this.#pane = pane;
    this.#shown = shown;
    const { store } = this.#host;
    if (shown && shown.prompt.example !== this.#example) {
      this.#stop?.abort();
      this.#example = shown.prompt.example;
      this.#values.clear();
    }
    const by = this.#host.view().grid;
    this.#by.value = [...this.#by.options].some((o) => o.value === by) ? by : "image";
    this.#measure = this.#measureOf(pane);
    const holds = this.#by.value === LOGIT ? store.has("head_logits") : store.has("attention_rows");
    this.#note.hidden = holds;
    setWorded(this.#note, holds ? "" : "This store holds no rows of single heads: extract with `--record attention_rows`.");
    this.#canvas.hidden = !holds;
    this.#ask.hidden = true;
    if (holds && shown?.logits) void this.#read();
    this.draw();
  }

  /** The map of the pane where it has one for each head, else the attention. */
  #measureOf(pane: PaneView): HeadMeasure {
    const { store } = this.#host;
    const { measure } = pane;
    return (measure === "norm" || measure === "attribution") && !unavailable(store, { ...pane, heads: "one" }) ? measure : "attention";
  }

  get #kept(): string {
    return this.#by.value === LOGIT ? LOGIT : `${this.#measure}:${this.#by.value}`;
  }

  get #signed(): boolean {
    return this.#by.value === LOGIT || MEASURES[this.#measure].signed;
  }

  get #bytes(): number {
    const { layout, layers, arrays } = this.#host.store;
    return layers.length * layout.heads * layout.tokens * 2 * PACKED * arrays.piece("attention_rows", 1);
  }

  async #read(): Promise<void> {
    const by = this.#by.value;
    if (this.#values.has(this.#kept)) return;
    if (by === LOGIT) return this.#readLogits();
    if (this.#bytes <= UNASKED) return this.#readAll();
    this.#ask.hidden = false;
    setText(this.#ask, `Read all heads of this example (about ${bytes(this.#bytes)})`);
    if (this.#pane?.heads === "one" || this.#pane?.heads === "max") await this.#readLayers([this.#pane.layer]);
  }

  async #readAll(): Promise<void> {
    this.#ask.hidden = true;
    await this.#readLayers(this.#host.store.layers);
  }

  async #readLayers(layers: readonly number[]): Promise<void> {
    const shown = this.#shown!;
    const { store } = this.#host;
    const example = this.#example;
    const signal = (this.#stop = new AbortController()).signal;
    const measure = this.#measure;
    const waiting = [...layers];
    const work = async () => {
      for (let layer = waiting.shift(); layer !== undefined; layer = waiting.shift()) {
        const rows = await headWeights(store, shown.prompt, layer, measure, signal);
        if (example !== this.#example) return;
        rows.forEach((row, head) => shares(row, shown.parts).forEach((share, k) => {
          this.#of(`${measure}:${PARTS[k]!}`)[store.layers.indexOf(layer) * store.heads + head] = share;
        }));
        this.draw();
      }
    };
    try {
      await Promise.all(Array.from({ length: AT_ONCE }, work));
    } catch (error) {
      if (!isAbort(error)) this.#fail(error);
    }
    if (layers.length < store.layers.length) for (const part of PARTS) if (this.#of(`${measure}:${part}`).some(Number.isNaN)) this.#partial.add(part);
    this.draw();
  }

  readonly #partial = new Set<string>();

  #of(by: string): Float64Array {
    const { store } = this.#host;
    let values = this.#values.get(by);
    if (!values) this.#values.set(by, (values = new Float64Array(store.layers.length * store.heads).fill(NaN)));
    return values;
  }

  async #readLogits(): Promise<void> {
    const { store } = this.#host;
    const example = this.#example;
    try {
      const piece = store.arrays.piece("head_logits", 1);
      const first = Math.floor(example / piece) * piece;
      const stop = Math.min(first + piece, store.layout.examples);
      const { data, shape } = await store.arrays.read<Float32Array>("head_logits", [null, [first, stop], null]);
      if (example !== this.#example) return;
      const [layers, held, heads] = shape as [number, number, number];
      const values = this.#of(LOGIT);
      for (let layer = 0; layer < layers; layer++) {
        for (let head = 0; head < heads; head++) values[layer * heads + head] = data[(layer * held + example - first) * heads + head]!;
      }
      this.draw();
    } catch (error) {
      this.#fail(error);
    }
  }

  #fail(error: unknown): void {
    const fault = faultOf(error);
    this.#note.hidden = false;
    setWorded(this.#note, `${fault.message} ${fault.todo}`);
  }

  /** Shares of the example at hand, for the numbers to be checked and downloaded. */
  value(layer: number, head: number): number {
    return this.#values.get(this.#kept)?.[this.#host.store.layers.indexOf(layer) * this.#host.store.heads + head] ?? NaN;
  }

  #geometry() {
    const { store } = this.#host;
    const width = this.#canvas.clientWidth;
    const height = this.#canvas.clientHeight;
    const [left, bottom] = [24, 16];
    return { left, bottom, width, height, layers: store.layers.length, heads: store.heads, w: (width - left) / store.heads, h: (height - bottom) / store.layers.length };
  }

  draw(): void {
    const { left, width, height, layers, heads, w, h: tall } = this.#geometry();
    if (!width || !this.#pane) return;
    const density = devicePixelRatio || 1;
    const canvas = this.#canvas;
    canvas.width = Math.round(width * density);
    canvas.height = Math.round(height * density);
    const on = canvas.getContext("2d")!;
    on.scale(density, density);
    const style = getComputedStyle(canvas);
    const values = this.#values.get(this.#kept);
    const signed = this.#signed;
    const known = values ? [...values].filter((v) => !Number.isNaN(v)).map(Math.abs).sort((a, b) => a - b) : [];
    const top = known.length ? Math.max(1e-9, signed ? known[Math.floor(known.length * 0.98)]! : known.at(-1)!) : 1;
    for (let layer = 0; layer < layers; layer++) {
      for (let head = 0; head < heads; head++) {
        const v = values?.[layer * heads + head] ?? NaN;
        on.fillStyle = Number.isNaN(v) ? style.getPropertyValue("--sunk") : css(colourOf(v / top, "viridis", signed));
        on.fillRect(left + head * w, (layers - 1 - layer) * tall, Math.max(1, w - 0.6), Math.max(1, tall - 0.6));
      }
    }
    on.fillStyle = style.getPropertyValue("--ink2");
    on.font = "11px system-ui, sans-serif";
    on.textAlign = "right";
    on.textBaseline = "middle";
    const every = Math.max(1, Math.ceil(layers / Math.max(2, Math.floor(height / 30))));
    for (let k = 0; k < layers; k += every) on.fillText(String(this.#host.store.layers[k]), left - 5, (layers - 0.5 - k) * tall);
    on.textAlign = "center";
    const across = Math.max(1, Math.ceil(heads / 8));
    for (let k = 0; k < heads; k += across) on.fillText(String(k), left + (k + 0.5) * w, height - 6);
    this.#outline(on);
    const facts = MEASURES[this.#measure];
    const name = this.#by.value === LOGIT || this.#measure === "attention" ? "" : `${facts.name.toLowerCase()}, `;
    this.#range.title = this.#by.value === LOGIT ? "" : facts.explains;
    setText(this.#range, !known.length ? "" : name + (signed ? `±${top.toPrecision(2)}` : `0 to ${facts.unit === "share" ? percent(top) : top.toPrecision(2)}`));
  }

  #outline(on: CanvasRenderingContext2D): void {
    const { left, width, layers, w, h: tall } = this.#geometry();
    const place = this.#host.store.layers.indexOf(this.#pane!.layer);
    const y = (layers - 1 - place) * tall;
    const one = this.#pane!.heads === "one";
    const [x, wide] = one ? [left + this.#pane!.head * w, w] : [left, width - left];
    for (const [line, colour] of [[3.5, "#000"], [1.75, "#fff"]] as const) {
      on.lineWidth = line;
      on.strokeStyle = colour;
      on.strokeRect(x + 1, y + 0.5, Math.max(2, wide - 2), Math.max(2, tall - 1));
    }
  }

  #at(event: MouseEvent): { layer: number; head: number } {
    const { left, layers, heads, w, h: tall } = this.#geometry();
    const box = this.#canvas.getBoundingClientRect();
    const head = clamp(Math.floor((event.clientX - box.left - left) / w), 0, heads - 1);
    const place = clamp(layers - 1 - Math.floor((event.clientY - box.top) / tall), 0, layers - 1);
    return { layer: this.#host.store.layers[place]!, head };
  }

  #hover(event: PointerEvent): void {
    const { layer, head } = this.#at(event);
    showTip(event.clientX, event.clientY, `layer ${layer} · head ${head}\n${this.#text(layer, head)}`);
  }

  #text(layer: number, head: number): string {
    const v = this.value(layer, head);
    const name = this.#by.selectedOptions[0]?.textContent ?? "";
    if (Number.isNaN(v)) return "not read yet";
    const facts = MEASURES[this.#measure];
    if (this.#by.value === LOGIT) return `${name}: ${v.toPrecision(3)}`;
    return `${facts.name.toLowerCase()} ${name}: ${facts.unit === "share" ? percent(v) : v.toPrecision(3)}`;
  }

  #key(event: KeyboardEvent): void {
    const step = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step || !this.#pane || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    const { layers, heads } = this.#geometry();
    const place = clamp(this.#host.store.layers.indexOf(this.#pane.layer) + step[0]!, 0, layers - 1);
    this.#host.pick(this.#host.store.layers[place]!, clamp(this.#pane.head + step[1]!, 0, heads - 1));
  }
}
