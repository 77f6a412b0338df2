/** Many short texts, searched from end to end in a fraction of a second: joined into long strings that the engine scans. */

interface Slice {
  first: number;
  original: string;
  lower: string;
  /** Where each row begins in `original` and, where that differs, in `lower`; one more than there are rows. */
  starts: Uint32Array;
  lowerStarts: Uint32Array;
}

export class Corpus {
  readonly #slices: Slice[] = [];
  length = 0;

  /** Add rows at the end; line breaks within become spaces. */
  push(texts: readonly string[]): void {
    if (!texts.length) return;
    const rows = texts.map((text) => text.replaceAll("\n", " "));
    const lowered = rows.map((row) => row.toLowerCase());
    const original = rows.join("\n");
    const lower = lowered.join("\n");
    const starts = startsOf(rows);
    const same = original.length === lower.length && rows.every((row, k) => row.length === lowered[k]!.length);
    this.#slices.push({ first: this.length, original, lower, starts, lowerStarts: same ? starts : startsOf(lowered) });
    this.length += texts.length;
  }

  at(row: number): string {
    const slice = this.#slices[lastNotAbove(this.#slices.map((s) => s.first), row)];
    if (!slice || row >= this.length || row < 0) return "";
    const k = row - slice.first;
    return slice.original.slice(slice.starts[k], slice.starts[k + 1]! - 1);
  }

  /** Rows, rising, that hold every word of a query, whatever the case; all of them for an empty one. */
  search(query: string, from = 0): Uint32Array {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean).sort((a, b) => b.length - a.length);
    if (!words.length) return Uint32Array.from({ length: this.length - from }, (_, k) => from + k);
    const found: number[] = [];
    const [rarest, ...others] = words as [string, ...string[]];
    for (const slice of this.#slices) {
      const { lower, lowerStarts, first } = slice;
      for (let at = lower.indexOf(rarest); at >= 0;) {
        const k = lastNotAbove(lowerStarts, at);
        const next = lowerStarts[k + 1]!;
        const row = first + k;
        if (row >= from && (!others.length || holdsAll(lower.slice(lowerStarts[k], next - 1), others))) found.push(row);
        at = lower.indexOf(rarest, next);
      }
    }
    return Uint32Array.from(found);
  }
}

const holdsAll = (text: string, words: readonly string[]) => words.every((word) => text.includes(word));

function startsOf(rows: readonly string[]): Uint32Array {
  const out = new Uint32Array(rows.length + 1);
  rows.forEach((row, k) => (out[k + 1] = out[k]! + row.length + 1));
  return out;
}

/** Index of the last of rising numbers that is not above a value; -1 where all are. */
function lastNotAbove(rising: ArrayLike<number>, value: number): number {
  let [low, high] = [0, rising.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rising[middle]! <= value) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}
