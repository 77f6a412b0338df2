/** The codecs of the format, and no others: zstd, a CRC-32C that is checked, text of any length. */

import { decompress } from "fzstd";
import { registry } from "zarrita";
import { Fault } from "../fault.ts";
import { crc32c } from "./crc32c.ts";

const DAMAGED = "Fetch the store again, or run `stratascope verify` on it to see how much is damaged.";

function readOnly(): never {
  throw new Fault("unknown", "This page only reads.");
}

const checkedCrc = {
  fromConfig: () => ({
    kind: "bytes_to_bytes" as const,
    encode: readOnly,
    computeEncodedSize: (n: number) => n + 4,
    decode(bytes: Uint8Array) {
      const end = bytes.length - 4;
      if (end < 0 || crc32c(bytes.subarray(0, end)) !== new DataView(bytes.buffer, bytes.byteOffset + end, 4).getUint32(0, true)) {
        throw new Fault("damaged", "The stored bytes do not fit their checksum.", DAMAGED);
      }
      return bytes.subarray(0, end);
    },
  }),
};

const zstd = {
  fromConfig: () => ({
    kind: "bytes_to_bytes" as const,
    encode: readOnly,
    decode(bytes: Uint8Array) {
      let out: Uint8Array;
      try {
        out = decompress(bytes);
      } catch (cause) {
        throw new Fault("damaged", "The stored bytes cannot be decompressed.", DAMAGED, { cause });
      }
      // typed arrays are laid over the whole buffer next
      return out.byteLength === out.buffer.byteLength ? out : out.slice();
    },
  }),
};

const text = {
  fromConfig: (_: unknown, meta: { shape: number[] }) => ({
    kind: "array_to_bytes" as const,
    encode: readOnly,
    decode(bytes: Uint8Array) {
      return { data: decodeTexts(bytes), shape: meta.shape, stride: [1] };
    },
  }),
};

/** Texts as vlen-utf8 holds them: how many, then for each its length in bytes and its bytes. */
export function decodeTexts(bytes: Uint8Array): string[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const decoder = new TextDecoder();
  // one character a byte: texts in ASCII, which most are, are cut out of it
  const plain = new TextDecoder("latin1").decode(bytes);
  const out: string[] = [];
  let at = 4;
  try {
    for (let left = view.getUint32(0, true); left > 0; left--) {
      const length = view.getUint32(at, true);
      if (at + 4 + length > bytes.length) throw new RangeError("text beyond the end");
      const stop = at + 4 + length;
      let end = at + 4;
      while (end < stop && bytes[end]! < 0x80) end++;
      out.push(end === stop ? plain.slice(at + 4, stop) : decoder.decode(bytes.subarray(at + 4, stop)));
      at += 4 + length;
    }
  } catch (cause) {
    throw new Fault("damaged", "The stored text is cut off.", DAMAGED, { cause });
  }
  return out;
}

/** Must run once before anything is read. */
export function registerCodecs(): void {
  for (const name of [...registry.keys()]) if (name !== "bytes") registry.delete(name);
  registry.set("crc32c", () => checkedCrc as never);
  registry.set("zstd", () => zstd as never);
  registry.set("vlen-utf8", () => text as never);
}
