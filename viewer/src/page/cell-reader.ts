/** Reading single cells of the image, under the pointer or by arrow keys. */

import { MEASURES, type Measure } from "../store/measures.ts";
import { hideTip, showTip } from "./dom.ts";
import { clamp, weight } from "./numbers.ts";

/** What there is to read: (row, column) cells with their weights, of which the first is the prompt's token `first`; -1: none is a token. */
export interface Cells { grid: readonly [rows: number, columns: number]; weights: Float64Array; first: number; measure: Measure }

export class CellReader {
  readonly #over: HTMLCanvasElement;
  readonly #cells: () => Cells | null;
  readonly #say: (text: string) => void;
  #at = -1;

  constructor(over: HTMLCanvasElement, cells: () => Cells | null, say: (text: string) => void) {
    this.#over = over;
    this.#cells = cells;
    this.#say = say;
    over.addEventListener("pointermove", (event) => this.#hover(event));
    over.addEventListener("pointerleave", hideTip);
    over.addEventListener("keydown", (event) => this.#move(event));
    over.addEventListener("blur", () => this.draw());
  }

  /** Another image: begin at its first cell. */
  forget(): void {
    this.#at = -1;
  }

  /** The frame around the cell that is read by keys. */
  draw(): void {
    const over = this.#over;
    const on = over.getContext("2d")!;
    on.clearRect(0, 0, over.width, over.height);
    const grid = this.#cells()?.grid;
    if (!grid || this.#at < 0 || document.activeElement !== over) return;
    const [wide, tall] = [over.width / grid[1], over.height / grid[0]];
    on.strokeStyle = getComputedStyle(over).getPropertyValue("--accent");
    on.lineWidth = 3 * (devicePixelRatio || 1);
    on.strokeRect((this.#at % grid[1]) * wide, Math.floor(this.#at / grid[1]) * tall, wide, tall);
  }

  #hover(event: PointerEvent): void {
    const cells = this.#cells();
    if (!cells) return;
    const [rows, columns] = cells.grid;
    const box = this.#over.getBoundingClientRect();
    const row = clamp(Math.floor(((event.clientY - box.top) / box.height) * rows), 0, rows - 1);
    const column = clamp(Math.floor(((event.clientX - box.left) / box.width) * columns), 0, columns - 1);
    showTip(event.clientX, event.clientY, textOf(cells, row * columns + column));
  }

  #move(event: KeyboardEvent): void {
    const cells = this.#cells();
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!cells || !step || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    const [rows, columns] = cells.grid;
    const [row, column] = this.#at < 0 ? [0, 0] : [Math.floor(this.#at / columns) + step[0]!, (this.#at % columns) + step[1]!];
    this.#at = clamp(row, 0, rows - 1) * columns + clamp(column, 0, columns - 1);
    this.draw();
    this.#say(textOf(cells, this.#at).replaceAll("\n", ", "));
  }
}

function textOf({ grid, weights, first, measure }: Cells, cell: number): string {
  const rank = weights.reduce((n, v) => n + (Math.abs(v) > Math.abs(weights[cell]!) ? 1 : 0), 1);
  return `row ${Math.floor(cell / grid[1]) + 1}, column ${(cell % grid[1]) + 1}\n${weight(weights[cell]!, MEASURES[measure])}\n`
    + `${rank} of ${weights.length}${first < 0 ? "" : ` · token ${first + cell}`}`;
}
