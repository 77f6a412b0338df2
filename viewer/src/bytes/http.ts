/** Files behind an address. A part is a part only if the host says so (206). */

import { Fault } from "../fault.ts";
import type { Files, Meter } from "./files.ts";

const TRIES = 3;
const HUB = /^hf:\/\/((?:datasets\/)?[^/@]+\/[^/@]+)(?:@([^/]+))?\/(.+)$/;

/** The web address of a folder on the Hugging Face Hub; any other address as it is. */
export function webAddress(address: string): string {
  const [, repository, revision = "main", path] = HUB.exec(address) ?? [];
  return path === undefined ? address : `https://huggingface.co/${repository}/resolve/${encodeURIComponent(decodeURIComponentSafely(revision))}/${path}`;
}

export class HttpFiles implements Files {
  readonly name: string;
  readonly #base: URL;
  readonly #meter: Meter;
  readonly #sameOrigin: boolean;
  readonly #single: boolean;

  /** `single`: the address is a file itself, and keys are of no meaning. */
  constructor(address: string, page: string, meter: Meter, single = false) {
    let base: URL;
    try {
      base = new URL(webAddress(address), page);
    } catch {
      throw new Fault("address", `“${address}” is no address.`, "Give one that begins with https:// or http://.");
    }
    if (base.protocol !== "http:" && base.protocol !== "https:") {
      throw new Fault("address", `This page opens http and https addresses, not “${base.protocol}”.`,
        base.protocol === "file:" ? "Run `stratascope view STORE`, or choose the folder below."
        : "Give the bucket's https address, or copy the store to this computer with `stratascope copy`.");
    }
    base.hash = "";
    if (!single && !base.pathname.endsWith("/")) base.pathname += "/";
    this.#base = base;
    this.#meter = meter;
    this.#single = single;
    this.#sameOrigin = base.origin === new URL(page).origin;
    this.name = decodeURIComponentSafely(base.pathname.split("/").filter(Boolean).at(-1) ?? base.host);
  }

  async whole(key: string, signal?: AbortSignal): Promise<Uint8Array | undefined> {
    const answer = await this.#ask(key, {}, signal);
    // 204: `stratascope view` says so of a block that is not written, which is no error
    if (answer.status === 404 || answer.status === 204) return undefined;
    if (answer.status !== 200) throw refused(answer.status, key);
    return this.#body(answer, key);
  }

  async part(key: string, offset: number, length: number, signal?: AbortSignal): Promise<Uint8Array | undefined> {
    return this.#partial(key, `bytes=${offset}-${offset + length - 1}`, length, signal);
  }

  async tail(key: string, length: number, signal?: AbortSignal): Promise<Uint8Array | undefined> {
    // a range from the end needs a question of its own (preflight) at a foreign host, for every file; asking for the size needs none
    if (this.#sameOrigin) return this.#partial(key, `bytes=-${length}`, length, signal);
    const size = await this.size(key, signal);
    if (size === undefined) return undefined;
    const start = Math.max(0, size - length);
    return this.#partial(key, `bytes=${start}-${size - 1}`, size - start, signal);
  }

  async size(key: string, signal?: AbortSignal): Promise<number | undefined> {
    const head = await this.#ask(key, {}, signal, "HEAD");
    this.#meter.add(0);
    if (head.status === 404) return undefined;
    const size = Number(head.headers.get("content-length"));
    if (head.status !== 200 || !size) throw refused(head.status, key);
    return size;
  }

  async #partial(key: string, range: string, length: number, signal?: AbortSignal): Promise<Uint8Array | undefined> {
    const answer = await this.#ask(key, { Range: range }, signal);
    if (answer.status === 404) return undefined;
    if (answer.status === 200) {
      await answer.body?.cancel();
      throw new Fault("no-range", "This host ignores byte ranges: asked for a part of a file, it sends all of it.",
        "Use a host that answers 206 Partial Content (nginx, Caddy, S3, GCS; not `python -m http.server`), or run `stratascope view`.");
    }
    if (answer.status === 416) throw new Fault("short", `${key} is shorter than its store says.`, "It was not copied whole. Fetch the store again.");
    if (answer.status !== 206) throw refused(answer.status, key);
    const bytes = await this.#body(answer, key);
    if (bytes.length !== length && !range.startsWith("bytes=-")) {
      throw new Fault("short", `Asked for ${length} bytes of ${key}, the host sent ${bytes.length}.`, "The file was not copied whole. Fetch the store again.");
    }
    return bytes;
  }

  async #body(answer: Response, key: string): Promise<Uint8Array> {
    try {
      const bytes = new Uint8Array(await answer.arrayBuffer());
      this.#meter.add(bytes.length);
      return bytes;
    } catch (cause) {
      if (cause instanceof DOMException && cause.name === "AbortError") throw cause;
      throw new Fault("unreachable", `The connection broke off while reading ${key}.`, "Try again.", { cause });
    }
  }

  async #ask(key: string, headers: Record<string, string>, signal?: AbortSignal, method = "GET"): Promise<Response> {
    let last: Fault | undefined;
    for (let attempt = 0; attempt < TRIES; attempt++) {
      if (attempt) await new Promise((done) => setTimeout(done, 200 * 2 ** attempt));
      signal?.throwIfAborted();
      try {
        const answer = await fetch(this.#address(key), {
          method, headers, signal: signal ?? null, credentials: "omit", referrerPolicy: "no-referrer", cache: "default",
        });
        if (answer.status !== 429 && answer.status < 500) return answer;
        last = new Fault("refused", `The host answered ${answer.status} for ${key || this.name}.`, "It may be busy. Try again in a moment.");
      } catch (cause) {
        if (cause instanceof DOMException && cause.name === "AbortError") throw cause;
        last = this.#unreachable(cause);
      }
    }
    throw last!;
  }

  #unreachable(cause: unknown): Fault {
    return this.#sameOrigin
      ? new Fault("unreachable", "The server of this page does not answer.", "If you started it with `stratascope view`, start it again: the address changes.", { cause })
      : new Fault("unreachable", `${this.#base.origin} cannot be read from this page.`,
        "Either it is down, or it does not let other pages read it (CORS). Its owner can allow GET and HEAD with the header Range "
        + `from ${globalThis.location?.origin ?? "this page"}; see docs/viewer.md for the setting. Or put this page beside the store.`, { cause });
  }

  #address(key: string): URL {
    if (this.#single) return this.#base;
    const url = new URL(key.split("/").map(encodeURIComponent).join("/"), this.#base);
    url.search = this.#base.search;
    return url;
  }
}

function refused(status: number, key: string): Fault {
  return new Fault("refused", `The host answered ${status} for ${key || "the file"}.`,
    status === 401 || status === 403 ? "It does not let you read this, or there is nothing there (S3 says 403 for both). Check the address and its permissions." : "Check the address.");
}

function decodeURIComponentSafely(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
