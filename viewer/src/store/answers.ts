/** Whether an answer is right: the choice with the highest logit against the one that the label names. */

import type { Store } from "./store.ts";

export class Answers {
  readonly choices: readonly string[];
  /** Index of the right choice by label; null where the label names no choice. */
  readonly rightByLabel: readonly number[] | null;
  /** What a label says, by its number: that the caption is true or false, or which answer is right. */
  readonly meanings: readonly string[];

  constructor(store: Store) {
    this.choices = store.layout.choices;
    const prompt = store.provenance["prompt"] as { answers?: unknown } | null | undefined;
    const answers = prompt && typeof prompt === "object" ? prompt.answers : null;
    const indices = Array.isArray(answers) ? answers.map((answer) => this.choices.indexOf(String(answer))) : [];
    this.rightByLabel = indices.length > 1 && indices.every((k) => k >= 0) ? indices : null;
    const asked = (store.provenance["data"] as { labels?: unknown } | null | undefined)?.labels === "choice";
    this.meanings = asked ? (Array.isArray(answers) ? answers : this.choices).map((answer) => String(answer)) : ["false", "true"];
  }

  /** Index of the highest logit, the first of equals; -1 where they are not numbers. */
  chosen(logits: ArrayLike<number>): number {
    let best = -1;
    for (let k = 0; k < logits.length; k++) if (best < 0 ? !Number.isNaN(logits[k]!) : logits[k]! > logits[best]!) best = k;
    return best;
  }

  right(logits: ArrayLike<number>, label: number): boolean | null {
    const wanted = this.rightByLabel?.[label];
    return wanted === undefined ? null : this.chosen(logits) === wanted;
  }

  /** Probability of each choice, among the choices alone. */
  probabilities(logits: ArrayLike<number>): number[] {
    const values = Array.from(logits);
    const top = Math.max(...values);
    const powers = values.map((v) => Math.exp(v - top));
    const total = powers.reduce((a, b) => a + b, 0);
    return powers.map((p) => p / total);
  }
}
