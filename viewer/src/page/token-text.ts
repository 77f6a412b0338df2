/** Texts of tokens as they are shown. */

const BLANKS: Record<string, string> = { "\n": "⏎", "\t": "⇥", " ": "·" };

/** A token's text with its blanks made visible. Byte-level and SentencePiece vocabularies mark a blank by Ġ or ▁, a line's end by Ċ. */
export function visible(text: string): string {
  const shown = text.replace(/[Ġ▁]/g, "·").replace(/Ċ/g, "⏎").replace(/[\n\t]/g, (c) => BLANKS[c]!).replace(/^ +/, (blanks) => "·".repeat(blanks.length));
  // what would turn text around or hide it is shown by its number
  return shown.replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g, (c) => `⟨${c.codePointAt(0)!.toString(16)}⟩`) || "∅";
}
