/** An image with a map laid over its cells, on canvases. */

import { colourOf, css, type Palette } from "./colour.ts";
import type { Scale } from "./scale.ts";
import type { View } from "./view.ts";

export interface Box { name: "subject" | "object"; /** In shares of width and height. */ x0: number; y0: number; x1: number; y1: number }

export interface Picture {
  thumbnail: ImageData | null;
  grid: readonly [rows: number, columns: number];
  /** Width over height. */
  ratio: number;
  /** One weight a cell, row by row; null for the bare image. */
  cells: ArrayLike<number> | null;
  scale: Scale | null;
  signed: boolean;
  boxes: readonly Box[];
}

type Look = Pick<View, "overlay" | "palette" | "strength" | "smooth">;
type Drawing = CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D;

/** Width over height of what the model saw: its cells are square. */
export const aspect = ([rows, columns]: Picture["grid"]): number => columns / rows;

/** Draw a picture into a rectangle. `pixel` is the width of a hairline. */
export function drawPicture(on: Drawing, picture: Picture, look: Look, x: number, y: number, width: number, height: number, pixel: number): void {
  on.save();
  on.beginPath();
  on.rect(x, y, width, height);
  on.clip();
  on.translate(x, y);
  drawImage(on, picture, look, width, height);
  if (picture.cells && picture.scale && look.overlay !== "off") drawCells(on, picture, look, width, height, pixel);
  drawBoxes(on, picture.boxes, width, height, pixel);
  on.restore();
}

function drawImage(on: Drawing, { thumbnail, cells, signed }: Picture, look: Look, width: number, height: number): void {
  if (!thumbnail) {
    on.fillStyle = "#2a2e35";
    on.fillRect(0, 0, width, height);
    return;
  }
  const small = new OffscreenCanvas(thumbnail.width, thumbnail.height);
  small.getContext("2d")!.putImageData(thumbnail, 0, 0);
  const dimmed = cells && look.overlay === "heat";
  on.imageSmoothingEnabled = true;
  on.imageSmoothingQuality = "high";
  on.filter = dimmed ? `saturate(${1 - 0.5 * look.strength}) brightness(${1 - (signed ? 0.2 : 0.36) * look.strength})` : "none";
  on.drawImage(small, 0, 0, width, height);
  on.filter = "none";
}

function drawCells(on: Drawing, { grid: [rows, columns], cells, scale, signed }: Picture, look: Look, width: number, height: number, pixel: number): void {
  const small = new OffscreenCanvas(columns, rows);
  const draw = small.getContext("2d")!;
  const image = draw.createImageData(columns, rows);
  for (let cell = 0; cell < rows * columns; cell++) {
    const t = scale!.at(cells![cell]!);
    const size = Math.abs(t);
    if (look.overlay === "heat") image.data.set([...colourOf(t, look.palette, signed), 255 * look.strength * Math.min(1, 1.05 * size ** 0.75)], 4 * cell);
    else image.data.set([8, 9, 12, 255 * look.strength * (1 - size ** 0.6) * 0.93], 4 * cell);
  }
  draw.putImageData(image, 0, 0);
  on.imageSmoothingEnabled = look.smooth;
  on.imageSmoothingQuality = "high";
  on.drawImage(small, 0, 0, width, height);
  if (!look.smooth) drawLines(on, rows, columns, width, height, pixel);
  const { cell, alike } = strongest(cells!);
  const [w, h] = [width / columns, height / rows];
  if (alike === 1) outline(on, (cell % columns) * w, Math.floor(cell / columns) * h, w, h, pixel);
}

/** The first cell of the largest size, and how many are of that size. */
export function strongest(cells: ArrayLike<number>): { cell: number; alike: number } {
  let [cell, alike] = [0, 0];
  for (let k = 0; k < cells.length; k++) {
    const [size, most] = [Math.abs(cells[k]!), Math.abs(cells[cell]!)];
    if (size > most) [cell, alike] = [k, 1];
    else if (size === most) alike++;
  }
  return { cell, alike };
}

function drawLines(on: Drawing, rows: number, columns: number, width: number, height: number, pixel: number): void {
  on.strokeStyle = "#0000001f";
  on.lineWidth = pixel;
  on.beginPath();
  for (let c = 1; c < columns; c++) {
    const x = Math.round((c * width) / columns) + 0.5;
    on.moveTo(x, 0);
    on.lineTo(x, height);
  }
  for (let r = 1; r < rows; r++) {
    const y = Math.round((r * height) / rows) + 0.5;
    on.moveTo(0, y);
    on.lineTo(width, y);
  }
  on.stroke();
}

/** A rectangle in white on black, seen on any ground. */
export function outline(on: Drawing, x: number, y: number, width: number, height: number, pixel: number, dash: number[] = []): void {
  on.setLineDash([]);
  on.lineWidth = 3.5 * pixel;
  on.strokeStyle = "#000000b0";
  on.strokeRect(x, y, width, height);
  on.setLineDash(dash.map((d) => d * pixel));
  on.lineWidth = 1.75 * pixel;
  on.strokeStyle = "#fff";
  on.strokeRect(x, y, width, height);
  on.setLineDash([]);
}

function drawBoxes(on: Drawing, boxes: readonly Box[], width: number, height: number, pixel: number): void {
  on.font = `600 ${11 * pixel}px system-ui, sans-serif`;
  on.textBaseline = "top";
  for (const { name, x0, y0, x1, y1 } of boxes) {
    outline(on, x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height, pixel, name === "subject" ? [6, 4] : [2, 3]);
    const [left, top] = [Math.max(0, x0 * width), Math.max(0, y0 * height - 15 * pixel)];
    on.fillStyle = "#000000c0";
    on.fillRect(left, top, on.measureText(name).width + 6 * pixel, 14 * pixel);
    on.fillStyle = "#fff";
    on.fillText(name, left + 3 * pixel, top + 1.5 * pixel);
  }
}

/** The scale's colours, from low to high. */
export function drawRamp(on: Drawing, palette: Palette, signed: boolean, width: number, height: number): void {
  for (let x = 0; x < width; x++) {
    const t = x / Math.max(1, width - 1);
    on.fillStyle = css(colourOf(signed ? 2 * t - 1 : t, palette, signed));
    on.fillRect(x, 0, 1, height);
  }
}
