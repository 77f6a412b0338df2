/** Result files beside a store: what probes read from each example, and flows that were computed before. */

import type { Files, Meter } from "../bytes/files.ts";
import { HttpFiles } from "../bytes/http.ts";
import { ZipFiles } from "../bytes/zip.ts";
import { Fault } from "../fault.ts";
import { Arrays } from "../store/arrays.ts";
import type { ArrayMeta } from "../store/metadata.ts";

/** A line of the index that `stratascope view` gives of a folder of results. */
export interface ResultEntry { name: string; bytes: number; kind: string; task?: string; position?: string; condition?: string }

interface ProbeOfExample {
  task: string;
  position: string;
  /** What was done to the image before the probed store was extracted. */
  condition: string;
  layers: number[];
  /** Names of the classes, and of the one that is right. */
  classes: string[];
  label: string;
  /** By layer: out-of-fold probability of every class. */
  probabilities: number[][];
}

const WHOLE = 4 << 20;
const MOST = 48 << 20;

export class Results {
  readonly entries: readonly ResultEntry[];
  readonly #address: string;
  readonly #page: string;
  readonly #meter: Meter;
  readonly #opened = new Map<string, Promise<ResultArrays>>();

  constructor(address: string, page: string, entries: readonly ResultEntry[], meter: Meter) {
    this.#address = address.endsWith("/") ? address : `${address}/`;
    this.#page = page;
    this.entries = entries;
    this.#meter = meter;
  }

  static async open(address: string, page: string, meter: Meter): Promise<Results> {
    const bytes = await new HttpFiles(address, page, meter).whole("index.json");
    if (!bytes) throw new Fault("not-found", "There is no index.json among the results.", "Make the page with `stratascope view STORE --results FOLDER --export PAGE`.");
    const found = JSON.parse(new TextDecoder().decode(bytes)) as { files?: ResultEntry[] };
    return new Results(address, page, Array.isArray(found.files) ? found.files : [], meter);
  }

  /** Of the probes: the caption's truth first, as it is the question that nothing but the image answers; controls last. */
  get tasks(): string[] {
    const found = [...new Set(this.entries.filter((e) => e.kind === "layer_curve" && e.task).map((e) => e.task!))];
    const rank = (task: string) => (task === "truth" ? 0 : task.includes(":") ? 2 : 1);
    return found.sort((a, b) => rank(a) - rank(b));
  }

  /** Files of a task's curves, one for each position and condition. */
  curves(task: string): ResultEntry[] {
    return this.entries.filter((e) => e.kind === "layer_curve" && e.task === task);
  }

  /** What the probes of a task read from an example, one for each position; those that did not see the example are left out. */
  async probes(task: string, example: number): Promise<ProbeOfExample[]> {
    const entries = this.curves(task);
    const found = await Promise.all(entries.map((entry) => this.#probe(entry, example)));
    return found.filter((probe) => probe !== null);
  }

  /** (token) exact flow onto what enters a block, through it and all above it, from a result of `stratascope flow`; or null. */
  async flow(example: number, first: number, layers: number, condition: string): Promise<Float64Array | null> {
    for (const entry of this.entries.filter((e) => e.kind === "flow" && (e.condition ?? condition) === condition)) {
      const result = await this.open(entry);
      const { window, exact } = result.attributes as { window?: [number, number]; exact?: boolean };
      if (!exact || window?.[0] !== first || window[1] !== layers) continue;
      const numbers = await result.read<BigInt64Array>("tables/examples/example");
      const k = numbers.data.findIndex((n) => Number(n) === example);
      if (k < 0) continue;
      const flow = await result.read<Float64Array>("arrays/flow");
      const tokens = flow.shape[1]!;
      return flow.data.slice(k * tokens, (k + 1) * tokens);
    }
    return null;
  }

  async #probe(entry: ResultEntry, example: number): Promise<ProbeOfExample | null> {
    const result = await this.open(entry);
    const { classes, targets } = result.attributes as { classes?: string[]; targets?: string[] };
    if (!classes?.length || targets?.length) return null;
    const [numbers, labels, layers] = await Promise.all([
      result.read<BigInt64Array>("tables/examples/example"),
      result.read<BigInt64Array>("tables/examples/label"),
      result.read<BigInt64Array>("tables/table/layer"),
    ]);
    const k = numbers.data.findIndex((n) => Number(n) === example);
    if (k < 0) return null;
    // of many classes the logits are long: only the piece that holds the example is read
    const { data, shape: [depth, outputs] } = await result.read<Float32Array>("arrays/logits", k);
    const probabilities = Array.from({ length: depth! }, (_, layer) => chances([...data.subarray(layer * outputs!, (layer + 1) * outputs!)]));
    return {
      task: entry.task!, position: entry.position ?? "", condition: entry.condition ?? "", classes, label: classes[Number(labels.data[k])] ?? "",
      layers: [...new Set([...layers.data].map(Number))].sort((a, b) => a - b), probabilities,
    };
  }

  open(entry: ResultEntry): Promise<ResultArrays> {
    let open = this.#opened.get(entry.name);
    if (!open) {
      const file = new HttpFiles(this.#address + encodeURIComponent(entry.name), this.#page, this.#meter, true);
      this.#opened.set(entry.name, (open = ResultArrays.open(file, entry)));
      open.catch(() => this.#opened.delete(entry.name));
    }
    return open;
  }
}

/** Probabilities of the classes; one logit is that of the second of two. */
export function chances(logits: readonly number[]): number[] {
  if (logits.length === 1) {
    const second = 1 / (1 + Math.exp(-logits[0]!));
    return [1 - second, second];
  }
  const top = Math.max(...logits);
  const powers = logits.map((v) => Math.exp(v - top));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((p) => p / total);
}

export class ResultArrays {
  readonly attributes: Record<string, unknown>;
  readonly #zip: ZipFiles;
  readonly #name: string;
  readonly #arrays = new Map<string, Promise<Arrays>>();

  private constructor(zip: ZipFiles, attributes: Record<string, unknown>, name: string) {
    this.#zip = zip;
    this.#name = name;
    this.attributes = attributes;
  }

  static async open(file: Files, entry: ResultEntry): Promise<ResultArrays> {
    const whole = entry.bytes <= WHOLE ? await file.whole("") : undefined;
    const zip = await ZipFiles.open(whole ? new OneFile(entry.name, whole) : file);
    const root = await json<{ attributes?: { format?: string; format_version?: number; attributes?: Record<string, unknown> } }>(zip, "zarr.json");
    if (root?.attributes?.format !== "stratascope-result") throw new Fault("foreign", `${entry.name} is no result of Stratascope.`, "Take it out of the folder of results.");
    if (root.attributes.format_version !== 1) throw new Fault("version", `${entry.name} is of another version of the format.`, "Make it again.");
    return new ResultArrays(zip, root.attributes.attributes ?? {}, entry.name);
  }

  /** All of an array, or what it holds at a place along its last axis. */
  async read<V extends BigInt64Array | Float32Array | Float64Array | Uint8Array | string[]>(path: string, last?: number): Promise<{ data: V; shape: number[] }> {
    let opening = this.#arrays.get(path);
    if (!opening) this.#arrays.set(path, (opening = this.#opening(path)));
    const arrays = await opening;
    const shape = arrays.shape(path);
    const axis = shape.length - 1;
    if (last === undefined) return arrays.read<V>(path, shape.map(() => null));
    // the whole piece: neighbours of the example are looked at next
    const piece = arrays.piece(path, axis);
    const first = Math.floor(last / piece) * piece;
    const read = await arrays.read<V>(path, [...shape.slice(1).map(() => null), [first, Math.min(first + piece, shape[axis]!)]]);
    const held = read.shape[axis]!;
    return { data: (read.data as Float64Array).filter((_, at) => at % held === last - first) as V, shape: shape.slice(0, -1) };
  }

  async #opening(path: string): Promise<Arrays> {
    const meta = await json<ArrayMeta>(this.#zip, `${path}/zarr.json`);
    if (!meta) throw new Fault("missing", `${this.#name} lacks ${path}.`, "Make the result again.");
    // of each piece that is read at once
    const bytes = this.#zip.size([path, "c", ...meta.shape.map(() => 0)].join("/")) ?? 0;
    if (bytes > MOST) throw new Fault("too-large", `${path} of ${this.#name} is one piece of ${Math.round(bytes / 2 ** 20)} MB, as earlier versions wrote it: too much for a page.`, anew(this.#name));
    return new Arrays(this.#zip, { [path]: meta });
  }
}

/** How a file of an earlier version is written as files are now: the numbers stay, but a page can read some of them. */
function anew(name: string): string {
  const file = /^[\w][\w.-]*$/.test(name) ? name : "FILE";
  return `Write the same numbers in pieces: in its folder run \`python -c "from stratascope.results import load_result as load, save_result as save; save('${file}', load('${file}'))"\` and reload.`;
}

class OneFile implements Files {
  readonly name: string;
  readonly #bytes: Uint8Array;

  constructor(name: string, bytes: Uint8Array) {
    this.name = name;
    this.#bytes = bytes;
  }

  whole = async () => this.#bytes;
  part = async (_: string, offset: number, length: number) => this.#bytes.slice(offset, offset + length);
  tail = async (_: string, length: number) => this.#bytes.slice(Math.max(0, this.#bytes.length - length));
}

async function json<T>(zip: ZipFiles, key: string): Promise<T | undefined> {
  const bytes = await zip.whole(key);
  return bytes && (JSON.parse(new TextDecoder().decode(bytes)) as T);
}
