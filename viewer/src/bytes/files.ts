/** A tree of files that can be read in part: what a store lies on. */

export interface Files {
  /** What to call it in messages. */
  readonly name: string;
  /** A whole file; undefined where there is none. */
  whole(key: string, signal?: AbortSignal): Promise<Uint8Array | undefined>;
  part(key: string, offset: number, length: number, signal?: AbortSignal): Promise<Uint8Array | undefined>;
  /** The last bytes of a file. */
  tail(key: string, length: number, signal?: AbortSignal): Promise<Uint8Array | undefined>;
}

/** What has been read so far, for the reader of the page to see. */
export class Meter extends EventTarget {
  bytes = 0;
  requests = 0;

  add(bytes: number, requests = 1): void {
    this.bytes += bytes;
    this.requests += requests;
    this.dispatchEvent(new Event("change"));
  }
}

/** A folder that the reader of the page chose on this computer; nothing leaves it. */
export class ChosenFiles implements Files {
  readonly name: string;
  readonly #files = new Map<string, File>();
  readonly #meter: Meter;

  /** Paths begin with the folder's own name. */
  constructor(files: Iterable<readonly [path: string, file: File]>, meter: Meter) {
    let top = "";
    for (const [path, file] of files) {
      const [first, ...rest] = path.split("/");
      top ||= first ?? "";
      this.#files.set(rest.join("/"), file);
    }
    this.name = top || "folder";
    this.#meter = meter;
  }

  async whole(key: string): Promise<Uint8Array | undefined> {
    return this.part(key, 0, Infinity);
  }

  async part(key: string, offset: number, length: number): Promise<Uint8Array | undefined> {
    const file = this.#files.get(key);
    if (!file) return undefined;
    const bytes = new Uint8Array(await file.slice(offset, Math.min(offset + length, file.size)).arrayBuffer());
    this.#meter.add(bytes.length);
    return bytes;
  }

  async tail(key: string, length: number): Promise<Uint8Array | undefined> {
    const file = this.#files.get(key);
    return file && this.part(key, Math.max(0, file.size - length), length);
  }
}
