/** All examples at once: the page before a single example. */

import { faultOf } from "../fault.ts";
import { components, effects, modelAnswers, probedExamples, scoreCurve, type Effects, type ProbedExamples, type ScoreCurve } from "../results/overview.ts";
import type { ResultEntry, Results } from "../results/results.ts";
import { drawChart, type DrawnChart, type Series } from "./charts.ts";
import { h, hideTip, setText, showTip, worded } from "./dom.ts";
import { ExampleMap } from "./example-map.ts";
import { percent } from "./numbers.ts";
import { Scatter } from "./scatter.ts";
import type { View } from "./view.ts";

interface OverviewHost {
  view: () => View;
  set: (patch: Partial<View>) => void;
  /** Show an example; `layer` is one of the residual stream. */
  open: (example: number, layer: number) => void;
  say: (text: string) => void;
  condition: string;
}

/** Bands that overlap in one chart: more of them hide each other. */
const MOST_BANDS = 3;
const WIDTH = 480;
const HEIGHT = 168;
const DASHES = ["", "6 3", "2 2", "8 2 2 2", "4 4", "1 3"];
const METRICS: Record<string, string> = { auroc: "AUROC", accuracy: "accuracy", balanced_accuracy: "balanced accuracy", r2: "R²", spearman: "Spearman correlation", log_loss: "log loss" };

export class Overview {
  readonly element: HTMLElement;
  readonly #host: OverviewHost;
  readonly #task = h("select", { "aria-label": "Task of the probes", onchange: () => this.#host.set({ task: this.#task.value }) });
  readonly #position = h("select", { "aria-label": "Position of the probes", onchange: () => this.#host.set({ position: this.#position.value }) });
  readonly #layer = h("input", { type: "range", min: "0", "aria-label": "Layer of the residual stream", oninput: () => this.#pick(this.#layers[Number(this.#layer.value)]!) });
  readonly #layerName = h("output", { class: "num" });
  readonly #map: ExampleMap;
  readonly #scatter: Scatter;
  readonly #curves = h("div", { class: "plot" });
  readonly #curvesNote = h("small");
  readonly #effects = h("div", { class: "plots" });
  readonly #ready: () => void;
  #results: Results | null = null;
  #charts: DrawnChart[] = [];
  #layers: number[] = [];
  #key = "";
  #drawn: { probed: ProbedExamples | null; found: Awaited<ReturnType<typeof components>>; answers: ReadonlyMap<number, boolean> | null } | null = null;

  constructor(host: OverviewHost, ready: () => void) {
    this.#host = host;
    this.#ready = ready;
    this.#map = new ExampleMap({ pick: (layer) => this.#pick(layer), open: host.open, say: host.say, set: (patch) => host.set(patch) });
    this.#scatter = new Scatter({ open: (example) => host.open(example, this.layer), say: host.say });
    this.element = h("section", { class: "overview", "aria-label": "Overview of all examples" },
      h("div", { class: "card choices" }, h("label", {}, "Task", this.#task), h("label", {}, "Position", this.#position), h("label", { class: "depth" }, "Layer", this.#layer, this.#layerName)),
      this.#map.card.element, this.#scatter.card.element,
      h("section", { class: "card" }, h("h2", {}, "Probe by layer", this.#curvesNote), this.#curves),
      h("section", { class: "card" }, h("h2", {}, "Interventions by layer", h("small", {}, "share of answers that change")), this.#effects));
  }

  /** The marked layer of the residual stream: that of the view, else the last. */
  get layer(): number {
    const asked = this.#host.view().residual;
    return this.#layers.includes(asked) ? asked : this.#layers.at(-1) ?? 0;
  }

  offer(results: Results | null): void {
    this.#results = results;
    const tasks = results?.tasks ?? [];
    this.#task.replaceChildren(...tasks.map((task) => h("option", { value: task }, task)));
    this.#key = "";
  }

  step(by: number): void {
    const k = this.#layers.indexOf(this.layer) + by;
    if (k >= 0 && k < this.#layers.length) this.#pick(this.#layers[k]!);
  }

  #pick(layer: number): void {
    this.#host.set({ residual: layer });
  }

  async show(): Promise<void> {
    const results = this.#results;
    if (!results?.tasks.length) return;
    const view = this.#host.view();
    const task = results.tasks.includes(view.task) ? view.task : results.tasks[0]!;
    const entries = results.curves(task);
    const own = entries.filter((e) => (e.condition ?? this.#host.condition) === this.#host.condition);
    const shown = own.length ? own : entries;
    const entry = shown.find((e) => e.position === view.position) ?? shown.find((e) => e.position === "final") ?? shown[0]!;
    this.#task.value = task;
    const names = shown.map((e) => e.position ?? "");
    if (names.join("\n") !== [...this.#position.options].map((o) => o.value).join("\n")) this.#position.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    this.#position.value = entry.position ?? "";
    if (this.#key !== entry.name) {
      this.#key = entry.name;
      try {
        await this.#read(results, task, entries, entry);
      } catch (error) {
        if (this.#key !== entry.name) return;
        const { message, todo } = faultOf(error);
        this.#map.card.say(...worded(`${message} ${todo}`));
      }
      this.#ready();
    }
    this.#mark();
  }

  async #read(results: Results, task: string, entries: readonly ResultEntry[], entry: ResultEntry): Promise<void> {
    const { condition } = this.#host;
    const [curves, probed, found, use, answers] = await Promise.all([
      Promise.all(entries.map((one) => scoreCurve(results, one))), probedExamples(results, entry), components(results, entry.position ?? "", condition),
      effects(results, task), modelAnswers(results, condition),
    ]);
    if (this.#key !== entry.name) return;
    this.#drawn = { probed, found, answers };
    this.#layers = probed?.layers ?? curves[entries.indexOf(entry)]!.layers;
    this.#layer.max = String(this.#layers.length - 1);
    this.#map.card.say(...(probed ? [] : ["A regression task has no classes: see its scores by layer."]));
    this.#scatter.card.say(...(found ? [] : worded(`No principal components at this position: make them with \`stratascope pca STORE --position ${entry.position}\`.`)));
    this.#charts = [this.#drawCurves(curves), ...this.#drawEffects(use, task)];
  }

  #mark(): void {
    if (!this.#drawn) return;
    const { layer } = this;
    const view = this.#host.view();
    this.#layer.value = String(this.#layers.indexOf(layer));
    setText(this.#layerName, `${layer}`);
    this.#map.show(this.#drawn.probed, this.#drawn.answers, layer, view.order, view.shade);
    this.#scatter.show(this.#drawn.found, this.#drawn.probed, layer, view.a.example);
    for (const chart of this.#charts) chart.mark(layer);
  }

  #drawCurves(curves: readonly ScoreCurve[]): DrawnChart {
    const own = (curve: ScoreCurve) => !curve.condition || curve.condition === this.#host.condition;
    // bands for the store's own positions first
    const ordered = [...curves].sort((p, q) => Number(own(q)) - Number(own(p)) || Number(q.position === "final") - Number(p.position === "final"));
    const { metric, chance, layers } = ordered[0]!;
    const named = ordered.map(({ position, condition }, k) => `${position || "probe"}${own(ordered[k]!) ? "" : `, ${condition}`}`);
    const series: Series[] = ordered.map((curve, k) => ({
      name: named[k]!, values: curve.value, colour: `var(--l${k % 6})`, dash: DASHES[k % DASHES.length]!, strong: curve.position === "final" && own(curve),
      ...(k < MOST_BANDS ? { low: curve.low, high: curve.high } : {}),
    }));
    const all = ordered.flatMap(({ value, low, high }) => [...value, ...low, ...high]).filter(Number.isFinite);
    const low = metric === "r2" || metric === "log_loss" || metric === "spearman" ? Math.min(0, ...all) : Math.max(0, Math.floor(10 * Math.min(...all)) / 10);
    const high = metric === "log_loss" ? Math.max(...all) : 1;
    const written = (v: number) => v.toFixed(2).replace("-", "−");
    const chart = drawChart({
      layers, series, kind: "lines", domain: [low, high], tick: written, onPick: (layer) => this.#pick(layer),
      ...(Number.isFinite(chance) ? { reference: { value: chance, name: "chance" } } : {}),
      label: `${METRICS[metric] ?? metric} by layer: ${series.map(({ name, values }) => `${name} ends at ${written(values.at(-1)!)}`).join(", ")}.`,
    }, WIDTH, HEIGHT);
    setText(this.#curvesNote, `${METRICS[metric] ?? metric}; 95 % simultaneous bands${series.length > MOST_BANDS ? ` of the first ${MOST_BANDS}` : ""}`);
    this.#curves.replaceChildren(chart.svg);
    tips(chart, (layer) => ordered.map((curve, k) => {
      const at = curve.layers.indexOf(layer);
      return at < 0 ? "" : `${named[k]}: ${written(curve.value[at]!)} [${written(curve.low[at]!)}, ${written(curve.high[at]!)}]`;
    }));
    return chart;
  }

  #drawEffects(use: readonly Effects[], task: string): DrawnChart[] {
    const missing = () => h("p", { class: "missing" }, worded(`No interventions on ${task}: run \`stratascope intervene STORE RESULTS --task ${task.split(":")[0]!}\`, then \`stratascope causal RESULTS\`.`));
    if (!use.length) {
      this.#effects.replaceChildren(missing());
      return [];
    }
    const charts = use.map(({ position, series, layers }) => {
      const most = Math.max(1, ...series.flatMap(({ value, high }) => [...value, ...high]).filter(Number.isFinite));
      const least = Math.min(0, ...series.flatMap(({ value, low }) => [...value, ...low]).filter(Number.isFinite));
      const lines: Series[] = series.map(({ label, value, low, high }, k) => ({
        name: label, values: value, colour: `var(--l${k % 6})`, dash: DASHES[k % DASHES.length]!, ...(k < MOST_BANDS ? { low, high } : {}),
      }));
      const chart = drawChart({
        layers, series: lines, kind: "lines", domain: [least, most], tick: (v) => percent(v, 1), onPick: (layer) => this.#pick(layer),
        label: `Share of answers that interventions at the position ${position} change, by layer: ${series.map(({ label, value }) => `${label} ends at ${percent(value.at(-1)!)}`).join(", ")}.`,
      }, WIDTH, HEIGHT);
      tips(chart, (layer) => series.map(({ label, layers: at, value, control, used }) => {
        const k = at.indexOf(layer);
        if (k < 0) return "";
        return `${label}: ${percent(value[k]!)}${Number.isNaN(control[k]!) ? "" : `, random directions ${percent(control[k]!)}`}${used[k] ? ", used" : ""}`;
      }));
      return chart;
    });
    this.#effects.replaceChildren(...use.flatMap((one, k) => [charts[k]!.svg, h("p", { class: "missing" }, `${one.position}: ${verdicts(one)}.`)]));
    return charts;
  }
}

/** Layers by what they do with the concept. */
function verdicts({ layers, verdicts: found, evidence }: Effects): string {
  const of = (name: string) => layers.filter((_, k) => found[k] === name);
  const told = ["encoded and used", "encoded only", "used only"].flatMap((name) => {
    const at = of(name);
    return at.length ? [`${name} at ${at.length === 1 ? "layer" : "layers"} ${at.join(", ")}`] : [];
  });
  return `${told.join("; ") || "neither encoding nor use is detected at any layer"} (used: ${evidence})`;
}

function tips(chart: DrawnChart, lines: (layer: number) => string[]): void {
  chart.svg.addEventListener("pointermove", (event) => {
    const layer = chart.layerAt(event.clientX);
    showTip(event.clientX, event.clientY, [`layer ${layer}`, ...lines(layer).filter(Boolean)].join("\n"));
  });
  chart.svg.addEventListener("pointerleave", hideTip);
}
