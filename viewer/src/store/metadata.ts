/** The root of a store: what it holds, in one request, refused by name where it is of another kind. */

import { Fault } from "../fault.ts";
import type { Files } from "../bytes/files.ts";

export interface Layout {
  examples: number;
  layers: number;
  heads: number;
  tokens: number;
  spans: string[];
  choices: string[];
  record: string[];
  fusion: string;
  block: number;
  thumbnail: [number, number] | null;
  computed_dtype: string;
  kept_layers: number[] | null;
  /** Of the array `knockout`: names along its axes. */
  knockout_modes?: string[];
  knockout_windows?: string[];
  knockout_targets?: string[];
  /** Of the maps of the vision tower. */
  vision_class_tokens?: number;
}

export interface ArrayMeta {
  shape: number[];
  data_type: string;
  dimension_names: string[];
  chunk_grid: { configuration: { chunk_shape: number[] } };
  codecs: { name: string; configuration?: { chunk_shape?: number[] } }[];
  attributes?: Record<string, unknown>;
}

interface Column { name: string; array: string; missing: boolean }

export interface RootMeta {
  attributes: { format: string; format_version: number; layout: Layout; provenance: Record<string, unknown> };
  /** Path -> metadata as written. */
  arrays: Record<string, ArrayMeta>;
  /** Columns of the group `examples`. */
  columns: Column[];
}

const FORMAT = "stratascope-activations";
const VERSION = 1;
const KNOWN_CODECS = new Set(["bytes", "zstd", "crc32c", "vlen-utf8", "blosc", "sharding_indexed"]);

export async function readRoot(files: Files, signal?: AbortSignal): Promise<RootMeta> {
  const bytes = await files.whole("zarr.json", signal);
  if (!bytes) throw new Fault("not-found", "There is no store here: no zarr.json.", "Give the folder that holds zarr.json, such as demo/original.zarr.");
  const root = parsed(bytes);
  if (root.zarr_format !== 3 || root.node_type !== "group") {
    throw new Fault("foreign", "This is no Zarr v3 group.", "Give a store that `stratascope extract` or `stratascope demo` made.");
  }
  const attributes = root.attributes as RootMeta["attributes"];
  if (attributes?.format !== FORMAT) {
    const found = typeof attributes?.format === "string" ? `format “${attributes.format}”` : "no format";
    throw new Fault("foreign", `This Zarr group is no activation store: it names ${found}.`, `Expected “${FORMAT}”. Results are opened beside a store, not instead of one.`);
  }
  if (attributes.format_version !== VERSION) {
    throw new Fault("version", `The store is of format version ${String(attributes.format_version)}; this page reads version ${VERSION}.`,
      "Open it with `stratascope view` of the version that made it, or upgrade: `pip install -U stratascope`.");
  }
  const nodes = (root.consolidated_metadata as { metadata?: Record<string, { node_type: string } & ArrayMeta> } | null)?.metadata;
  if (!nodes || !Array.isArray(attributes.layout?.spans)) {
    throw new Fault("metadata", "The store's metadata are not whole: they are not consolidated or lack a layout.", "Fetch the store again.");
  }
  const arrays: Record<string, ArrayMeta> = {};
  for (const [path, node] of Object.entries(nodes)) {
    if (node.node_type !== "array") continue;
    arrays[path] = node;
    const odd = node.codecs.find((codec) => !KNOWN_CODECS.has(codec.name));
    if (odd) throw new Fault("metadata", `${path} is encoded with “${odd.name}”, which format version ${VERSION} does not have.`, "Fetch the store again from its source.");
    // a codec beside the shards would be read wrongly without a word
    if (node.codecs.length > 1 && node.codecs.some((codec) => codec.name === "sharding_indexed")) {
      throw new Fault("metadata", `${path} has a codec beside its shards, which format version ${VERSION} does not have.`, "Fetch the store again from its source.");
    }
  }
  const table = nodes["examples"] as unknown as { attributes?: { columns?: Column[] } } | undefined;
  return { attributes, arrays, columns: table?.attributes?.columns ?? [] };
}

function parsed(bytes: Uint8Array): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(new TextDecoder().decode(bytes));
    if (value && typeof value === "object") return value as Record<string, unknown>;
  } catch {
    // said below
  }
  throw new Fault("foreign", "zarr.json is not JSON.", "The address may be that of a web page instead of a store.");
}
