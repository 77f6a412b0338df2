/** A card with a drawing on a canvas: sized to its frame, hovered, clicked, walked by keys. */

import { h, hideTip, showTip } from "./dom.ts";

interface CanvasHost {
  title: string;
  /** What the drawing is and what keys do, for a screen reader. */
  label: string;
  draw: (on: CanvasRenderingContext2D, width: number, height: number) => void;
  /** Text beside the pointer; null where there is nothing. */
  tip: (x: number, y: number) => string | null;
  click: (x: number, y: number) => void;
  key: (event: KeyboardEvent) => boolean;
}

export class CanvasCard {
  readonly element: HTMLElement;
  readonly note = h("small");
  readonly legend = h("div", { class: "legend" });
  readonly missing = h("p", { class: "missing", hidden: true });
  readonly canvas: HTMLCanvasElement;
  readonly #host: CanvasHost;

  constructor(host: CanvasHost, ...tools: HTMLElement[]) {
    this.#host = host;
    this.canvas = h("canvas", { tabIndex: 0, role: "application", "aria-label": host.label });
    this.element = h("section", { class: "card drawing" }, h("h2", {}, host.title, this.note, ...tools), h("div", { class: "drawing-frame" }, this.canvas), this.legend, this.missing);
    const place = (event: MouseEvent): [number, number] => {
      const box = this.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    this.canvas.addEventListener("pointermove", (event) => {
      const text = host.tip(...place(event));
      if (text === null) hideTip();
      else showTip(event.clientX, event.clientY, text);
    });
    this.canvas.addEventListener("pointerleave", hideTip);
    this.canvas.addEventListener("click", (event) => host.click(...place(event)));
    this.canvas.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || !host.key(event)) return;
      event.preventDefault();
      event.stopPropagation();
    });
    new ResizeObserver(() => this.draw()).observe(this.canvas.parentElement!);
  }

  /** Nothing to draw, and why; an empty text means that there is something. */
  say(...why: (string | Node)[]): void {
    const empty = why.length > 0;
    this.missing.hidden = !empty;
    this.missing.replaceChildren(...why);
    this.canvas.parentElement!.hidden = empty;
    this.legend.hidden = empty;
  }

  draw(): void {
    const { clientWidth: width, clientHeight: height } = this.canvas.parentElement!;
    if (!width || !height) return;
    const density = devicePixelRatio || 1;
    this.canvas.width = Math.round(width * density);
    this.canvas.height = Math.round(height * density);
    const on = this.canvas.getContext("2d")!;
    on.scale(density, density);
    on.font = "11px system-ui, sans-serif";
    this.#host.draw(on, width, height);
  }

  /** A colour of the style sheet, as the theme has it. */
  colour(name: string): string {
    return getComputedStyle(this.canvas).getPropertyValue(name).trim();
  }
}
