/** Rows of the list that the panes show, and from them the caption over each image. */

import type { Row } from "../list/protocol.ts";
import type { Shown } from "./pane.ts";

export class Captions {
  readonly #known = new Map<number, Row>();

  hear(row: Row): void {
    this.#known.set(row.example, row);
  }

  of(example: number): Row | undefined {
    return this.#known.get(example);
  }

  /** The caption from the list, or until that is read from the prompt's own tokens. */
  text(example: number, shown: Shown | null): string {
    const row = this.#known.get(example);
    const prompt = shown?.prompt.example === example ? shown.prompt : null;
    const span = prompt?.spans.get("caption");
    const spoken = shown?.words && span ? shown.words.slice(...span).join("").replace(/[Ġ▁]/g, " ").trim() : "";
    return row?.caption || row?.id || spoken || `Example ${example}`;
  }

  /** Number of the right label; null where it is not known. */
  label(example: number): number | null {
    const row = this.#known.get(example);
    return row && row.label >= 0 ? row.label : null;
  }
}
