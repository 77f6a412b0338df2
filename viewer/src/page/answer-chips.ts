/** The right answer and the model's, as chips beside the caption. */

import type { Answers } from "../store/answers.ts";
import { h } from "./dom.ts";
import { percent } from "./numbers.ts";

/** `label`: number of what is right; null where it is not known. */
export function answerChips(answers: Answers, logits: Float32Array | null, label: number | null): HTMLElement[] {
  const out: HTMLElement[] = [];
  const wanted = label === null ? undefined : answers.rightByLabel?.[label];
  if (wanted !== undefined) out.push(h("span", { class: "chip" }, "right answer ", h("b", {}, answers.choices[wanted]!)));
  if (!logits?.length) return out;
  const chosen = answers.chosen(logits);
  const right = wanted === undefined ? null : chosen === wanted;
  out.push(h("span", { class: `chip ${right === null ? "" : right ? "right" : "wrong"}` }, "model ",
    h("b", {}, `${answers.choices[chosen] ?? "–"}${right === null ? "" : right ? " ✓" : " ✗"}`), ` ${percent(answers.probabilities(logits)[chosen]!)}`,
    right === null ? null : h("span", { class: "sr" }, right ? " (right)" : " (wrong)")));
  return out;
}
