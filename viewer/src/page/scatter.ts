/** Two principal components of the residual stream at a layer: one mark for each example, by its class. */

import type { Components, ProbedExamples } from "../results/overview.ts";
import { CanvasCard } from "./canvas-card.ts";
import { h, s, setText } from "./dom.ts";
import { clamp, percent } from "./numbers.ts";

interface ScatterHost { open: (example: number) => void; say: (text: string) => void }

const EDGE = { left: 46, right: 10, top: 8, bottom: 34 };
/** Pixels from the pointer. */
const NEAR = 14;
const COLOURS = 6;
const SHAPES = ["M-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0 -6.8 0Z", "M-3 -3H3V3H-3Z", "M0 -4L3.8 3H-3.8Z", "M0 -4.2L4.2 0L0 4.2L-4.2 0Z"];
/** Classes with a mark of their own; the others share a grey one. */
const MOST_CLASSES = 12;

export class Scatter {
  readonly card: CanvasCard;
  readonly #host: ScatterHost;
  #of: Components | null = null;
  #k = 0;
  #classes: readonly string[] = [];
  /** Class of each example; -1 where the probe did not see it. */
  #class: number[] = [];
  #example = -1;
  #cursor = 0;
  #span: readonly [x0: number, x1: number, y0: number, y1: number] = [0, 1, 0, 1];

  constructor(host: ScatterHost) {
    this.#host = host;
    this.card = new CanvasCard({
      title: "Principal components", label: "Principal components of the residual stream. Left and right arrow keys choose an example, Enter opens it.",
      draw: (on, width, height) => this.#draw(on, width, height),
      tip: (x, y) => {
        const n = this.#near(x, y);
        return n < 0 ? null : this.#told(n);
      },
      click: (x, y) => {
        const n = this.#near(x, y);
        if (n >= 0) this.#host.open(this.#of!.examples[n]!);
      },
      key: (event) => this.#key(event),
    });
  }

  show(of: Components | null, probed: ProbedExamples | null, layer: number, example: number): void {
    this.#of = of;
    this.#example = example;
    if (!of) return;
    this.#k = Math.max(0, of.layers.indexOf(layer));
    const label = new Map(probed?.examples.map((n, place) => [n, probed.labels[place]!]));
    this.#class = of.examples.map((n) => label.get(n) ?? -1);
    this.#classes = probed?.classes ?? [];
    this.#cursor = Math.max(0, of.examples.indexOf(example));
    const [x, y] = [this.#axis(0), this.#axis(1)];
    this.#span = [...ends(x), ...ends(y)] as const;
    setText(this.card.note, `residual stream, layer ${of.layers[this.#k]!}`);
    this.#tellClasses();
    this.card.draw();
  }

  #axis(component: number): Float32Array {
    const { scores, examples } = this.#of!;
    const first = (2 * this.#k + component) * examples.length;
    return scores.subarray(first, first + examples.length);
  }

  #style(of: number): { colour: string; shape: string } {
    return of < 0 || of >= MOST_CLASSES ? { colour: "--ink3", shape: SHAPES[0]! } : { colour: `--l${of % COLOURS}`, shape: SHAPES[of % SHAPES.length]! };
  }

  #tellClasses(): void {
    const present = [...new Set(this.#class)].sort((p, q) => p - q);
    const shown = present.filter((c) => c >= 0 && c < MOST_CLASSES);
    const mark = (of: number, name: string) => h("span", { class: "class" }, s("svg", { viewBox: "-5 -5 10 10", width: 10, height: 10, "aria-hidden": "true" },
      s("path", { d: this.#style(of).shape, fill: `var(${this.#style(of).colour})` })), name);
    this.card.legend.replaceChildren(...shown.map((c) => mark(c, this.#classes[c]!)), ...(present.length > shown.length ? [mark(-1, shown.length ? "others" : "all examples")] : []));
  }

  #place(n: number, width: number, height: number): readonly [number, number] {
    const [x0, x1, y0, y1] = this.#span;
    return [EDGE.left + ((this.#axis(0)[n]! - x0) / (x1 - x0)) * (width - EDGE.left - EDGE.right),
      height - EDGE.bottom - ((this.#axis(1)[n]! - y0) / (y1 - y0)) * (height - EDGE.top - EDGE.bottom)];
  }

  #draw(on: CanvasRenderingContext2D, width: number, height: number): void {
    const of = this.#of;
    if (!of) return;
    this.#axes(on, width, height);
    on.globalAlpha = of.examples.length > 2000 ? 0.5 : 0.75;
    for (const c of new Set(this.#class)) {
      const { colour, shape } = this.#style(c);
      const path = new Path2D(shape);
      on.fillStyle = this.card.colour(colour);
      this.#class.forEach((own, n) => {
        if (own !== c) return;
        const [x, y] = this.#place(n, width, height);
        on.translate(x, y);
        on.fill(path);
        on.translate(-x, -y);
      });
    }
    on.globalAlpha = 1;
    const marked = document.activeElement === this.card.canvas ? this.#cursor : of.examples.indexOf(this.#example);
    if (marked < 0) return;
    const [x, y] = this.#place(marked, width, height);
    on.strokeStyle = this.card.colour("--ink");
    on.lineWidth = 1.75;
    on.beginPath();
    on.arc(x, y, 7, 0, 2 * Math.PI);
    on.stroke();
  }

  #axes(on: CanvasRenderingContext2D, width: number, height: number): void {
    const { explained, examples } = this.#of!;
    const name = (component: number) => {
      const share = explained[2 * this.#k + component]!;
      return Number.isNaN(share) ? `PC ${component + 1} (${examples.length} examples, all the same)` : `PC ${component + 1} (${percent(share)} of the variance)`;
    };
    on.strokeStyle = this.card.colour("--line");
    on.strokeRect(EDGE.left, EDGE.top, width - EDGE.left - EDGE.right, height - EDGE.top - EDGE.bottom);
    on.fillStyle = this.card.colour("--ink2");
    on.textBaseline = "alphabetic";
    const [x0, x1, y0, y1] = this.#span.map(written);
    on.textAlign = "left";
    on.fillText(x0!, EDGE.left, height - 20);
    on.textAlign = "right";
    on.fillText(x1!, width - EDGE.right, height - 20);
    on.fillText(y1!, EDGE.left - 4, EDGE.top + 9);
    on.fillText(y0!, EDGE.left - 4, height - EDGE.bottom);
    on.textAlign = "center";
    on.fillText(name(0), (width + EDGE.left) / 2, height - 6);
    on.translate(12, (height - EDGE.bottom) / 2);
    on.rotate(-Math.PI / 2);
    on.fillText(name(1), 0, 0);
    on.rotate(Math.PI / 2);
    on.translate(-12, -(height - EDGE.bottom) / 2);
  }

  #near(x: number, y: number): number {
    if (!this.#of) return -1;
    const { clientWidth: width, clientHeight: height } = this.card.canvas.parentElement!;
    let [best, least] = [-1, NEAR];
    for (let n = 0; n < this.#of.examples.length; n++) {
      const [at, up] = this.#place(n, width, height);
      const far = Math.hypot(at - x, up - y);
      if (far < least) [best, least] = [n, far];
    }
    return best;
  }

  #told(n: number): string {
    const name = this.#classes[this.#class[n]!];
    return `#${this.#of!.examples[n]!}${name === undefined ? "" : ` · “${name}”`}`;
  }

  #key(event: KeyboardEvent): boolean {
    const of = this.#of;
    if (!of) return false;
    if (event.key === "Enter") this.#host.open(of.examples[this.#cursor]!);
    else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      this.#cursor = clamp(this.#cursor + (event.key === "ArrowLeft" ? -1 : 1), 0, of.examples.length - 1);
      this.#host.say(`example ${this.#told(this.#cursor).slice(1)}`);
      this.card.draw();
    } else return false;
    return true;
  }
}

const written = (v: number): string => (Math.abs(v) >= 10 ? v.toFixed(0) : String(Number(v.toPrecision(2)))).replace("-", "−");

/** The range of values with a margin; one around equal values. */
function ends(values: Float32Array): [number, number] {
  let [low, high] = [Infinity, -Infinity];
  for (const v of values) [low, high] = [Math.min(low, v), Math.max(high, v)];
  const margin = (high - low) * 0.04 || 1;
  return [low - margin, high + margin];
}
