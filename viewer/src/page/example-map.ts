/** All examples by layers: what the probe gives to the true class of each. */

import type { ProbedExamples } from "../results/overview.ts";
import { CanvasCard } from "./canvas-card.ts";
import { colourOf, css, type Rgb } from "./colour.ts";
import { h, setText } from "./dom.ts";
import { clamp, counted, percent } from "./numbers.ts";

export type Order = "number" | "probability";
export type Shade = "probability" | "right";

interface MapHost { pick: (layer: number) => void; open: (example: number, layer: number) => void; say: (text: string) => void; set: (patch: { order?: Order; shade?: Shade }) => void }

const LEFT = 44;
const BOTTOM = 20;
/** Of the strip of the model's own answers. */
const STRIP = 9;

export class ExampleMap {
  readonly card: CanvasCard;
  readonly #host: MapHost;
  readonly #order = h("select", { "aria-label": "Order of the examples", onchange: () => this.#host.set({ order: this.#order.value as Order }) },
    h("option", { value: "number" }, "by number"), h("option", { value: "probability" }, "by probability at the layer"));
  readonly #shade = h("select", { "aria-label": "What the map shows", onchange: () => this.#host.set({ shade: this.#shade.value as Shade }) },
    h("option", { value: "probability" }, "probability of the true class"), h("option", { value: "right" }, "probe right or wrong"));
  #of: ProbedExamples | null = null;
  #answers: ReadonlyMap<number, boolean> | null = null;
  #layer = 0;
  /** Places of the examples from top to bottom. */
  #rows: number[] = [];
  #cursor = 0;

  constructor(host: MapHost) {
    this.#host = host;
    this.card = new CanvasCard({
      title: "Examples × layers", label: "Probe by example and layer. Arrow keys choose an example and a layer, Enter opens it.",
      draw: (on, width, height) => this.#draw(on, width, height), tip: (x, y) => this.#tip(x, y),
      click: (x, y) => {
        const at = this.#at(x, y);
        if (at) this.#host.open(this.#of!.examples[at.place]!, at.layer);
      },
      key: (event) => this.#key(event),
    }, h("span", { class: "tools-right" }, this.#order, this.#shade));
    const ramp = h("span", { class: "ramp", "aria-hidden": "true", style: { background: `linear-gradient(90deg, ${[-1, -0.5, 0, 0.5, 1].map((t) => css(colourOf(t, "viridis", true))).join(", ")})` } });
    this.card.legend.append(h("span", {}, "0"), ramp, h("span", {}, "1"), h("span", {}, "middle: chance level"), h("span", { class: "model-answers" }));
  }

  show(of: ProbedExamples | null, answers: ReadonlyMap<number, boolean> | null, layer: number, order: Order, shade: Shade): void {
    this.#order.value = order;
    this.#shade.value = shade;
    const marked = of === this.#of ? this.#rows[this.#cursor] : undefined;
    this.#of = of;
    this.#answers = answers;
    this.#layer = layer;
    if (!of) return;
    const column = Math.max(0, of.layers.indexOf(layer)) * of.examples.length;
    const all = of.examples.map((_, place) => place);
    this.#rows = order === "number" ? all.sort((p, q) => of.examples[p]! - of.examples[q]!) : all.sort((p, q) => of.probability[column + q]! - of.probability[column + p]!);
    this.#cursor = marked === undefined ? 0 : this.#rows.indexOf(marked);
    setText(this.card.note, `${counted(of.examples.length)} examples`);
    setText(this.card.legend.querySelector(".model-answers")!, answers ? "right edge, dark: the model answers wrongly" : "");
    this.card.draw();
  }

  #geometry(width: number, height: number) {
    const strip = this.#answers ? STRIP + 4 : 0;
    const layers = this.#of?.layers.length ?? 1;
    return { wide: (width - LEFT - strip) / layers, tall: height - BOTTOM, strip };
  }

  /** Places of the examples that one line of pixels stands for. */
  #line(line: number, lines: number): number[] {
    const count = this.#rows.length;
    return this.#rows.slice(Math.floor((line * count) / lines), Math.max(Math.floor((line * count) / lines) + 1, Math.floor(((line + 1) * count) / lines)));
  }

  #value(k: number, place: number): number {
    const { probability, right, examples } = this.#of!;
    return (this.#shade.value === "right" ? right : probability)[k * examples.length + place]!;
  }

  #mean(k: number, places: readonly number[]): number {
    return places.reduce((sum, place) => sum + this.#value(k, place), 0) / places.length;
  }

  #colour(value: number): Rgb {
    const chance = 1 / this.#of!.classes.length;
    return colourOf(value < chance ? value / chance - 1 : (value - chance) / (1 - chance), "viridis", true);
  }

  #draw(on: CanvasRenderingContext2D, width: number, height: number): void {
    const of = this.#of;
    if (!of) return;
    const { wide, tall, strip } = this.#geometry(width, height);
    const lines = Math.min(this.#rows.length, Math.floor(tall));
    const step = tall / lines;
    for (let line = 0; line < lines; line++) {
      const places = this.#line(line, lines);
      of.layers.forEach((_, k) => {
        on.fillStyle = css(this.#colour(this.#mean(k, places)));
        on.fillRect(LEFT + k * wide, line * step, wide - 1, step + 0.5);
      });
      if (!strip) continue;
      const known = places.map((place) => this.#answers!.get(of.examples[place]!)).filter((right) => right !== undefined);
      const share = known.filter(Boolean).length / (known.length || 1);
      on.fillStyle = known.length ? this.card.colour(share >= 0.5 ? "--line" : "--ink") : this.card.colour("--panel");
      on.fillRect(width - STRIP, line * step, STRIP, step + 0.5);
    }
    on.fillStyle = this.card.colour("--ink2");
    on.textAlign = "center";
    on.textBaseline = "alphabetic";
    const every = Math.max(1, Math.ceil(of.layers.length / Math.floor((width - LEFT) / 26)));
    of.layers.forEach((layer, k) => k % every || on.fillText(String(layer), LEFT + (k + 0.5) * wide, height - 5));
    on.textAlign = "right";
    on.textBaseline = "middle";
    if (this.#order.value === "number") {
      for (let y = 0; y < tall - 12; y += 60) on.fillText(`#${of.examples[this.#line(clamp(Math.floor(y / step), 0, lines - 1), lines)[0]!]!}`, LEFT - 5, y + 6);
    }
    const column = of.layers.indexOf(this.#layer);
    if (column >= 0) this.#outline(on, LEFT + column * wide, 0, wide - 1, tall);
    if (document.activeElement === this.card.canvas) this.#outline(on, LEFT, (this.#cursor / this.#rows.length) * tall, wide * of.layers.length - 1, Math.max(4, step));
  }

  #outline(on: CanvasRenderingContext2D, x: number, y: number, w: number, tall: number): void {
    for (const [line, colour] of [[3.5, "#000"], [1.75, "#fff"]] as const) {
      on.lineWidth = line;
      on.strokeStyle = colour;
      on.strokeRect(x + 1, y + 1, Math.max(2, w - 2), Math.max(2, tall - 2));
    }
  }

  #at(x: number, y: number): { layer: number; k: number; place: number; places: number[] } | null {
    const of = this.#of;
    if (!of) return null;
    const { clientWidth: width, clientHeight: height } = this.card.canvas.parentElement!;
    const { wide, tall } = this.#geometry(width, height);
    const k = Math.floor((x - LEFT) / wide);
    if (k < 0 || k >= of.layers.length || y < -1 || y >= tall) return null;
    const lines = Math.min(this.#rows.length, Math.floor(tall));
    const places = this.#line(clamp(Math.floor((y * lines) / tall), 0, lines - 1), lines);
    return { layer: of.layers[k]!, k, place: places[0]!, places };
  }

  #tip(x: number, y: number): string | null {
    const at = this.#at(x, y);
    if (!at) return null;
    const { examples, classes, labels } = this.#of!;
    if (at.places.length === 1) return `#${examples[at.place]!} · layer ${at.layer}\n${this.#told(at.k, at.place)}`;
    return `layer ${at.layer} · mean of ${at.places.length} examples from #${examples[at.place]!}\n${percent(this.#mean(at.k, at.places), 3)}${
      new Set(at.places.map((place) => labels[place])).size === 1 ? `, true class “${classes[labels[at.place]!]!}”` : ""}`;
  }

  #told(k: number, place: number): string {
    const { classes, labels, probability, right, examples } = this.#of!;
    const at = k * examples.length + place;
    return `“${classes[labels[place]!]!}”: ${percent(probability[at]!, 3)}, the probe is ${right[at] ? "right" : "wrong"}`;
  }

  #key(event: KeyboardEvent): boolean {
    const of = this.#of;
    if (!of) return false;
    const k = Math.max(0, of.layers.indexOf(this.#layer));
    const place = () => this.#rows[this.#cursor]!;
    if (event.key === "Enter") this.#host.open(of.examples[place()]!, of.layers[k]!);
    else if (event.key === "ArrowLeft" || event.key === "ArrowRight") this.#host.pick(of.layers[clamp(k + (event.key === "ArrowLeft" ? -1 : 1), 0, of.layers.length - 1)]!);
    else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      this.#cursor = clamp(this.#cursor + (event.key === "ArrowUp" ? -1 : 1), 0, this.#rows.length - 1);
      this.#host.say(`example ${of.examples[place()]!}, layer ${of.layers[k]!}: ${this.#told(k, place())}`);
      this.card.draw();
    } else return false;
    return true;
  }
}
