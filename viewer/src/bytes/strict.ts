/** A store's files as zarrita reads them, where nothing that is missing reads as fill. */

import type { AbsolutePath, AsyncReadable, RangeQuery } from "@zarrita/storage";
import { withRangeCoalescing } from "zarrita";
import { Fault } from "../fault.ts";
import type { Files } from "./files.ts";

const ABSENT = 0xffffffffffffffffn;
const MISSING = "The store was not copied whole. Fetch it again, or run `stratascope verify`.";

/** How many chunks of a shard must be there: those that hold an example. */
type Required = (key: string, chunks: number) => (chunk: number) => boolean;

export function strictStore(files: Files, required: Required): AsyncReadable {
  const store: Ranged = {
    async get(path: AbsolutePath, options?: { signal?: AbortSignal }) {
      const key = path.slice(1);
      const bytes = await naming(key, files.whole(key, options?.signal));
      if (holdsValues(key) && !bytes?.length) throw missing(key, bytes ? "is empty" : "is missing");
      return bytes;
    },
    async getRange(path: AbsolutePath, range: RangeQuery, options?: { signal?: AbortSignal }) {
      const key = path.slice(1);
      const bytes = await naming(key, "suffixLength" in range
        ? files.tail(key, range.suffixLength, options?.signal)
        : files.part(key, range.offset, range.length, options?.signal));
      if (!bytes?.length) throw missing(key, bytes ? "is empty" : "is missing");
      if ("suffixLength" in range) checkIndex(key, bytes, range.suffixLength, required);
      return bytes;
    },
  };
  return withRangeCoalescing(store, { coalesceSize: 4096 }) as unknown as AsyncReadable;
}

type Ranged = AsyncReadable & { getRange: NonNullable<AsyncReadable["getRange"]> };

/** A shard's index must be whole and name every chunk that holds an example. Its checksum is checked by the codec. */
function checkIndex(key: string, bytes: Uint8Array, length: number, required: Required): void {
  if (bytes.length !== length) throw new Fault("short", `${key} is shorter than its index.`, MISSING);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const chunks = (length - 4) / 16;
  const must = required(key, chunks);
  for (let chunk = 0; chunk < chunks; chunk++) {
    if (view.getBigUint64(16 * chunk, true) === ABSENT && must(chunk)) throw missing(key, `lacks its chunk ${chunk}`);
  }
}

const holdsValues = (key: string) => key.includes("/c/") || key.endsWith("/c");
const missing = (key: string, how: string) => new Fault("missing", `${key} ${how}, though its block is marked as written.`, MISSING);

async function naming<T>(key: string, reading: Promise<T>): Promise<T> {
  try {
    return await reading;
  } catch (error) {
    if (error instanceof Fault && error.kind === "short" && !error.message.includes(key)) {
      throw new Fault("short", `${key}: ${error.message}`, error.todo, { cause: error });
    }
    throw error;
  }
}
