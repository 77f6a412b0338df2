/** The parts of a prompt: a partition of its tokens, the same as `stratascope share` uses. */

export const PARTS = ["system", "image", "subject", "relation", "object", "caption_rest", "template"] as const;
export type Part = (typeof PARTS)[number];
export type Span = readonly [start: number, stop: number];

const NAMES: Record<Part, string> = {
  system: "system", image: "image", subject: "subject", relation: "relation", object: "object", caption_rest: "rest of caption", template: "template",
};
export const partName = (part: Part): string => NAMES[part];
export const isPart = (name: string): name is Part => (PARTS as readonly string[]).includes(name);

/** Index into PARTS for each token; later spans win over those that contain them. */
export function tokenParts(spans: ReadonlyMap<string, Span>, tokens: number): Int8Array {
  const out = new Int8Array(tokens).fill(PARTS.indexOf("template"));
  const order: [Part, string][] = [
    ["system", "system"], ["image", "image"], ["caption_rest", "caption"], ["subject", "subject"], ["relation", "relation"], ["object", "object"],
  ];
  for (const [part, name] of order) {
    const span = spans.get(name);
    if (span) out.fill(PARTS.indexOf(part), Math.max(0, span[0]), Math.max(0, span[1]));
  }
  return out;
}

/** Sum of a map by part; of a signed map the signed sum. */
export function shares(weights: ArrayLike<number>, parts: Int8Array): Float64Array {
  const out = new Float64Array(PARTS.length);
  for (let i = 0; i < parts.length; i++) out[parts[i]!]! += weights[i]!;
  return out;
}
