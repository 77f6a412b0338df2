/** The cards about the answer: what hiding parts of the input did to it, and which tokens came next. */

import { faultOf, isAbort } from "../fault.ts";
import { effectsOf, hidingOf, type Hiding } from "../store/knockouts.ts";
import { MEASURES } from "../store/measures.ts";
import { isPart, partName } from "../store/parts.ts";
import type { Store } from "../store/store.ts";
import { colourOf, css } from "./colour.ts";
import { h, setWorded } from "./dom.ts";
import { weight } from "./numbers.ts";
import { visible } from "./token-text.ts";
import type { PaneView } from "./view.ts";

const WHO: Record<string, string> = { final: "the final token", later: "all later tokens" };
const named = (target: string) => target.replace(/^(subject|object)_box$/, "box of $1");

/** How the answer moved when each part of the prompt was hidden, by recorded knockouts. */
export class KnockoutCard {
  readonly element: HTMLElement;
  readonly #store: Store;
  readonly #mode: HTMLSelectElement;
  readonly #window: HTMLSelectElement;
  readonly #show = h("button", { class: "button", type: "button" }, "Over the image");
  readonly #bars = h("table", { class: "bars" });
  readonly #note = h("p", { class: "missing", hidden: true });
  #key = "";

  constructor(store: Store, change: (patch: Partial<PaneView>) => void) {
    this.#store = store;
    const { knockout_modes: modes = [], knockout_windows: windows = [] } = store.layout;
    this.#mode = h("select", { "aria-label": "Masked for", onchange: () => change({ mode: this.#mode.value }) }, modes.map((mode) => h("option", { value: mode }, `for ${WHO[mode] ?? mode}`)));
    this.#window = h("select", { "aria-label": "Masked in blocks", onchange: () => change({ window: this.#window.value }) },
      windows.map((window, k) => h("option", { value: window }, k ? `in blocks ${window.replace("-", " to ")}` : "in all blocks")));
    this.#show.addEventListener("click", () => change({ measure: "knockout" }));
    this.element = h("section", { class: "card knockouts", hidden: !store.has("knockout") }, h("h2", {}, "Knockouts", h("small", {}, store.layout.choices.slice(0, 2).join(" over "))),
      h("div", { class: "pickers" }, this.#mode, this.#window, this.#show), this.#bars, this.#note);
  }

  async show(example: number | null, pane: PaneView): Promise<void> {
    if (!this.#store.has("knockout") || example === null) return;
    const hiding = hidingOf(this.#store, pane.mode, pane.window);
    const key = `${example}:${hiding.mode}:${hiding.window}`;
    this.#mode.value = hiding.mode;
    this.#window.value = hiding.window;
    this.#show.hidden = pane.measure === "knockout";
    this.element.classList.toggle("laid", this.#show.hidden);
    if (key === this.#key) return;
    this.#key = key;
    try {
      const effects = await effectsOf(this.#store, example, hiding);
      if (key === this.#key) this.#draw(effects, hiding);
    } catch (error) {
      if (isAbort(error) || key !== this.#key) return;
      const fault = faultOf(error);
      this.#say(`${fault.message} ${fault.todo}`);
    }
  }

  #say(text: string): void {
    this.#bars.replaceChildren();
    this.#note.hidden = !text;
    setWorded(this.#note, text);
  }

  #draw(effects: ReadonlyMap<string, number> | null, { mode, window }: Hiding): void {
    if (!effects) return this.#say("No knockout effects of this example: the store holds them for a sample of examples.");
    this.#say("");
    const rows = [...effects].filter(([target]) => !target.startsWith("cell_"));
    const cells = [...effects].filter(([target]) => target.startsWith("cell_"));
    const strongest = cells.sort(([, p], [, q]) => Math.abs(q) - Math.abs(p))[0];
    if (strongest) rows.push(["strongest cells", strongest[1]]);
    const most = Math.max(...rows.map(([, v]) => Math.abs(v)), 1e-9);
    this.#bars.replaceChildren(h("caption", { class: "sr" }, `Change of the logit difference with each part masked for ${WHO[mode] ?? mode} in blocks ${window}`),
      ...rows.map(([target, v]) => h("tr", {}, h("th", { scope: "row" }, isPart(target) ? partName(target) : named(target)),
        h("td", { class: "bar", "aria-hidden": "true" }, h("i", { style: { left: `${v < 0 ? 50 - (50 * -v) / most : 50}%`, width: `${(50 * Math.abs(v)) / most}%`, background: css(colourOf(0.75 * Math.sign(v), "inferno", true)) } })),
        h("td", { class: "num" }, weight(v, MEASURES.knockout)))));
  }
}

/** The likeliest next tokens, whatever the choices are. */
export class NextCard {
  readonly element: HTMLElement;
  readonly #store: Store;
  readonly #list = h("ol", { class: "next" });
  #example = -1;

  constructor(store: Store) {
    this.#store = store;
    this.element = h("section", { class: "card", hidden: !this.#held }, h("h2", {}, "Most likely next tokens", h("small", {}, "logit")), this.#list);
  }

  get #held(): boolean {
    return this.#store.has("top_tokens") && this.#store.has("top_logits");
  }

  async show(example: number | null): Promise<void> {
    if (!this.#held || example === null || example === this.#example) return;
    this.#example = example;
    const [ids, logits] = await Promise.all([this.#store.blockRow<Int32Array>("top_tokens", example), this.#store.blockRow<Float32Array>("top_logits", example)]).catch(() => [[], []] as const);
    const held = [...ids].filter((id) => id >= 0);
    const texts = await this.#store.rareWords(held).catch(() => held.map((id) => `⟨${id}⟩`));
    if (example !== this.#example) return;
    this.#list.replaceChildren(...texts.map((text, k) => h("li", {}, h("span", { class: "token" }, h("span", { dir: "auto" }, visible(text))), h("span", { class: "num" }, logits[k]!.toFixed(2)))));
  }
}
