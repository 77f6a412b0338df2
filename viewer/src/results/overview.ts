/** What results say of all examples at once: scores of a probe, principal components, effects of interventions. */

import type { ResultArrays, ResultEntry, Results } from "./results.ts";
import { chances } from "./results.ts";

/** Scores of a metric by layer with their band. */
export interface ScoreCurve { position: string; condition: string; metric: string; layers: number[]; value: number[]; low: number[]; high: number[]; chance: number }

/** What a probe gives to each of its examples at each layer. */
export interface ProbedExamples {
  layers: number[];
  examples: number[];
  classes: string[];
  /** (example) number of the true class. */
  labels: number[];
  /** (layer, example) out-of-fold probability of the true class. */
  probability: Float32Array;
  /** (layer, example) 1 where the true class is the most probable one. */
  right: Uint8Array;
}

export interface Components {
  layers: number[];
  examples: number[];
  /** (layer, component, example). */
  scores: Float32Array;
  /** (layer, component) shares of the variance. */
  explained: Float64Array;
}

interface EffectSeries { label: string; layers: number[]; value: number[]; low: number[]; high: number[]; control: number[]; used: boolean[] }
export interface Effects { position: string; evidence: string; series: EffectSeries[]; layers: number[]; verdicts: string[] }

const numbers = (data: ArrayLike<number | bigint>): number[] => Array.from(data, Number);

async function column(result: ResultArrays, table: string, name: string): Promise<number[]> {
  return numbers((await result.read<BigInt64Array | Float64Array | Uint8Array>(`tables/${table}/${name}`)).data);
}

const words = async (result: ResultArrays, table: string, name: string): Promise<string[]> => (await result.read<string[]>(`tables/${table}/${name}`)).data;

/** Rows that are kept of a column. */
const kept = <T>(values: readonly T[], rows: readonly number[]): T[] => rows.map((row) => values[row]!);

/** Places of the rows that fulfil a condition, by rising layer. */
function rowsBy(layers: readonly number[], holds: (row: number) => boolean): number[] {
  return layers.map((_, row) => row).filter(holds).sort((p, q) => layers[p]! - layers[q]!);
}

export async function scoreCurve(results: Results, entry: ResultEntry): Promise<ScoreCurve> {
  const result = await results.open(entry);
  const { classes = [], settings } = result.attributes as { classes?: string[]; settings?: { metric?: string } };
  const [layer, metrics, value, low, high, chance] = await Promise.all([
    column(result, "table", "layer"), words(result, "table", "metric"), ...["value", "low_simultaneous", "high_simultaneous", "chance"].map((name) => column(result, "table", name)),
  ] as [Promise<number[]>, Promise<string[]>, ...Promise<number[]>[]]) as [number[], string[], number[], number[], number[], number[]];
  const usual = settings?.metric || (classes.length === 2 ? "auroc" : classes.length ? "balanced_accuracy" : "r2");
  const metric = metrics.includes(usual) ? usual : metrics[0] ?? usual;
  const rows = rowsBy(layer, (row) => metrics[row] === metric);
  return {
    position: entry.position ?? "", condition: entry.condition ?? "", metric, layers: kept(layer, rows), value: kept(value, rows), low: kept(low, rows), high: kept(high, rows),
    chance: chance[rows[0]!] ?? NaN,
  };
}

/** Null for a regression task, which has no probabilities. */
export async function probedExamples(results: Results, entry: ResultEntry): Promise<ProbedExamples | null> {
  const result = await results.open(entry);
  const { classes, targets } = result.attributes as { classes?: string[]; targets?: string[] };
  if (!classes?.length || targets?.length) return null;
  const [examples, labels, layer, logits] = await Promise.all([
    column(result, "examples", "example"), column(result, "examples", "label"), column(result, "table", "layer"), result.read<Float32Array>("arrays/logits"),
  ]);
  const [depth, outputs, count] = logits.shape as [number, number, number];
  const probability = new Float32Array(depth * count);
  const right = new Uint8Array(depth * count);
  const one = new Array<number>(outputs);
  for (let k = 0; k < depth; k++) {
    for (let n = 0; n < count; n++) {
      for (let output = 0; output < outputs; output++) one[output] = logits.data[(k * outputs + output) * count + n]!;
      const found = chances(one);
      const own = found[labels[n]!]!;
      probability[k * count + n] = own;
      right[k * count + n] = Number(found.every((p, other) => other === labels[n] || p < own));
    }
  }
  return { layers: [...new Set(layer)].sort((a, b) => a - b), examples, classes, labels, probability, right };
}

/** Principal components at a position, of a store with a condition; null where there are none. */
export async function components(results: Results, position: string, condition: string): Promise<Components | null> {
  const entry = results.entries.find((e) => e.kind === "principal_components" && e.position === position && (e.condition ?? condition) === condition);
  if (!entry) return null;
  const result = await results.open(entry);
  const [examples, scores, explained] = await Promise.all([
    column(result, "examples", "example"), result.read<Float32Array>("arrays/scores"), result.read<Float64Array>("arrays/explained"),
  ]);
  return { layers: result.attributes["layers"] as number[], examples, scores: scores.data, explained: explained.data };
}

/** Effects of interventions on what a task's probes read, one for each position. */
export async function effects(results: Results, task: string): Promise<Effects[]> {
  const out: Effects[] = [];
  for (const entry of results.entries.filter((e) => e.kind === "encoding_use")) {
    const result = await results.open(entry);
    const { concept, evidence } = result.attributes as { concept?: string; evidence?: string };
    if (concept !== task) continue;
    const [places, labels, layer, at, depth, verdicts] = await Promise.all([
      words(result, "effects", "position"), words(result, "effects", "label"), column(result, "effects", "layer"), words(result, "table", "position"),
      column(result, "table", "layer"), words(result, "table", "verdict"),
    ]);
    const [value, low, high, control, used] = await Promise.all(
      ["value", "value_low_simultaneous", "value_high_simultaneous", "control", "used"].map((name) => column(result, "effects", name)),
    ) as [number[], number[], number[], number[], number[]];
    for (const position of new Set(at)) {
      const told = rowsBy(depth, (row) => at[row] === position);
      const series = [...new Set(labels)].flatMap((label) => {
        const rows = rowsBy(layer, (row) => places[row] === position && labels[row] === label);
        if (!rows.length) return [];
        return [{ label, layers: kept(layer, rows), value: kept(value, rows), low: kept(low, rows), high: kept(high, rows), control: kept(control, rows), used: kept(used, rows).map(Boolean) }];
      });
      out.push({ position, evidence: evidence ?? "", series, layers: kept(depth, told), verdicts: kept(verdicts, told) });
    }
  }
  return out;
}

/** (example) -> whether the model's own answer is right, as `stratascope answers` found; null where it did not run on this store. */
export async function modelAnswers(results: Results, condition: string): Promise<Map<number, boolean> | null> {
  const entry = results.entries.find((e) => e.kind === "answer_confidence" && e.name === "answers.zarr.zip" && (e.condition ?? condition) === condition);
  if (!entry) return null;
  const result = await results.open(entry);
  const [examples, right] = await Promise.all([column(result, "answers", "example"), column(result, "answers", "right")]);
  return new Map(examples.map((example, k) => [example, Boolean(right[k])]));
}
