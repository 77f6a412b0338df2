/** What of a link is not shown: what means nothing, and what lies outside the store. */

import { h } from "./dom.ts";
import { visible } from "./token-text.ts";
import { START, type View } from "./view.ts";

const MOST_TOLD = 6;
const LONGEST_TOLD = 40;

export class LinkNotice {
  readonly element = h("div", { class: "notice card", role: "status", hidden: true });

  /** `ignored`: what nobody understood, as it was written; `given` and `shown`: the view asked for and the one that the store has. */
  tell(ignored: readonly string[], given: View, shown: View): void {
    const all = [...ignored, ...elsewhere(given, shown)];
    const told = all.slice(0, MOST_TOLD).map((what) => `“${visible(what.length > LONGEST_TOLD ? `${what.slice(0, LONGEST_TOLD)}…` : what)}”`);
    if (all.length > MOST_TOLD) told.push(`${all.length - MOST_TOLD} more`);
    this.element.hidden = !all.length;
    this.element.replaceChildren();
    if (!all.length) return;
    this.element.append(h("span", {}, `Left out of the link, as this store or page has no such thing: ${told.join(", ")}.`),
      h("button", { class: "button", type: "button", onclick: () => this.#close() }, "Close"));
  }

  #close(): void {
    this.element.replaceChildren();
    this.element.hidden = true;
  }
}

function elsewhere(given: View, shown: View): string[] {
  const out: string[] = [];
  for (const [prefix, asked, held] of [["", given.a, shown.a], ["b.", given.b, shown.b]] as const) {
    if (!asked || !held) continue;
    for (const key of ["example", "layer", "head"] as const) {
      if (asked[key] !== held[key] && !(key === "layer" && asked[key] === START.a.layer)) out.push(`${prefix}${key}=${asked[key]}`);
    }
    for (const key of ["mode", "window"] as const) if (asked[key] && asked[key] !== held[key]) out.push(`${prefix}${key}=${asked[key]}`);
  }
  return out;
}
