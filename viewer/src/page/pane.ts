/** One example at one layer: its image with the map over it, the controls that choose them, and what went wrong. */

import { Fault, faultOf, isAbort } from "../fault.ts";
import { MEASURES, allLayers, offered, patchesOf, unavailable, weightsOf } from "../store/measures.ts";
import { tokenParts } from "../store/parts.ts";
import type { Patches } from "../store/rollout.ts";
import type { Prompt } from "../store/store.ts";
import { answerChips } from "./answer-chips.ts";
import { CellReader, type Cells } from "./cell-reader.ts";
import { h, setText, worded } from "./dom.ts";
import { aspect, drawPicture, drawRamp, strongest, type Box, type Picture } from "./image.ts";
import { weight } from "./numbers.ts";
import { layout, type PaneHost, type PaneParts } from "./pane-layout.ts";
import { makeScale, type Scale } from "./scale.ts";
import { drawSparks } from "./sparks.ts";
import type { PaneView } from "./view.ts";

export interface Shown {
  prompt: Prompt;
  parts: Int8Array;
  /** Texts of the tokens; null while the vocabulary cannot be read. */
  words: string[] | null;
  thumbnail: ImageData | null;
  logits: Float32Array | null;
  /** Of the chosen layer; null where there is none. */
  weights: Float64Array | null;
  /** Of all layers, where that needs no further request. */
  layers: Float64Array[] | null;
  /** Of flow: the layer whose weights are exact, from a results file; the others' are upper bounds. */
  exact: number | null;
  /** Of the rollout to patches: the map over the image, whose cells are not the prompt's tokens. */
  patches: Patches | null;
}

const WORK_SHOWN_AFTER = 120;

export class Pane {
  readonly element: HTMLElement;
  readonly which: "a" | "b";
  shown: Shown | null = null;
  fault: Fault | null = null;
  readonly #host: PaneHost;
  readonly #parts: PaneParts;
  readonly #reader: CellReader;
  #now: PaneView | null = null;
  #turn = 0;
  #stop: AbortController | undefined;
  #scale: Scale | null = null;
  /** Whether the colours are of this layer alone, because the others were not read. */
  #own = false;
  #boxes: Box[] | null = null;
  #loading: { example: number; done: Promise<void> } | null = null;
  #exact: Float64Array | null = null;
  /** Whether the store gives no values of the example. */
  #barred = false;

  constructor(which: "a" | "b", host: PaneHost) {
    this.which = which;
    this.#host = host;
    this.#parts = layout(which, host);
    this.element = this.#parts.section;
    this.#reader = new CellReader(this.#parts.over, () => this.#readable(), host.say);
    this.element.addEventListener("pointerdown", () => host.activate(which), true);
    this.element.addEventListener("focusin", () => host.activate(which));
    new ResizeObserver(() => this.paint()).observe(this.#parts.frame);
  }

  /** Show what a view asks for; only what differs is read. */
  async show(view: PaneView): Promise<void> {
    const before = this.#now;
    this.#now = { ...view };
    this.#controls(view);
    const turn = ++this.#turn;
    const anew = !before || before.example !== view.example || !this.shown;
    if (anew && this.#loading?.example !== view.example) {
      this.#stop?.abort();
      this.#stop = new AbortController();
      this.#reader.forget();
      const done = this.#loadExample(view.example, this.#stop.signal);
      this.#loading = { example: view.example, done };
      done.catch(() => {}).finally(() => (this.#loading = this.#loading?.done === done ? null : this.#loading));
    }
    const slow = setTimeout(() => turn === this.#turn && this.element.classList.add("busy"), WORK_SHOWN_AFTER);
    try {
      await this.#loading?.done;
      if (turn === this.#turn) await this.#loadWeights(view, this.#stop!.signal, turn);
    } catch (error) {
      if (!isAbort(error) && turn === this.#turn) this.#fail(faultOf(error), anew);
    } finally {
      clearTimeout(slow);
      if (turn === this.#turn) this.element.classList.remove("busy");
    }
  }

  async #loadExample(example: number, signal: AbortSignal): Promise<void> {
    const { store } = this.#host;
    this.fault = null;
    const recorded = store.requireRecorded(example, signal).then(() => null, (error: unknown) => {
      if (isAbort(error)) throw error;
      return faultOf(error);
    });
    const [prompt, why] = await Promise.all([store.prompt(example, signal), recorded]);
    const settled = <T>(reading: Promise<T>) => reading.catch((error: unknown) => (this.#keep(error), null));
    const words = settled(store.words(prompt.ids, signal));
    // where another example is chosen meanwhile nobody waits for them
    words.catch(() => {});
    const [thumbnail, logits] = why ? [null, null] : await Promise.all([
      settled(store.thumbnail(example, signal)), store.imported ? null : settled(store.answerLogits(example, signal)),
      // the mean over heads is what the slider steps through without a further request
      store.has("attention_mean") ? settled(store.attentionMean(example, signal)) : null,
    ]);
    const texts = await words;
    signal.throwIfAborted();
    this.fault = why ?? this.fault;
    this.#barred = why !== null;
    this.shown = { prompt, parts: tokenParts(prompt.spans, prompt.tokens), words: texts, thumbnail, logits, weights: null, layers: null, exact: null, patches: null };
    this.#boxes = null;
    this.#host.drawn(this.which, "example");
  }

  /** Boxes are read when they are first asked for. */
  async #readBoxes(): Promise<void> {
    const { shown } = this;
    if (!shown || this.#boxes || !this.#host.view().boxes) return;
    this.#boxes = [];
    const boxes = await this.#host.boxes(shown.prompt.example).catch(() => []);
    if (shown !== this.shown) return;
    this.#boxes = boxes;
    this.paint();
  }

  #keep(error: unknown): void {
    if (isAbort(error)) throw error;
    this.fault ??= faultOf(error);
  }

  async #loadWeights(view: PaneView, signal: AbortSignal, turn: number): Promise<void> {
    const shown = this.shown!;
    let fault = this.fault;
    let [weights, layers]: [Float64Array | null, Float64Array[] | null] = [null, null];
    let patches: Patches | null = null;
    if (!this.#barred) {
      try {
        const { store } = this.#host;
        [weights, layers] = await Promise.all([weightsOf(store, shown.prompt, view.layer, view, signal), unavailable(store, view, shown.prompt) ? null : allLayers(store, shown.prompt, view, signal)]);
        if (view.measure === "patches") patches = await patchesOf(store, shown.prompt, signal);
        this.#exact = view.measure === "flow" ? await this.#host.exactFlow(view.example, view.layer) : null;
        if (this.#exact) {
          weights = this.#exact.slice(0, shown.prompt.tokens);
          layers = layers && layers.map((row, k) => (store.layers[k] === view.layer ? weights! : row));
        }
      } catch (error) {
        if (isAbort(error)) throw error;
        fault = faultOf(error);
      }
    }
    if (turn !== this.#turn) return;
    Object.assign(shown, { weights, layers, exact: this.#exact ? view.layer : null, patches });
    this.#note(fault);
    void this.#readBoxes();
    this.paint();
    this.#sparks();
    this.#host.drawn(this.which, "weights");
  }

  #fail(fault: Fault, anew: boolean): void {
    this.fault = fault;
    if (anew) this.shown = null;
    else if (this.shown) this.shown.weights = null;
    this.#note(fault);
    this.paint();
    this.#host.drawn(this.which, anew ? "example" : "weights");
  }

  #note(fault: Fault | null): void {
    const { note } = this.#parts;
    note.hidden = !fault;
    note.replaceChildren(...(fault ? [h("b", {}, worded(fault.message)), h("p", {}, worded(fault.todo))] : []));
  }

  /** Caption and answer above the image. */
  caption(text: string, label: number | null): void {
    const { title, chips } = this.#parts;
    setText(title, text);
    chips.replaceChildren(...answerChips(this.#host.answers, this.shown?.logits ?? null, label));
  }

  #controls(view: PaneView): void {
    const { measure, heads, head, slider, layerName, headBox } = this.#parts;
    const { store } = this.#host;
    const facts = MEASURES[view.measure];
    measure.set(view.measure);
    heads.set(view.heads);
    heads.rename("mean", facts.fused || "Mean");
    heads.element.hidden = !facts.perHead;
    for (const name of offered(store)) measure.mark(name, unavailable(store, { ...view, measure: name }, this.shown?.prompt)?.message ?? null);
    for (const how of ["mean", "max", "one"] as const) heads.mark(how, unavailable(store, { ...view, heads: how }, this.shown?.prompt)?.message ?? null);
    head.value = String(view.head);
    headBox.hidden = !(facts.perHead && view.heads === "one");
    slider.value = String(store.layers.indexOf(view.layer));
    slider.setAttribute("aria-valuetext", `layer ${view.layer}`);
    setText(layerName, `Layer ${view.layer}`);
    layerName.title = store.imported ? `Layer ${view.layer} of the imported activations` : `Attention of decoder block ${view.layer}, which layer ${view.layer} of the residual stream enters`;
    this.element.classList.toggle("unlayered", !facts.layered);
    slider.title = facts.layered ? "" : `${facts.name} is one map for all layers`;
  }

  /** Whether the layers are gone through by themselves. */
  playing(on: boolean): void {
    const { play } = this.#parts;
    play.setAttribute("aria-pressed", String(on));
    play.title = on ? "Stop (space)" : "Play (space)";
    setText(play, on ? "❚❚" : "▶");
  }

  cells(): Float64Array | null {
    const { shown } = this;
    if (this.#now?.measure === "patches") return shown?.patches?.weights ?? null;
    const image = shown?.prompt.spans.get("image");
    if (!shown?.weights || !shown.prompt.grid || !image) return null;
    return shown.weights.subarray(image[0], image[1]);
  }

  /** Rows and columns of what `cells` holds. */
  #grid(): Patches["grid"] | null {
    return this.shown?.patches?.grid ?? this.shown?.prompt.grid ?? null;
  }

  #readable(): Cells | null {
    const [cells, grid] = [this.cells(), this.#grid()];
    const first = this.shown?.patches ? -1 : this.shown?.prompt.spans.get("image")?.[0] ?? -1;
    return cells && grid ? { grid, weights: cells, first, measure: this.#now!.measure } : null;
  }

  picture(): Picture | null {
    const { shown } = this;
    if (!shown) return null;
    const view = this.#host.view();
    const cells = this.cells();
    const { signed } = MEASURES[this.#now!.measure];
    const image = shown.prompt.spans.get("image");
    const others = view.scale === "all" && shown.layers && image ? shown.layers.map((row) => row.subarray(image[0], image[1])) : null;
    this.#own = view.scale === "all" && !others && MEASURES[this.#now!.measure].layered;
    this.#scale = cells && makeScale(this.#own ? "layer" : view.scale, cells, signed, others);
    return { thumbnail: shown.thumbnail, grid: this.#grid() ?? [1, 1], ratio: aspect(shown.prompt.grid ?? [1, 1]), cells, scale: this.#scale, signed, boxes: view.boxes ? this.#boxes ?? [] : [] };
  }

  paint(): void {
    const { frame, base, over } = this.#parts;
    const picture = this.picture();
    const view = this.#host.view();
    const [roomX, roomY] = [Math.max(40, frame.clientWidth - 24), Math.max(40, frame.clientHeight - 24)];
    const ratio = picture?.ratio ?? 4 / 3;
    const width = Math.min(roomX, roomY * ratio);
    const height = width / ratio;
    const density = devicePixelRatio || 1;
    for (const canvas of [base, over]) {
      canvas.width = Math.round(width * density);
      canvas.height = Math.round(height * density);
      Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
    }
    base.hidden = over.hidden = !picture;
    if (picture) drawPicture(base.getContext("2d")!, picture, view, 0, 0, base.width, base.height, density);
    this.#legend(picture);
    this.#reader.draw();
  }

  #legend(picture: Picture | null): void {
    const { low, high, ramp, fact, legend, over } = this.#parts;
    const scale = this.#scale;
    legend.classList.toggle("empty", !picture?.cells);
    if (!picture?.cells || !scale || !this.#now) {
      setText(fact, "");
      over.setAttribute("aria-label", picture ? "The image, without a map." : "No image.");
      return;
    }
    const facts = MEASURES[this.#now.measure];
    setText(low, weight(scale.low, facts, 2));
    setText(high, `${scale.clipped ? "≥ " : ""}${weight(scale.high, facts, 2)}`);
    drawRamp(ramp.getContext("2d")!, this.#host.view().palette, picture.signed, ramp.width, ramp.height);
    const [, columns] = picture.grid;
    const sum = Array.from(picture.cells).reduce((a, b) => a + b, 0);
    const { cell: top, alike } = strongest(picture.cells);
    // the largest over heads are no shares of one thing
    const summed = !facts.layered ? (facts.additive ? `image ${weight(sum, facts)} · ` : "") : !facts.additive ? (this.#exact ? "exact flow · " : "upper bound · ") : this.#now.heads === "max" && facts.perHead ? "" : `image ${weight(sum, facts)} · `;
    const where = alike > 1 ? `${alike} cells alike` : `row ${Math.floor(top / columns) + 1}, column ${(top % columns) + 1}`;
    const text = summed + (picture.cells[top] ? `most: ${where}, ${weight(picture.cells[top]!, facts)}` : "all cells 0");
    setText(fact, `${text}${this.#own ? " · colours of this layer" : ""}`);
    over.setAttribute("aria-label", `${facts.name}${facts.layered ? ` of layer ${this.#now.layer}` : ""} over ${picture.grid[0]} by ${columns} image cells: ${text}. Arrow keys read single cells.`);
  }

  #sparks(): void {
    const image = this.shown?.prompt.spans.get("image");
    drawSparks(this.#parts.spark, image && this.shown?.layers ? this.shown.layers.map((row) => row.subarray(image[0], image[1])) : null, MEASURES[this.#now!.measure].additive);
  }
}
