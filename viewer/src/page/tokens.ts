/** The prompt's tokens, tinted by their weight; the image's are one chip. */

import { MEASURES, ofToken } from "../store/measures.ts";
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
  readonly #change: (patch: Partial<PaneView>) => void;
  #readable = false;
  #reader = -1;

  /** A token that is clicked is shown with what it reads, where the store has that; the one that is shown gives way to the final token. */
  constructor(name: string, change: (patch: Partial<PaneView>) => void) {
    this.#change = change;
    this.element = h("section", { class: "card tokens", "aria-label": `Tokens${name}` }, h("h2", {}, `Tokens${name}`, this.#note), this.#list);
  }

  build(shown: Shown | null, readable = false): void {
    this.#shown = shown;
    this.#readable = readable;
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
    const name = this.#readable && stop - start === 1
      ? h("button", { type: "button", dir: "auto", "aria-pressed": "false", "aria-label": `${text}: what does this token read?`, onclick: () => this.#read(start) }, text)
      : h("span", { dir: "auto" }, text);
    const element = h("li", { class: `token ${kind}` }, name, bar);
    const chip = { element, bar, start, stop, text };
    element.addEventListener("pointerenter", (event) => showTip(event.clientX, event.clientY, this.#tip(chip)));
    element.addEventListener("pointerleave", hideTip);
    return chip;
  }

  /** The token with the largest weight, and where it lies in the image the text token with the largest. */
  #most(shown: Shown, told: (value: number) => string): string {
    const weights = shown.weights!;
    const [first, stop] = shown.prompt.spans.get("image") ?? [0, 0];
    const inside = (token: number) => token >= first && token < stop;
    const largest = (fits: (token: number) => boolean) => weights.reduce((best, value, token) => (fits(token) && (best < 0 || Math.abs(value) > Math.abs(weights[best]!)) ? token : best), -1);
    const name = (token: number) => {
      const columns = shown.prompt.grid?.[1];
      if (inside(token)) return columns ? `image row ${Math.floor((token - first) / columns) + 1}, column ${((token - first) % columns) + 1}` : `image token ${token - first}`;
      return visible(shown.words?.[token] ?? `#${shown.prompt.ids[token]}`);
    };
    const top = largest(() => true);
    if (top < 0 || !weights[top]) return "";
    const text = inside(top) ? largest((token) => !inside(token)) : -1;
    return ` · most: ${name(top)}, ${told(weights[top]!)}${text >= 0 && weights[text] ? `; of the text ${name(text)}, ${told(weights[text]!)}` : ""}`;
  }

  #read(token: number): void {
    const final = this.#shown!.prompt.tokens - 1;
    this.#change({ token: token === this.#reader || token === final ? -1 : token, measure: "attention", heads: "mean" });
  }

  tint(pane: PaneView, view: View): void {
    const shown = this.#shown;
    const facts = MEASURES[pane.measure];
    const reader = shown ? (ofToken(pane) ? Math.min(pane.token, shown.prompt.tokens - 1) : shown.prompt.tokens - 1) : -1;
    this.#reader = ofToken(pane) ? reader : -1;
    for (const { element, start, stop } of this.#chips) {
      const reads = stop - start === 1 && start === reader && facts.layered;
      element.classList.toggle("reads", reads);
      element.querySelector("button")?.setAttribute("aria-pressed", String(reads));
    }
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
    const word = (_: unknown, k: number) => this.#chips[k]!.stop - this.#chips[k]!.start === 1;
    // the first token is a sink: it alone would leave the others without colour
    const rest = (values: number[]) => (values.length > 2 ? values.slice(1) : values);
    const all = view.scale === "all" && shown.layers ? shown.layers.map((row) => rest(this.#chips.map(({ start }) => row[start]!).filter(word))) : null;
    const scale = makeScale(view.scale === "all" && !all ? "layer" : view.scale, rest(sums.filter(word)), facts.signed, all);
    const ground: Rgb = getComputedStyle(document.documentElement).getPropertyValue("--bg").trim() === "#101216" ? [16, 18, 22] : [244, 244, 241];
    this.#chips.forEach(({ element, bar, start, stop }, k) => {
      const t = scale.at(stop - start > 1 && facts.additive ? sums[k]! / (stop - start) : sums[k]!);
      const colour = mix(ground, colourOf(t, view.palette, facts.signed), Math.min(1, 0.2 + 0.8 * Math.abs(t) ** 0.6));
      Object.assign(element.style, { backgroundColor: css(colour), color: inkOn(colour) });
      bar.style.width = `${Math.min(100, 100 * Math.abs(stop - start > 1 ? (facts.unit === "share" ? sums[k]! : t) : t))}%`;
      const label = element.firstElementChild!;
      if (stop - start > 1) setText(label, `${this.#chips[k]!.text} · ${facts.additive ? "" : "up to "}${weight(sums[k]!, facts)}`);
    });
    const how = !facts.layered ? "" : ofToken(pane) ? `, read by token ${reader} ${visible(shown.words?.[reader] ?? "")}` : facts.perHead ? (pane.heads === "one" ? `, head ${pane.head}` : pane.heads === "max" ? ", largest over heads" : `, ${facts.fused.toLowerCase()} over heads`) : "";
    const most = this.#most(shown, (value) => weight(value, facts));
    setText(this.#note, `${facts.layered ? `${facts.name.toLowerCase()}, layer ${pane.layer}${how}` : describe(pane).toLowerCase()}${most} · full colour at ${facts.signed ? "±" : ""}${weight(scale.high, facts, 2).replace("+", "")}`);
    this.#tip = (chip) => {
      const { start, stop, text } = chip;
      const part = partName(PARTS[shown.parts[start]!]!);
      const where = stop - start > 1 ? `tokens ${start} to ${stop - 1}` : `token ${start} · id ${shown.prompt.ids[start]}`;
      return `${text}\n${weight(total(chip), facts)}\n${where} · ${part}`;
    };
  }
}
