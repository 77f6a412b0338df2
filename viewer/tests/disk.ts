/** Files of this machine, as a store lies on them. */

import { readFileSync } from "node:fs";
import type { Files } from "../src/bytes/files.ts";

export class DiskFiles implements Files {
  readonly name: string;

  /** A folder relative to the built tests. */
  constructor(folder: string) {
    this.name = folder;
  }

  async whole(key: string): Promise<Uint8Array | undefined> {
    try {
      return new Uint8Array(readFileSync(new URL(`${this.name}/${key}`, import.meta.url)));
    } catch {
      return undefined;
    }
  }

  async part(key: string, offset: number, length: number): Promise<Uint8Array | undefined> {
    return (await this.whole(key))?.slice(offset, offset + length);
  }

  async tail(key: string, length: number): Promise<Uint8Array | undefined> {
    const bytes = await this.whole(key);
    return bytes?.slice(Math.max(0, bytes.length - length));
  }
}
