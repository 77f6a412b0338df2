/** The prompt's tokens, tinted by their weight; the image's are one chip. */

import { MEASURES } from "../store/measures.ts";
import { PARTS, partName } from "../store/parts.ts";
import { colourOf, css, inkOn, mix, type Rgb } from "./colour.ts";
import { describe } from "./download.ts";
import { h, hideTip, setText, showTip } from "./dom.ts";
import { weight } from "./numbers.ts";
import type { Shown } from "./pane.ts";
import { makeScale } from "./scale.ts";
import { visible } from "./token-text.ts";
import type { PaneView, View } from "./view.ts";

interface Chip { element: HTMLElement; bar: HTMLElement; start: number; stop: number; text: string }

export class TokenStrip {
  readonly element: HTMLElement;
  readonly #list = h("ol", { class: "strip" });
  readonly #note = h("small");
  #chips: Chip[] = [];
  #shown: Shown | null = null;
  #tip: (chip: Chip) => string = () => "";

  constructor(name: string) {
    this.element = h("section", { class: "card tokens", "aria-label": `Tokens${name}` }, h("h2", {}, `Tokens${name}`, this.#note), this.#list);
  }

  build(shown: Shown | null): void {
    this.#shown = shown;
    this.#chips = [];
    if (shown) {
      const image = shown.prompt.spans.get("image");
      for (let token = 0; token < shown.prompt.tokens; token++) {
        if (image && token === image[0] && image[1] > image[0]) {
          const grid = shown.prompt.grid;
          this.#chips.push(this.#chip(image[0], image[1], `▦ image ${grid ? `${grid[0]}×${grid[1]} = ` : ""}${image[1] - image[0]} tokens`, "image"));
          token = image[1] - 1;
          continue;
        }
        const text = visible(shown.words?.[token] ?? `#${shown.prompt.ids[token]}`);
        this.#chips.push(this.#chip(token, token + 1, text, /^<\|.*\|>$|^<[^ ]*>$/.test(text) ? "special" : ""));
      }
    }
    this.#list.replaceChildren(...this.#chips.map((chip) => chip.element));
  }

  #chip(start: number, stop: number, text: string, kind: string): Chip {
    const bar = h("i");
    const element = h("li", { class: `token ${kind}` }, h("span", { dir: "auto" }, text), bar);
    const chip = { element, bar, start, stop, text };
    element.addEventListener("pointerenter", (event) => showTip(event.clientX, event.clientY, this.#tip(chip)));
    element.addEventListener("pointerleave", hideTip);
    return chip;
  }

  tint(pane: PaneView, view: View): void {
    const shown = this.#shown;
    const facts = MEASURES[pane.measure];
    if (!shown?.weights) {
      for (const { element, bar } of this.#chips) {
        Object.assign(element.style, { backgroundColor: "", color: "" });
        bar.style.width = "0";
      }
      setText(this.#note, shown ? "no weights to show" : "");
      return;
    }
    const weights = shown.weights;
    const total = ({ start, stop }: Chip) => weights.subarray(start, stop).reduce((a, b) => (facts.additive ? a + b : Math.abs(b) > Math.abs(a) ? b : a), 0);
    const sums = this.#chips.map(total);
    const words = sums.filter((_, k) => this.#chips[k]!.stop - this.#chips[k]!.start === 1);
    // the first token is a sink: it alone would leave the others without colour
    const scale = makeScale(view.scale === "log" ? "log" : "layer", words.length > 2 ? words.slice(1) : words, facts.signed);
    const ground: Rgb = getComputedStyle(document.documentElement).getPropertyValue("--bg").trim() === "#101216" ? [16, 18, 22] : [244, 244, 241];
    this.#chips.forEach(({ element, bar, start, stop }, k) => {
      const t = scale.at(stop - start > 1 && facts.additive ? sums[k]! / (stop - start) : sums[k]!);
      const colour = mix(ground, colourOf(t, view.palette, facts.signed), Math.min(1, 0.2 + 0.8 * Math.abs(t) ** 0.6));
      Object.assign(element.style, { backgroundColor: css(colour), color: inkOn(colour) });
      bar.style.width = `${Math.min(100, 100 * Math.abs(stop - start > 1 ? (facts.unit === "share" ? sums[k]! : t) : t))}%`;
      const label = element.firstElementChild!;
      if (stop - start > 1) setText(label, `${this.#chips[k]!.text} · ${facts.additive ? "" : "up to "}${weight(sums[k]!, facts)}`);
    });
    const how = !facts.layered ? "" : facts.perHead ? (pane.heads === "one" ? `, head ${pane.head}` : pane.heads === "max" ? ", largest over heads" : `, ${facts.fused.toLowerCase()} over heads`) : "";
    setText(this.#note, `${facts.layered ? `${facts.name.toLowerCase()}, layer ${pane.layer}${how}` : describe(pane).toLowerCase()} · full colour at ${facts.signed ? "±" : ""}${weight(scale.high, facts, 2).replace("+", "")}`);
    this.#tip = (chip) => {
      const { start, stop, text } = chip;
      const part = partName(PARTS[shown.parts[start]!]!);
      const where = stop - start > 1 ? `tokens ${start} to ${stop - 1}` : `token ${start} · id ${shown.prompt.ids[start]}`;
      return `${text}\n${weight(total(chip), facts)}\n${where} · ${part}`;
    };
  }
}
