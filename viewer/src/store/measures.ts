/** What can be laid over an image's cells and a prompt's tokens: one number a token, for every layer. */

import { Fault } from "../fault.ts";
import { effectsOf, hidingOf, notMeasured, overTokens } from "./knockouts.ts";
import { decodeMap, decodeRow } from "./packing.ts";
import { tokenParts } from "./parts.ts";
import { packedTowerMap, readTower } from "./tower.ts";
import { enteringTower, flowBounds, patchPicture, rollout, throughBlock, type Patches } from "./rollout.ts";
import type { Prompt, Store } from "./store.ts";

export type Measure = "attention" | "norm" | "attribution" | "rollout" | "relevance" | "patches" | "flow" | "knockout" | "hiding" | "gradient";
export type Heads = "mean" | "max" | "one";
export interface Choice {
  measure: Measure;
  heads: Heads;
  head: number;
  /** Of knockouts: who could not see the target, and in which window of blocks; the store's first where they are empty. */
  mode: string;
  window: string;
  /** Whose attention is shown, from the stored maps, fused over heads; -1: the final token's. Of the attention alone. */
  token: number;
}

export interface MeasureFacts {
  name: string;
  /** Of one token's number. */
  unit: "share" | "norm" | "logit";
  /** Whether numbers may be negative. */
  signed: boolean;
  perHead: boolean;
  /** What `mean` does over heads. */
  fused: string;
  /** Whether what several tokens get is the sum of what each gets: flows are not. */
  additive: boolean;
  /** Whether there is one map for every layer; otherwise one for all of them. */
  layered: boolean;
  /** Offered only where the store holds it. */
  rare: boolean;
  explains: string;
}

export const MEASURES: Record<Measure, MeasureFacts> = {
  attention: {
    name: "Attention", unit: "share", signed: false, perHead: true, fused: "Mean", additive: true, layered: true, rare: false,
    explains: "attention of the final token to each token",
  },
  norm: {
    name: "Norm-based", unit: "norm", signed: false, perHead: true, fused: "Mean", additive: true, layered: true, rare: false,
    explains: "attention times the norm of the transformed value vector (Kobayashi et al. 2020)",
  },
  attribution: {
    name: "Attribution", unit: "logit", signed: true, perHead: true, fused: "Sum", additive: true, layered: true, rare: false,
    explains: "direct logit attribution: contribution of each token to the logit difference of the first two choices, through the heads of this layer",
  },
  rollout: {
    name: "Rollout", unit: "share", signed: false, perHead: false, fused: "", additive: true, layered: true, rare: false,
    explains: "attention rollout of the final token onto the inputs of this layer (Abnar & Zuidema 2020)",
  },
  relevance: {
    name: "Gradient rollout", unit: "share", signed: false, perHead: false, fused: "", additive: true, layered: true, rare: true,
    explains: "rollout onto the inputs of this layer through attention maps weighted by the positive part of the gradient of the answer's logit difference, as shares (Chefer et al. 2021)",
  },
  patches: {
    name: "Rollout to patches", unit: "share", signed: false, perHead: false, fused: "", additive: true, layered: false, rare: true,
    explains: "attention rollout of the final token through decoder and vision tower onto the patches of the image; of tokens, onto the decoder's inputs",
  },
  flow: {
    name: "Flow", unit: "share", signed: false, perHead: false, fused: "", additive: false, layered: true, rare: false,
    explains: "upper bound of the attention flow to each input token of this layer (Abnar & Zuidema 2020)",
  },
  knockout: {
    name: "Knockout", unit: "logit", signed: true, perHead: false, fused: "", additive: false, layered: false, rare: true,
    explains: "knockout effect: change of the logit difference of the first two choices when each part of the prompt, or group of image cells, is masked (Geva et al. 2023)",
  },
  hiding: {
    name: "Knockout estimate", unit: "logit", signed: true, perHead: false, fused: "", additive: true, layered: false, rare: true,
    explains: "first-order estimate of the effect of masking each token for all later tokens in all blocks",
  },
  gradient: {
    name: "Gradient", unit: "logit", signed: true, perHead: false, fused: "", additive: true, layered: false, rare: true,
    explains: "gradient times input: gradient of the logit difference with respect to each token embedding, times the embedding (Simonyan et al. 2013)",
  },
};


const RECORD: Record<Measure, readonly string[]> = {
  attention: ["attention_rows"], norm: ["attention_rows", "value_norms"], attribution: ["attention_rows", "value_logits"],
  rollout: ["attention_maps"], relevance: ["gradient_rollout"],
  patches: ["attention_maps", "vision_maps", "vision_parent", "vision_grid", "vision_box"], flow: ["attention_maps"], knockout: ["knockout"], hiding: ["hiding_estimate"], gradient: ["gradient_input"],
};

/** The measures that a store's page offers. */
export const offered = (store: Store): Measure[] => (Object.keys(MEASURES) as Measure[]).filter((name) => !MEASURES[name].rare || RECORD[name].every((array) => store.has(array)));

/** Why a measure cannot be shown, or null. */
export function unavailable(store: Store, choice: Choice, prompt?: Prompt): Fault | null {
  if (store.imported) {
    return new Fault("absent-array", "These activations were imported: the store has no image, prompt, tokens, attention, answers or knockouts of any example.",
      "Probes and principal components are shown from results: run `stratascope probe STORE` or `stratascope pca STORE`.");
  }
  if (ofToken(choice)) {
    if (!store.has("attention_maps")) return new Fault("absent-array", "This store holds no attention maps, which show what single tokens read.", "Extract with `--record attention_maps`.");
    return prompt && !prompt.hasMap ? noMap() : null;
  }
  const mean = choice.measure === "attention" && choice.heads === "mean" && store.has("attention_mean");
  const lacking = mean ? [] : RECORD[choice.measure].filter((name) => !store.has(name));
  if (lacking.length) {
    const what = choice.measure === "attention" && store.has("attention_mean") ? "single heads" : MEASURES[choice.measure].name.toLowerCase();
    return new Fault("absent-array", `This store does not hold ${lacking.join(" and ")}, which ${what} need${what.endsWith("s") ? "" : "s"}.`,
      `Extract with \`--record ${RECORD[choice.measure].join(",")}\`${store.has("attention_mean") ? ", or choose another map" : ""}.`);
  }
  if (RECORD[choice.measure].includes("attention_maps") && prompt && !prompt.hasMap) {
    return noMap();
  }
  return null;
}

const noMap = () => new Fault("absent-array", "The store holds no attention map of this example.", "It was extracted with `--maps N`: choose an example that has one, or extract without.");

/** Whether what a single token reads is shown. */
export const ofToken = (choice: Pick<Choice, "measure" | "heads" | "token">): boolean => choice.token >= 0 && choice.measure === "attention" && choice.heads === "mean";

/** Bytes of an example's maps of all layers that are read without being asked for. */
const MAPS_UNASKED = 8e6;

/** What a token reads at a layer: its row of the map. */
async function tokenRow(store: Store, prompt: Prompt, layer: number, token: number, signal?: AbortSignal): Promise<Float64Array> {
  return decodeRow(await store.packedMap(layer, prompt.example, signal), store.layout.tokens, prompt.tokens, Math.min(token, prompt.tokens - 1));
}

/** Weights over an example's tokens, of one layer. Signed where the measure is. */
export async function weightsOf(store: Store, prompt: Prompt, layer: number, choice: Choice, signal?: AbortSignal): Promise<Float64Array> {
  const fault = unavailable(store, choice, prompt);
  if (fault) throw fault;
  if (ofToken(choice)) return tokenRow(store, prompt, layer, choice.token, signal);
  if (choice.measure === "rollout" || choice.measure === "flow") {
    const rows = await chained(store, prompt, choice.measure, signal);
    return rows[store.layers.indexOf(layer)]!;
  }
  if (choice.measure === "patches") return (await chained(store, prompt, "rollout", signal))[0]!;
  if (choice.measure === "relevance") return (await relevance(store, prompt, signal)).get(layer)!;
  if (choice.measure === "hiding" || choice.measure === "gradient") {
    const row = await store.blockRow<Float32Array>(RECORD[choice.measure][0]!, prompt.example, signal);
    return Float64Array.from(row.subarray(0, prompt.tokens));
  }
  if (choice.measure === "knockout") {
    const effects = await effectsOf(store, prompt.example, hidingOf(store, choice.mode, choice.window), signal);
    if (!effects) throw notMeasured();
    return overTokens(effects, prompt, tokenParts(prompt.spans, prompt.tokens));
  }
  if (choice.measure === "attention" && choice.heads === "mean" && store.has("attention_mean")) {
    const rows = await store.attentionMean(prompt.example, signal);
    return Float64Array.from(rows[store.layers.indexOf(layer)]!.subarray(0, prompt.tokens));
  }
  return fused(await headWeights(store, prompt, layer, choice.measure, signal), choice);
}

/** (head, token) weights of one layer. */
export async function headWeights(
  store: Store, prompt: Prompt, layer: number, measure: "attention" | "norm" | "attribution", signal?: AbortSignal,
): Promise<Float64Array[]> {
  const [, factor] = RECORD[measure];
  const [rows, factors] = await Promise.all([
    store.perHead("attention_rows", layer, prompt.example, signal),
    factor ? store.perHead(factor, layer, prompt.example, signal) : null,
  ]);
  return rows.map((row, head) => Float64Array.from({ length: prompt.tokens }, (_, token) => row[token]! * (factors ? factors[head]![token]! : 1)));
}

/** One row of several heads: the mean (of attributions the sum), the largest (in absolute value), or one head's. */
export function fused(heads: readonly Float64Array[], { measure, heads: how, head }: Pick<Choice, "measure" | "heads" | "head">): Float64Array {
  if (how === "one") return heads[Math.min(head, heads.length - 1)]!;
  const out = new Float64Array(heads[0]!.length);
  for (const row of heads) {
    for (let token = 0; token < out.length; token++) {
      if (how === "max") {
        if (Math.abs(row[token]!) > Math.abs(out[token]!)) out[token] = row[token]!;
      } else out[token]! += row[token]!;
    }
  }
  if (how === "mean" && measure !== "attribution") for (let token = 0; token < out.length; token++) out[token]! /= heads.length;
  return out;
}

/** Of all layers at once where that needs no further request, for charts and steps of the slider; null where it would. */
export async function allLayers(store: Store, prompt: Prompt, choice: Choice, signal?: AbortSignal): Promise<Float64Array[] | null> {
  if (choice.measure === "rollout" || choice.measure === "flow") return (await chained(store, prompt, choice.measure, signal)).slice(0, -1);
  if (choice.measure === "relevance") {
    const rows = await relevance(store, prompt, signal);
    return store.layers.map((layer) => rows.get(layer)!);
  }
  if (ofToken(choice)) {
    if (store.layers.length * store.layout.tokens ** 2 > MAPS_UNASKED) return null;
    return Promise.all(store.layers.map((layer) => tokenRow(store, prompt, layer, choice.token, signal)));
  }
  if (choice.measure !== "attention" || choice.heads !== "mean" || !store.has("attention_mean")) return null;
  const rows = await store.attentionMean(prompt.example, signal);
  return rows.map((row) => Float64Array.from(row.subarray(0, prompt.tokens)));
}

/** Layer -> gradient rollout onto the tokens that enter it, scaled to sum to 1. */
async function relevance(store: Store, prompt: Prompt, signal?: AbortSignal): Promise<Map<number, Float64Array>> {
  const { rows, layers } = await store.gradientRollout(prompt.example, signal);
  return new Map(rows.map((row, k) => {
    const own = Float64Array.from(row.subarray(0, prompt.tokens));
    const total = own.reduce((a, b) => a + b, 0);
    return [layers[k]!, own.map((value) => value / total)];
  }));
}

const patched = new WeakMap<Store, Map<number, Promise<Patches>>>();

/** Rollout of the final token onto the patches of the image, one block of the vision tower at a time. */
export function patchesOf(store: Store, prompt: Prompt, signal?: AbortSignal): Promise<Patches> {
  let kept = patched.get(store);
  if (!kept) patched.set(store, (kept = new Map()));
  let found = kept.get(prompt.example);
  if (!found) {
    found = throughTower(store, prompt, signal);
    kept.set(prompt.example, found);
    found.catch(() => kept.delete(prompt.example));
    if (kept.size > KEPT_CHAINS) kept.delete(kept.keys().next().value!);
  }
  return found;
}

async function throughTower(store: Store, prompt: Prompt, signal?: AbortSignal): Promise<Patches> {
  const [rows, tower] = await Promise.all([chained(store, prompt, "rollout", signal), readTower(store, prompt.example, signal)]);
  let shares = enteringTower(rows[0]!, tower);
  for (let block = store.arrays.shape("vision_maps")[1]! - 1; block >= 0; block--) {
    shares = throughBlock(shares, await packedTowerMap(store, block, prompt.example, signal), tower);
    await new Promise((next) => setTimeout(next));
  }
  return patchPicture(shares, tower);
}

const chains = new WeakMap<Store, Map<string, Promise<Float64Array[]>>>();
const KEPT_CHAINS = 12;

/** Told how many of an example's maps have been read, so that the page can say so. */
type Progress = (done: number, total: number) => void;
let progress: Progress = () => {};
export function onMapsRead(tell: Progress): void {
  progress = tell;
}

function chained(store: Store, prompt: Prompt, measure: "rollout" | "flow", signal?: AbortSignal): Promise<Float64Array[]> {
  if (store.layers.length !== store.layout.layers || store.layers.some((layer, k) => layer !== k)) {
    throw new Fault("absent-array", `This copy holds only some layers, and ${measure} runs through all of them.`, "Open the store it was taken from.");
  }
  let kept = chains.get(store);
  if (!kept) chains.set(store, (kept = new Map()));
  const key = `${measure}:${prompt.example}`;
  let rows = kept.get(key);
  if (!rows) {
    rows = decodedMaps(store, prompt, signal).then((maps) => (measure === "rollout" ? rollout : flowBounds)(maps, prompt.tokens));
    kept.set(key, rows);
    rows.catch(() => kept.delete(key));
    if (kept.size > KEPT_CHAINS) kept.delete(kept.keys().next().value!);
  }
  return rows;
}

async function decodedMaps(store: Store, prompt: Prompt, signal?: AbortSignal): Promise<Float64Array[]> {
  const size = store.layout.tokens;
  let done = 0;
  const packed = await Promise.all(store.layers.map(async (layer) => {
    const found = await store.packedMap(layer, prompt.example, signal);
    progress(++done, store.layers.length);
    return found;
  }));
  const maps: Float64Array[] = [];
  for (const map of packed) {
    maps.push(decodeMap(map, size, prompt.tokens));
    // let the page breathe between layers: a long prompt's map takes milliseconds
    await new Promise((next) => setTimeout(next));
  }
  return maps;
}
