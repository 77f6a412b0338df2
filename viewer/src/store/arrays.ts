/** Arrays of a Zarr group by name, decoded, with what was read last kept. */

import * as zarr from "zarrita";
import { registerCodecs } from "../bytes/codecs.ts";
import { fromHalf } from "../bytes/half.ts";
import type { Files } from "../bytes/files.ts";
import { strictStore } from "../bytes/strict.ts";
import { Fault, faultOf, isAbort } from "../fault.ts";
import type { ArrayMeta } from "./metadata.ts";
import { RecentlyUsed } from "./recently-used.ts";

type Values = Float32Array | Float64Array | Int32Array | Uint8Array | BigInt64Array | Int8Array | Int16Array | Uint16Array | string[];
export interface Read<V extends Values = Values> { data: V; shape: number[] }
/** Of each axis an index, a half-open range, or all. */
export type Select = (number | readonly [number, number] | null)[];

/** How much of what was read is kept. */
const KEPT_BYTES = 192 << 20;
registerCodecs();

export class Arrays {
  readonly meta: Readonly<Record<string, ArrayMeta>>;
  readonly #root: zarr.Location<zarr.Readable>;
  readonly #open = new Map<string, Promise<zarr.Array<zarr.DataType, zarr.Readable>>>();
  readonly #kept: RecentlyUsed<Promise<Read>>;
  readonly #label: (name: string, select: Select) => string;

  constructor(files: Files, meta: Record<string, ArrayMeta>, label?: (name: string, select: Select) => string, kept = KEPT_BYTES) {
    this.meta = meta;
    this.#kept = new RecentlyUsed(kept);
    this.#label = label ?? ((name) => name);
    const inner = strictStore(files, (key, chunks) => requiredChunks(meta, key, chunks));
    const encoder = new TextEncoder();
    this.#root = zarr.root({
      // metadata come from the root's, told to zarrita in types that every browser has
      get: async (path: string, options?: { signal?: AbortSignal }) => {
        if (!path.endsWith("/zarr.json")) return inner.get(path as zarr.AbsolutePath, options as never);
        const found = meta[path.slice(1, -"/zarr.json".length)];
        return found && encoder.encode(JSON.stringify(plainTypes(found)));
      },
      getRange: inner.getRange!.bind(inner),
    } as zarr.Readable);
  }

  has(name: string): boolean {
    return name in this.meta;
  }

  shape(name: string): number[] {
    return this.meta[name]?.shape ?? [];
  }

  /** Length of the pieces along an axis that are compressed together. */
  piece(name: string, axis: number): number {
    return chunkShape(this.meta[name]!)[axis]!;
  }

  /** Values of an array; half floats come as single. Throws a Fault that names array and place. */
  read<V extends Values>(name: string, select: Select, signal?: AbortSignal): Promise<Read<V>> {
    const key = `${name}:${JSON.stringify(select)}`;
    const kept = this.#kept.get(key);
    if (kept) return kept as Promise<Read<V>>;
    const reading = this.#read(name, select, signal);
    this.#kept.set(key, reading, 1024);
    reading.then(
      ({ data }) => { if (this.#kept.get(key) === reading) this.#kept.set(key, reading, weight(data)); },
      () => { if (this.#kept.get(key) === reading) this.#kept.delete(key); },
    );
    return reading as Promise<Read<V>>;
  }

  async #read(name: string, select: Select, signal?: AbortSignal): Promise<Read> {
    const meta = this.meta[name];
    if (!meta) throw new Fault("absent-array", `The store does not hold ${name}.`, "");
    if (meta.shape.includes(0)) return { data: new Float32Array(), shape: meta.shape };
    try {
      let array = this.#open.get(name);
      if (!array) this.#open.set(name, (array = zarr.open.v3(this.#root.resolve(name), { kind: "array" })));
      const selection = select.map((s) => (Array.isArray(s) ? zarr.slice(s[0], s[1]) : s)) as (number | zarr.Slice | null)[];
      const found = await zarr.get(await array, selection as never, signal ? { signal } : {});
      if (typeof found !== "object" || found === null || !("data" in found)) return { data: oneValue(found), shape: [] };
      const { data, shape } = found as { data: Values; shape: number[] };
      return { data: meta.data_type === "float16" ? fromHalf(data as Uint16Array) : data, shape };
    } catch (error) {
      if (isAbort(error)) throw error;
      const fault = faultOf(error);
      const place = this.#label(name, select);
      throw fault.message.includes(name) || fault.kind === "unreachable" ? fault
        : new Fault(fault.kind, `${place}: ${fault.message}`, fault.todo, { cause: fault });
    }
  }
}

function oneValue(value: unknown): Values {
  return typeof value === "string" ? [value] : Float64Array.of(Number(value));
}

const weight = (data: Values) => (Array.isArray(data) ? 64 * data.length : data.byteLength);

/** The type under which zarrita reads the same bytes: half floats and truth values as unsigned numbers. */
function plainTypes(meta: ArrayMeta): unknown {
  const type = { float16: "uint16", bool: "uint8" }[meta.data_type];
  return type ? { ...meta, data_type: type, fill_value: 0 } : meta;
}

function chunkShape(meta: ArrayMeta): number[] {
  const shard = meta.codecs.find((codec) => codec.name === "sharding_indexed");
  return shard?.configuration?.chunk_shape ?? meta.chunk_grid.configuration.chunk_shape;
}

/** Which chunks of a shard must be there: those that begin within the array. */
function requiredChunks(metas: Record<string, ArrayMeta>, key: string, chunks: number): (chunk: number) => boolean {
  const at = key.lastIndexOf("/c/");
  const meta = metas[key.slice(0, at)];
  const shard = key.slice(at + 3).split("/").map(Number);
  if (!meta) return () => true;
  const whole = meta.chunk_grid.configuration.chunk_shape;
  const piece = chunkShape(meta);
  const counts = whole.map((n, axis) => n / piece[axis]!);
  if (counts.reduce((a, b) => a * b, 1) !== chunks) return () => true;
  return (chunk) => {
    let left = chunk;
    for (let axis = counts.length - 1; axis >= 0; axis--) {
      const index = left % counts[axis]!;
      left = Math.floor(left / counts[axis]!);
      if (shard[axis]! * whole[axis]! + index * piece[axis]! >= meta.shape[axis]!) return false;
    }
    return true;
  };
}
