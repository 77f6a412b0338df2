/** Members of a zip that holds them as they are (no compression), read in place by ranges. */

import { Fault } from "../fault.ts";
import type { Files } from "./files.ts";

interface Member {
  header: number;
  size: number;
  /** Where its bytes begin, once its local header has been read. */
  data?: number;
}

const END = 0x06054b50;
const END64 = 0x06064b50;
const LOCATOR64 = 0x07064b50;
const CENTRAL = 0x02014b50;
const LOCAL = 0x04034b50;
/** End record, its longest comment, and the locator of the 64-bit end record. */
const TAIL = 22 + 65535 + 20;
const FIRST_TAIL = 4096;

export class ZipFiles implements Files {
  readonly name: string;
  readonly #file: Files;
  readonly #members: Map<string, Member>;

  private constructor(file: Files, members: Map<string, Member>) {
    this.#file = file;
    this.#members = members;
    this.name = file.name;
  }

  static async open(file: Files, signal?: AbortSignal): Promise<ZipFiles> {
    for (const reach of [FIRST_TAIL, TAIL]) {
      const tail = await file.tail("", reach, signal);
      if (!tail) throw new Fault("not-found", `There is no file ${file.name} at this address.`, "Check the address.");
      const end = lastIndex(tail, END);
      if (end >= 0) return new ZipFiles(file, await directory(file, tail, end, signal));
      if (tail.length < reach) break;
    }
    throw new Fault("zip", `${file.name} is no zip, or was not copied whole.`, "Fetch it again.");
  }

  keys(): IterableIterator<string> {
    return this.#members.keys();
  }

  size(key: string): number | undefined {
    return this.#members.get(key)?.size;
  }

  async whole(key: string, signal?: AbortSignal): Promise<Uint8Array | undefined> {
    const member = this.#members.get(key);
    if (!member) return undefined;
    if (!member.size) return new Uint8Array();
    if (member.data === undefined) {
      // the local header repeats the name; its extra field is rarely longer than a few bytes: one request instead of two
      const guess = 30 + new TextEncoder().encode(key).length + 64;
      const bytes = await this.#file.part("", member.header, guess + member.size, signal).catch(() => undefined);
      if (bytes) {
        member.data = member.header + localLength(bytes, key);
        const start = member.data - member.header;
        if (start + member.size <= bytes.length) return bytes.slice(start, start + member.size);
      }
    }
    return this.part(key, 0, member.size, signal);
  }

  async part(key: string, offset: number, length: number, signal?: AbortSignal): Promise<Uint8Array | undefined> {
    const member = this.#members.get(key);
    if (!member) return undefined;
    if (offset + length > member.size) throw new Fault("short", `${key} is shorter than its store says.`, "Fetch the zip again.");
    if (member.data === undefined) {
      const header = await this.#file.part("", member.header, 30, signal);
      member.data = member.header + localLength(header!, key);
    }
    return this.#file.part("", member.data + offset, length, signal);
  }

  async tail(key: string, length: number, signal?: AbortSignal): Promise<Uint8Array | undefined> {
    const member = this.#members.get(key);
    return member && this.part(key, Math.max(0, member.size - length), Math.min(length, member.size), signal);
  }
}

async function directory(file: Files, tail: Uint8Array, end: number, signal?: AbortSignal): Promise<Map<string, Member>> {
  const view = dataView(tail);
  let count = view.getUint16(end + 10, true);
  let size = view.getUint32(end + 12, true);
  let offset = view.getUint32(end + 16, true);
  if (count === 0xffff || size === 0xffffffff || offset === 0xffffffff) {
    if (end < 20 || view.getUint32(end - 20, true) !== LOCATOR64) throw broken(file.name);
    const record = await file.part("", Number(view.getBigUint64(end - 12, true)), 56, signal);
    const wide = dataView(record!);
    if (wide.getUint32(0, true) !== END64) throw broken(file.name);
    count = Number(wide.getBigUint64(32, true));
    size = Number(wide.getBigUint64(40, true));
    offset = Number(wide.getBigUint64(48, true));
  }
  const members = new Map<string, Member>();
  if (!count) return members;
  const inTail = end >= size && size < tail.length;
  const bytes = inTail ? tail.subarray(end - size, end) : (await file.part("", offset, size, signal))!;
  return listed(bytes, count, file.name);
}

function listed(bytes: Uint8Array, count: number, name: string): Map<string, Member> {
  const members = new Map<string, Member>();
  const view = dataView(bytes);
  const decoder = new TextDecoder();
  let at = 0;
  for (let k = 0; k < count; k++) {
    if (at + 46 > bytes.length || view.getUint32(at, true) !== CENTRAL) throw broken(name);
    const [flags, method] = [view.getUint16(at + 8, true), view.getUint16(at + 10, true)];
    const [nameLength, extraLength, commentLength] = [28, 30, 32].map((o) => view.getUint16(at + o, true)) as [number, number, number];
    let size = view.getUint32(at + 24, true);
    let header = view.getUint32(at + 42, true);
    const key = decoder.decode(bytes.subarray(at + 46, at + 46 + nameLength));
    for (let e = at + 46 + nameLength, stop = e + extraLength; e + 4 <= stop; e += 4 + view.getUint16(e + 2, true)) {
      if (view.getUint16(e, true) !== 1) continue;
      let field = e + 4;
      if (size === 0xffffffff) { size = Number(view.getBigUint64(field, true)); field += 8; }
      if (view.getUint32(at + 20, true) === 0xffffffff) field += 8;
      if (header === 0xffffffff) header = Number(view.getBigUint64(field, true));
    }
    if (!key.endsWith("/")) {
      if (method !== 0 || flags & 1) {
        throw new Fault("zip", `${name} is compressed or encrypted, so that parts of it cannot be read.`, "Make it with `stratascope copy STORE NEW.zip`, or unpack it.");
      }
      members.set(key, { header, size });
    }
    at += 46 + nameLength + extraLength + commentLength;
  }
  return members;
}

function localLength(bytes: Uint8Array, key: string): number {
  const view = dataView(bytes);
  if (view.getUint32(0, true) !== LOCAL) throw broken(key);
  return 30 + view.getUint16(26, true) + view.getUint16(28, true);
}

function lastIndex(bytes: Uint8Array, magic: number): number {
  const view = dataView(bytes);
  for (let at = bytes.length - 22; at >= 0; at--) if (view.getUint32(at, true) === magic) return at;
  return -1;
}

const dataView = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
const broken = (name: string) => new Fault("zip", `The directory of ${name} is damaged.`, "Fetch the zip again.");
