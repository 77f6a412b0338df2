/** The cards beside the image: how the map is divided among the parts of the prompt, and what probes read. */

import { faultOf } from "../fault.ts";
import type { Results } from "../results/results.ts";
import { MEASURES, allLayers, ofToken, unavailable, weightsOf } from "../store/measures.ts";
import { PARTS, partName, shares } from "../store/parts.ts";
import type { Store } from "../store/store.ts";
import { drawChart, type DrawnChart, type Series } from "./charts.ts";
import { h, hideTip, setText, showTip, worded } from "./dom.ts";
import { percent, weight } from "./numbers.ts";
import type { Shown } from "./pane.ts";
import type { PaneView } from "./view.ts";

/** Distinct in lightness as well as hue; the style sheet has a set for each theme. */
const PART_COLOURS = ["--c0", "--c1", "--c2", "--c3", "--c4", "--c5", "--c6"].map((name) => `var(${name})`);
const DASHES = ["", "6 3", "2 2", "8 2 2 2", "4 4", "1 3", "10 3"];

export class ShareCard {
  readonly element: HTMLElement;
  readonly #plot = h("div", { class: "plot" });
  readonly #note = h("small");
  readonly #table = h("table");
  readonly #pick: (layer: number) => void;
  readonly #layers: readonly number[];
  #chart: DrawnChart | null = null;
  #drawnFor: Float64Array[] | null = null;

  constructor(layers: readonly number[], pick: (layer: number) => void) {
    this.#layers = layers;
    this.#pick = pick;
    this.element = h("section", { class: "card shares" }, h("h2", {}, "Share by span", this.#note), this.#plot, h("div", { class: "sr" }, this.#table));
  }

  /** `rows`: a map of every layer. */
  show(shown: Shown | null, rows: Float64Array[] | null, pane: PaneView, how: string): void {
    if (!shown || !rows) {
      this.#plot.replaceChildren(h("p", { class: "missing" }, shown ? "No attention of all layers to divide." : ""));
      this.#chart = this.#drawnFor = null;
      this.#table.replaceChildren();
      setText(this.#note, "");
      return;
    }
    if (this.#drawnFor !== rows) {
      this.#drawnFor = rows;
      this.#draw(shown, rows, how);
    }
    this.#chart?.mark(pane.layer);
  }

  #draw(shown: Shown, rows: Float64Array[], how: string): void {
    setText(this.#note, how);
    const sums = rows.map((row) => {
      return shares(row, shown.parts);
    });
    const order = PARTS.map((_, k) => k).filter((k) => shown.parts.includes(k));
    const series: Series[] = order.map((k) => ({ name: partName(PARTS[k]!), colour: PART_COLOURS[k]!, values: sums.map((row) => row[k]!) })).reverse();
    this.#chart = drawChart({
      layers: this.#layers, series, kind: "stacked", domain: [0, 1], tick: (v) => percent(v, 1), onPick: this.#pick,
      label: `Share of each span by layer, stacked. The table below has the numbers.`,
    });
    this.#plot.replaceChildren(this.#chart.svg);
    const chart = this.#chart;
    chart.svg.addEventListener("pointermove", (event) => {
      const k = this.#layers.indexOf(chart.layerAt(event.clientX));
      showTip(event.clientX, event.clientY, [`layer ${this.#layers[k]}`, ...order.map((p) => `${partName(PARTS[p]!)}: ${percent(sums[k]![p]!, 3)}`)].join("\n"));
    });
    chart.svg.addEventListener("pointerleave", hideTip);
    this.#table.replaceChildren(h("caption", {}, "Share by span and layer"),
      h("tr", {}, h("th", { scope: "col" }, "layer"), order.map((p) => h("th", { scope: "col" }, partName(PARTS[p]!)))),
      ...sums.map((row, k) => h("tr", {}, h("th", { scope: "row" }, String(this.#layers[k])), order.map((p) => h("td", {}, percent(row[p]!, 3))))));
  }
}

/** Bytes of rows of all heads and layers that are read without being asked for, and what zstd leaves of them. */
const UNASKED = 1.5e6;
const PACKED = 0.75;

/** Maps of all layers and what they are: of the map and head shown where they are at hand or small, else of the mean attention. */
export async function toDivide(store: Store, shown: Shown, view: PaneView): Promise<{ rows: Float64Array[] | null; how: string }> {
  const facts = MEASURES[view.measure];
  const name = facts.name.toLowerCase();
  if (shown.layers && facts.unit === "share" && facts.additive) {
    return { rows: shown.layers, how: ofToken(view) ? `${name} of token ${view.token}` : `${name}${facts.perHead ? ", mean over heads" : ""}` };
  }
  const { layers, layout, arrays } = store;
  const small = store.has("attention_rows") && layers.length * layout.heads * layout.tokens * 2 * PACKED * arrays.piece("attention_rows", 1) <= UNASKED;
  if (view.measure === "attention" && view.heads === "one" && small) {
    const rows = await Promise.all(layers.map((layer) => weightsOf(store, shown.prompt, layer, view))).catch(() => null);
    if (rows) return { rows, how: `${name}, head ${view.head}` };
  }
  const mean = { measure: "attention", heads: "mean", head: 0, mode: "", window: "", token: -1 } as const;
  const held = store.has("attention_mean") && !unavailable(store, mean);
  return { rows: held ? await allLayers(store, shown.prompt, mean).catch(() => null) : null, how: "attention, mean over heads" };
}

export class ProbeCard {
  readonly element: HTMLElement;
  readonly #plot = h("div", { class: "plot" });
  readonly #note = h("small");
  readonly #table = h("table");
  readonly #task = h("select", { "aria-label": "Task of the probe" });
  readonly #pick: (layer: number) => void;
  readonly #choose: (task: string) => void;
  #results: Results | null = null;
  /** Of the store itself: probes of other conditions are named by theirs. */
  readonly #condition: string;
  #chart: DrawnChart | null = null;
  #key = "";

  constructor(condition: string, pick: (layer: number) => void, choose: (task: string) => void) {
    this.#condition = condition;
    this.#pick = pick;
    this.#choose = choose;
    this.#task.addEventListener("change", () => this.#choose(this.#task.value));
    this.element = h("section", { class: "card probe" }, h("h2", {}, "Probe", this.#note, this.#task), this.#plot, h("div", { class: "sr" }, this.#table));
    this.offer(null);
  }

  offer(results: Results | null, why?: string): void {
    this.#results = results;
    const tasks = results?.tasks ?? [];
    this.#task.hidden = !tasks.length;
    this.#task.replaceChildren(...tasks.map((task) => h("option", { value: task }, task)));
    this.#key = "";
    if (!tasks.length) {
      this.#chart = null;
      this.#plot.replaceChildren(h("p", { class: "missing" }, worded(why ?? (results ? "The folder of results holds no probes: make some with `stratascope probe STORE`."
        : "No results are given: make some with `stratascope probe STORE` and open with `--results FOLDER`."))));
    }
  }

  async show(example: number, layer: number, task: string): Promise<void> {
    const tasks = this.#results?.tasks ?? [];
    if (!this.#results || !tasks.length) return;
    const chosen = tasks.includes(task) ? task : tasks[0]!;
    this.#task.value = chosen;
    const key = `${chosen}:${example}`;
    if (key !== this.#key) {
      this.#key = key;
      try {
        const probes = await this.#results.probes(chosen, example);
        if (this.#key !== key) return;
        this.#draw(probes, chosen);
      } catch (error) {
        const fault = faultOf(error);
        this.#plot.replaceChildren(h("p", { class: "missing" }, worded(`${fault.message} ${fault.todo}`)));
        this.#chart = null;
      }
    }
    this.#chart?.mark(layer);
  }

  #draw(probes: Awaited<ReturnType<Results["probes"]>>, task: string): void {
    this.#table.replaceChildren();
    if (!probes.length) {
      setText(this.#note, "");
      this.#plot.replaceChildren(h("p", { class: "missing" }, `No probe of ${task} was given this example.`));
      this.#chart = null;
      return;
    }
    const { label, classes, layers } = probes[0]!;
    const index = classes.indexOf(label);
    setText(this.#note, `probability of “${label}”, out of fold`);
    const named = probes.map(({ position, condition }) => `${position || "probe"}${condition && condition !== this.#condition ? `, ${condition}` : ""}`);
    const series: Series[] = probes.map(({ position, condition, probabilities }, k) => ({
      name: named[k]!, colour: `var(--l${k % 6})`, dash: DASHES[k % DASHES.length]!, values: probabilities.map((p) => p[index]!), strong: position === "final" && (!condition || condition === this.#condition),
    }));
    this.#chart = drawChart({
      layers, series, kind: "lines", domain: [0, 1], tick: (v) => percent(v, 1), onPick: this.#pick, reference: { value: 1 / classes.length, name: "chance" },
      label: `Probability that probes give to “${label}” by layer: ${series.map(({ name, values }) => `${name} ends at ${percent(values.at(-1)!)}`).join(", ")}.`,
    });
    this.#plot.replaceChildren(this.#chart.svg);
    this.#table.replaceChildren(h("caption", {}, `Probability of “${label}” by layer and probe`),
      h("tr", {}, h("th", { scope: "col" }, "layer"), named.map((name) => h("th", { scope: "col" }, name))),
      ...layers.map((layer, k) => h("tr", {}, h("th", { scope: "row" }, String(layer)), series.map(({ values }) => h("td", {}, percent(values[k]!, 4))))));
    const chart = this.#chart;
    chart.svg.addEventListener("pointermove", (event) => {
      const k = layers.indexOf(chart.layerAt(event.clientX));
      const lines = probes.map(({ probabilities }, n) => {
        const best = probabilities[k]!.indexOf(Math.max(...probabilities[k]!));
        return `${named[n]}: ${percent(probabilities[k]![index]!, 3)}${best === index ? "" : ` (says ${classes[best]})`}`;
      });
      showTip(event.clientX, event.clientY, [`layer ${layers[k]}: ${k + 1 < layers.length ? `enters block ${layers[k]}` : "after the last block"}`, ...lines].join("\n"));
    });
    chart.svg.addEventListener("pointerleave", hideTip);
  }
}

/** What the map of a whole prompt amounts to, for a screen reader. */
export function summary(shown: Shown, pane: PaneView): string {
  if (!shown.weights) return "Nothing to show.";
  const facts = MEASURES[pane.measure];
  const weights = shown.weights;
  const parts = facts.additive ? shares(weights, shown.parts)
    : PARTS.map((_, part) => weights.reduce((most, v, token) => (shown.parts[token] === part && Math.abs(v) > Math.abs(most) ? v : most), 0));
  const listed = PARTS.map((part, k) => ({ part, v: parts[k]! })).filter(({ v }) => Math.abs(v) > 0.005).sort((a, b) => Math.abs(b.v) - Math.abs(a.v)).slice(0, 3);
  return `${facts.layered ? `Layer ${pane.layer}, ${facts.name.toLowerCase()}` : facts.name}: ${listed.map(({ part, v }) => `${partName(part)} ${weight(v, facts, 2)}`).join(", ")}.`;
}
