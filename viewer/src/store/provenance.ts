/** What a store says of its model and of what was done to its input. */

type Provenance = Readonly<Record<string, unknown>>;
interface Model { name?: unknown; untrained?: unknown }

const modelOf = (provenance: Provenance): Model => {
  const model = provenance["model"];
  return typeof model === "string" ? { name: model } : model && typeof model === "object" ? model : {};
};

export const modelName = (provenance: Provenance): string => String(modelOf(provenance).name ?? "");

/** What sets a store apart from the trained model on untouched images, as results files call it. */
export function conditionOf(provenance: Provenance): string {
  const condition = String(provenance["condition"] || "original");
  if (modelOf(provenance).untrained === undefined || modelOf(provenance).untrained === null) return condition;
  return condition === "original" ? "untrained" : `untrained, ${condition}`;
}

/** What activations of another program were imported from; empty for those that this package extracted. */
export function importedFrom(provenance: Provenance): string {
  const imported = provenance["imported"];
  return imported && typeof imported === "object" ? String((imported as { form?: unknown }).form ?? "other files") : "";
}

const PLAIN: Record<string, string> = {
  blank: "blank images", mirror: "mirrored images", "shuffled-image": "shuffled images",
};

/** The same in words that need no manual; empty for the trained model on untouched images. */
export function departure(provenance: Provenance): string {
  const condition = String(provenance["condition"] || "original");
  const seed = modelOf(provenance).untrained;
  const weights = seed === undefined || seed === null ? "" : `untrained weights (seed ${seed})`;
  return [weights, condition === "original" ? "" : PLAIN[condition] ?? `condition ${condition}`].filter(Boolean).join(", ");
}
