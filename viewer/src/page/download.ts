/** Files for the reader of the page: the picture as PNG, the numbers as CSV. */

import { MEASURES, ofToken } from "../store/measures.ts";
import { PARTS } from "../store/parts.ts";
import { h } from "./dom.ts";
import { drawPicture, drawRamp } from "./image.ts";
import { weight } from "./numbers.ts";
import type { Pane } from "./pane.ts";
import type { PaneView, View } from "./view.ts";

/** `id` and `caption` are empty until the list has read them. */
export interface Named { pane: Pane; view: PaneView; id: string; caption: string }

const WIDTH = 900;
const MARGIN = 28;
const HEAD = 78;
const FOOT = 58;

/** Both panes side by side, on white, as in a paper. */
export async function picturePng(named: readonly Named[], view: View, source: string): Promise<Blob> {
  const shown = named.filter(({ pane }) => pane.picture());
  const heights = shown.map(({ pane }) => WIDTH / pane.picture()!.ratio);
  const canvas = document.createElement("canvas");
  canvas.width = shown.length * (WIDTH + MARGIN) + MARGIN;
  canvas.height = HEAD + Math.max(...heights, 1) + FOOT + MARGIN;
  const on = canvas.getContext("2d")!;
  on.fillStyle = "#fff";
  on.fillRect(0, 0, canvas.width, canvas.height);
  shown.forEach((one, k) => {
    const x = MARGIN + k * (WIDTH + MARGIN);
    const picture = one.pane.picture()!;
    on.fillStyle = "#000";
    on.textBaseline = "alphabetic";
    on.font = "600 26px system-ui, sans-serif";
    on.fillText(fitted(on, one.caption || one.id, WIDTH), x, 36);
    on.font = "20px system-ui, sans-serif";
    on.fillStyle = "#444";
    on.fillText(fitted(on, describe(one.view), WIDTH), x, 64);
    drawPicture(on, picture, view, x, HEAD, WIDTH, heights[k]!, 2);
    if (picture.scale) {
      const facts = MEASURES[one.view.measure];
      const y = HEAD + heights[k]! + 16;
      on.save();
      on.translate(x, y);
      drawRamp(on, view.palette, picture.signed, 260, 16);
      on.restore();
      on.fillStyle = "#000";
      on.font = "18px system-ui, sans-serif";
      on.fillText(`${weight(picture.scale.low, facts, 2)} to ${picture.scale.clipped ? "≥ " : ""}${weight(picture.scale.high, facts, 2)} a cell`, x + 274, y + 15);
    }
  });
  on.fillStyle = "#777";
  on.font = "15px system-ui, sans-serif";
  on.fillText(fitted(on, source, canvas.width - 2 * MARGIN), MARGIN, canvas.height - 12);
  return new Promise((done, fail) => canvas.toBlob((blob) => (blob ? done(blob) : fail(new Error("the browser could not make a PNG"))), "image/png"));
}

function fitted(on: CanvasRenderingContext2D, text: string, width: number): string {
  if (on.measureText(text).width <= width) return text;
  let end = text.length;
  while (end > 1 && on.measureText(`${text.slice(0, end)}…`).width > width) end--;
  return `${text.slice(0, end)}…`;
}

export function describe({ measure, heads, head, layer, mode, window, token }: PaneView): string {
  const facts = MEASURES[measure];
  if (ofToken({ measure, heads, token })) return `${facts.name} of token ${token}, layer ${layer}`;
  if (!facts.layered) return measure === "knockout" && window ? `${facts.name}, blocks ${window}, masked for the ${mode} token${mode === "later" ? "s" : ""}` : facts.name;
  const over = !facts.perHead ? "" : heads === "one" ? `, head ${head}` : heads === "max" ? ", largest over heads" : `, ${facts.fused.toLowerCase()} over heads`;
  return `${facts.name}, layer ${layer}${over}`;
}

/** One line a token and layer: of all layers where they are at hand, else of the layer shown. Texts are JSON, so that no spreadsheet runs them. */
export function numbersCsv(named: readonly Named[], layersHeld: readonly number[]): string {
  const lines = ["example,id,measure,heads,layer,token,token_id,text,part,row,column,weight"];
  for (const { pane, view, id } of named) {
    const { shown } = pane;
    if (!shown?.weights) continue;
    const { prompt, parts, words } = shown;
    const facts = MEASURES[view.measure];
    const heads = view.measure === "knockout" ? `${view.mode} ${view.window}`.trim() : !facts.perHead ? "" : view.heads === "one" ? `head ${view.head}` : view.heads;
    const image = prompt.spans.get("image");
    const rows = shown.layers ? shown.layers.map((row, k) => [layersHeld[k]!, row] as const) : [[facts.layered ? view.layer : "", shown.weights] as const];
    for (const [layer, row] of rows) {
      const measure = view.measure !== "flow" ? view.measure : layer === shown.exact ? "exact flow" : "upper bound of flow";
      for (let token = 0; token < prompt.tokens; token++) {
        const cell = prompt.grid && image && token >= image[0] && token < image[1] ? token - image[0] : -1;
        lines.push([
          prompt.example, quoted(id), measure, heads, layer, token, prompt.ids[token], quoted(words?.[token] ?? ""), PARTS[parts[token]!],
          cell < 0 ? "" : Math.floor(cell / prompt.grid![1]), cell < 0 ? "" : cell % prompt.grid![1], row[token],
        ].join(","));
      }
    }
  }
  return `${lines.join("\r\n")}\r\n`;
}

const quoted = (text: string) => `"${JSON.stringify(text).replaceAll('"', '""')}"`;

export function save(blob: Blob, name: string): void {
  const address = URL.createObjectURL(blob);
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
