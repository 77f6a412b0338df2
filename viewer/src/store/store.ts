/** An activation store, read one example at a time. */

import { crc32c } from "../bytes/crc32c.ts";
import type { Files } from "../bytes/files.ts";
import { Fault } from "../fault.ts";
import { Arrays, type Select } from "./arrays.ts";
import { readRoot, type Layout, type RootMeta } from "./metadata.ts";
import type { Span } from "./parts.ts";
import { importedFrom } from "./provenance.ts";

/** What is known of an example before the model ran. */
export interface Prompt {
  example: number;
  tokens: number;
  ids: Int32Array;
  /** Rows and columns of image cells, one token each; null where there is no image span that they fit. */
  grid: readonly [rows: number, columns: number] | null;
  spans: Map<string, Span>;
  hasMap: boolean;
}

/** Half-open ranges of blocks. */
export type Unwritten = readonly (readonly [first: number, stop: number])[];

const STATUS: Record<number, readonly [what: string, todo: string]> = {
  2: ["Its image could not be read when the store was made.", "Give the image back to the folder and extract into a new store."],
  3: ["Its image was another one than the store's provenance says.", "Check the folder of images and extract into a new store."],
  4: ["The model gave numbers that are not finite.", "Extract with --dtype float32 or bfloat16."],
  5: ["Its prompt was too long for the model.", "Extract with a smaller --max-pixels."],
};

export class Store {
  readonly files: Files;
  readonly layout: Layout;
  readonly provenance: Record<string, unknown>;
  readonly meta: RootMeta;
  readonly arrays: Arrays;
  /** What the activations were imported from; empty for those that were extracted. */
  readonly imported: string;
  /** Number of the decoder block of each attention layer held; of imported activations, each layer of the residual stream. */
  readonly layers: number[];
  readonly #markers = new Map<number, Promise<boolean>>();
  readonly #words = new Map<number, string>();
  #wordsRead = 0;

  /** Blocks that are known not to be written, so that nobody asks for their markers. */
  readonly unwritten: Unwritten;

  constructor(files: Files, meta: RootMeta, { kept, unwritten = [] }: { kept?: number | undefined; unwritten?: Unwritten } = {}) {
    this.files = files;
    this.unwritten = unwritten;
    this.meta = meta;
    this.layout = meta.attributes.layout;
    this.provenance = meta.attributes.provenance;
    this.arrays = new Arrays(files, meta.arrays, (name, select) => this.#place(name, select), kept);
    const held = this.layout.kept_layers;
    const all = Array.from({ length: this.layout.layers }, (_, k) => k);
    // a copy's attention layers are those of its layers that are blocks, as its own coordinate says; see attentionLayers
    this.imported = importedFrom(this.provenance);
    this.layers = this.imported ? held ?? [...all, this.layout.layers] : held ? held.filter((k) => k < this.layout.layers) : all;
  }

  static async open(files: Files, unwritten: Unwritten = [], signal?: AbortSignal): Promise<Store> {
    const store = new Store(files, await readRoot(files, signal), { unwritten });
    const axis = store.imported ? store.layers.length : store.arrays.shape("attention_layer")[0] ?? store.layers.length;
    if (axis !== store.layers.length) {
      const { data } = await store.arrays.read<Int32Array>("attention_layer", [null], signal);
      store.layers.splice(0, Infinity, ...data);
    }
    return store;
  }

  has(name: string): boolean {
    return this.arrays.has(name);
  }

  get heads(): number {
    return this.layout.heads;
  }

  async prompt(example: number, signal?: AbortSignal): Promise<Prompt> {
    const [tokens, grid, spans, ids, map] = await Promise.all([
      this.#known<Int32Array>("n_tokens", example, signal),
      this.#known<Int32Array>("grid", example, signal),
      this.#known<Int32Array>("spans", example, signal),
      this.#known<Int32Array>("token_ids", example, signal),
      this.has("attention_maps") ? this.#known<Uint8Array>("has_map", example, signal) : Uint8Array.of(0),
    ]);
    const named = new Map<string, Span>();
    this.layout.spans.forEach((name, k) => {
      const [start, stop] = [spans[2 * k]!, spans[2 * k + 1]!];
      if (start >= 0) named.set(name, [start, stop]);
    });
    const [rows, columns] = [grid[0]!, grid[1]!];
    const image = named.get("image");
    const fits = image && rows > 0 && columns > 0 && rows * columns === image[1] - image[0];
    return {
      example, tokens: tokens[0]!, ids: ids.slice(0, tokens[0]!), grid: fits ? [rows, columns] : null, spans: named, hasMap: !!map[0],
    };
  }

  /** Texts of tokens, by a table whose first pieces hold the ids that prompts use most. */
  async words(ids: Iterable<number>, signal?: AbortSignal): Promise<string[]> {
    const wanted = [...ids];
    const total = this.arrays.shape("vocabulary/id")[0] ?? 0;
    while (this.#wordsRead < total && wanted.some((id) => !this.#words.has(id))) {
      const first = this.#wordsRead;
      // ever longer stretches: an id that no early piece holds may be anywhere
      const stop = Math.min(total, Math.max(first + this.arrays.piece("vocabulary/id", 0), 2 * first));
      const [numbers, texts] = await Promise.all([
        this.arrays.read<BigInt64Array>("vocabulary/id", [[first, stop]], signal),
        this.arrays.read<string[]>("vocabulary/text", [[first, stop]], signal),
      ]);
      texts.data.forEach((text, k) => this.#words.set(Number(numbers.data[k]), text));
      this.#wordsRead = Math.max(this.#wordsRead, stop);
    }
    return wanted.map((id) => this.#words.get(id) ?? `⟨${id}⟩`);
  }

  /** Texts of tokens that no prompt need hold: looked up by bisection, as the later words of the table rise by their ids. */
  async rareWords(ids: Iterable<number>, signal?: AbortSignal): Promise<string[]> {
    const wanted = [...ids];
    for (const id of wanted) if (!this.#words.has(id)) await this.#seek(id, signal);
    return wanted.map((id) => this.#words.get(id) ?? `⟨${id}⟩`);
  }

  async #seek(id: number, signal?: AbortSignal): Promise<void> {
    const total = this.arrays.shape("vocabulary/id")[0] ?? 0;
    if (!total) return;
    const piece = this.arrays.piece("vocabulary/id", 0);
    let [low, high] = [0, Math.ceil(total / piece) - 1];
    // most ids of a vocabulary stand about where their number says
    for (let at = Math.min(high, Math.floor(id / piece)); low <= high; at = Math.floor((low + high) / 2)) {
      const range: readonly [number, number] = [at * piece, Math.min((at + 1) * piece, total)];
      const { data } = await this.arrays.read<BigInt64Array>("vocabulary/id", [range], signal);
      if (data.includes(BigInt(id))) {
        const { data: texts } = await this.arrays.read<string[]>("vocabulary/text", [range], signal);
        texts.forEach((text, k) => this.#words.set(Number(data[k]), text));
        return;
      }
      // the first pieces hold what prompts use, in no order
      if (Number(data.at(-1)) < id || Number(data[0]) > Number(data.at(-1))) low = at + 1;
      else high = at - 1;
    }
  }

  block(example: number): number {
    return Math.floor(example / this.layout.block);
  }

  /** Whether a block is written, by its marker. */
  written(block: number, signal?: AbortSignal): Promise<boolean> {
    if (this.unwritten.some(([first, stop]) => block >= first && block < stop)) return Promise.resolve(false);
    let known = this.#markers.get(block);
    if (!known) {
      known = this.files.whole(`written/c/${block}`, signal).then((bytes) => {
        if (!bytes) return false;
        const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
        if (bytes.length !== 5 || crc32c(bytes.subarray(0, 1)) !== view.getUint32(1, true)) {
          throw new Fault("damaged", `The marker of block ${block} is damaged.`, "Run `stratascope verify --repair` on the store.");
        }
        return bytes[0] === 1;
      });
      this.#markers.set(block, known);
      // a block that is not written may be soon
      known.then((is) => is || this.#markers.delete(block), () => this.#markers.delete(block));
    }
    return known;
  }

  /** Throws the Fault that says why there are no values of an example. */
  async requireRecorded(example: number, signal?: AbortSignal): Promise<void> {
    const block = this.block(example);
    if (!(await this.written(block, signal))) {
      const first = block * this.layout.block;
      const last = Math.min(first + this.layout.block, this.layout.examples) - 1;
      throw new Fault("unwritten", `Block ${block} (examples ${first} to ${last}) is not written yet.`,
        "Run the extract command again: it goes on where it stopped. Then reload this page.");
    }
    const { data } = await this.arrays.read<Uint8Array>("status", [this.#blockRange(block)], signal);
    const status = data[example - block * this.layout.block]!;
    const odd = STATUS[status];
    if (odd) throw new Fault("unrecorded", `Example ${example} was not recorded. ${odd[0]}`, odd[1]);
    if (status !== 1) throw new Fault("damaged", `The status of example ${example} is ${status} in a written block.`, "Run `stratascope verify --repair`.");
  }

  /** Logits with -Infinity for choices that an example does not offer: questions may have different numbers of options. */
  async #offered(logits: Float32Array, examples: readonly [number, number], signal?: AbortSignal): Promise<Float32Array> {
    if (!(this.provenance["data"] as { options?: unknown } | null | undefined)?.options) return logits;
    const { data: options } = await this.arrays.read<BigInt64Array>("examples/options", [examples], signal);
    const width = this.layout.choices.length;
    return logits.map((logit, k) => (k % width < Number(options[Math.floor(k / width)]) ? logit : -Infinity));
  }

  /** Logits of the answer choices of all examples of a block; -Infinity for choices that are not offered. */
  async blockLogits(block: number, signal?: AbortSignal): Promise<{ logits: Float32Array; status: Uint8Array } | null> {
    if (!(await this.written(block, signal))) return null;
    const range = this.#blockRange(block);
    const [logits, status] = await Promise.all([
      this.arrays.read<Float32Array>("answer_logits", [range, null], signal),
      this.arrays.read<Uint8Array>("status", [range], signal),
    ]);
    return { logits: await this.#offered(logits.data, range, signal), status: status.data };
  }

  async answerLogits(example: number, signal?: AbortSignal): Promise<Float32Array> {
    return this.#offered(await this.blockRow<Float32Array>("answer_logits", example, signal), [example, example + 1], signal);
  }

  /** An example's values of an array whose pieces are whole blocks, with the example as its first axis. */
  async blockRow<V extends Float32Array | Int32Array>(name: string, example: number, signal?: AbortSignal): Promise<V> {
    const block = this.block(example);
    const rest = this.arrays.shape(name).slice(1);
    const { data } = await this.arrays.read<V>(name, [this.#blockRange(block), ...rest.map(() => null)], signal);
    const width = rest.reduce((a, b) => a * b, 1);
    const at = example - block * this.layout.block;
    return data.subarray(at * width, (at + 1) * width) as V;
  }

  /** (layer, token) of the final token's attention averaged over heads. */
  async attentionMean(example: number, signal?: AbortSignal): Promise<Float32Array[]> {
    const { data, shape } = await this.arrays.read<Float32Array>("attention_mean", [example, null, null], signal);
    return rowsOf(data, shape[1]!);
  }

  /** (head, token) of one layer of an array such as attention_rows. */
  async perHead(name: string, layer: number, example: number, signal?: AbortSignal): Promise<Float32Array[]> {
    const index = this.#layerIndex(layer);
    const piece = this.arrays.piece(name, 1);
    const first = Math.floor(example / piece) * piece;
    const range: readonly [number, number] = [first, Math.min(first + piece, this.layout.examples)];
    const { data, shape } = await this.arrays.read<Float32Array>(name, [index, range, null, null], signal);
    const [heads, tokens] = [shape[1]!, shape[2]!];
    const start = (example - first) * heads * tokens;
    return rowsOf(data.subarray(start, start + heads * tokens), tokens);
  }

  /** Packed map of one layer: (token, token) bytes, padded to the longest prompt. */
  async packedMap(layer: number, example: number, signal?: AbortSignal): Promise<Uint8Array> {
    const { data } = await this.arrays.read<Uint8Array>("attention_maps", [example, this.#layerIndex(layer), null, null], signal);
    return data;
  }

  /** (layer, token) gradient rollout, and the layers. */
  async gradientRollout(example: number, signal?: AbortSignal): Promise<{ rows: Float32Array[]; layers: number[] }> {
    const { data, shape } = await this.arrays.read<Float32Array>("gradient_rollout", [example, null, null], signal);
    return { rows: rowsOf(data, shape[1]!), layers: this.layout.kept_layers ?? Array.from({ length: shape[0]! }, (_, k) => k) };
  }

  /** The image as the model was shown it, stretched to the thumbnail's size. */
  async thumbnail(example: number, signal?: AbortSignal): Promise<ImageData | null> {
    if (!this.has("thumbnail")) return null;
    const { data, shape } = await this.arrays.read<Uint8Array>("thumbnail", [example, null, null, null], signal);
    const [height, width] = [shape[0]!, shape[1]!];
    const out = new ImageData(width, height);
    for (let pixel = 0; pixel < width * height; pixel++) {
      out.data.set([data[3 * pixel]!, data[3 * pixel + 1]!, data[3 * pixel + 2]!, 255], 4 * pixel);
    }
    return out;
  }

  #layerIndex(layer: number): number {
    return Math.max(0, this.layers.indexOf(layer));
  }

  #blockRange(block: number): readonly [number, number] {
    return [block * this.layout.block, Math.min((block + 1) * this.layout.block, this.layout.examples)];
  }

  /** An example's row of what was written at creation, whose piece is kept for its neighbours. */
  async #known<V extends Int32Array | Uint8Array>(name: string, example: number, signal?: AbortSignal): Promise<V> {
    const shape = this.arrays.shape(name);
    const piece = this.arrays.piece(name, 0);
    const first = Math.floor(example / piece) * piece;
    const rest = shape.slice(1).map(() => null);
    const { data } = await this.arrays.read<V>(name, [[first, Math.min(first + piece, shape[0]!)], ...rest], signal);
    const width = shape.slice(1).reduce((a, b) => a * b, 1);
    return data.subarray((example - first) * width, (example - first + 1) * width) as V;
  }

  #place(name: string, select: Select): string {
    const dims = this.meta.arrays[name]?.dimension_names ?? [];
    const named = dims.flatMap((dim, k) => {
      const s = select[k];
      if (s === null || s === undefined) return [];
      const text = Array.isArray(s) ? `${s[0]} to ${s[1] - 1}` : dim === "attention_layer" ? `${this.layers[s as number]}` : `${s as number}`;
      return [`${dim.replace("attention_", "")} ${text}`];
    });
    return named.length ? `${name}, ${named.join(", ")}` : name;
  }
}

function rowsOf(data: Float32Array, width: number): Float32Array[] {
  return Array.from({ length: width ? data.length / width : 0 }, (_, k) => data.subarray(k * width, (k + 1) * width));
}
