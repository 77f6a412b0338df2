/** Where a store is, in a form that the page can hand to its worker. */

import { ChosenFiles, type Files, type Meter } from "./files.ts";
import { HttpFiles } from "./http.ts";
import { ZipFiles } from "./zip.ts";

export type Source =
  | { kind: "address"; address: string; page: string }
  | { kind: "chosen"; files: (readonly [path: string, file: File])[] };

export async function openFiles(source: Source, meter: Meter, signal?: AbortSignal): Promise<Files> {
  if (source.kind === "chosen") return new ChosenFiles(source.files, meter);
  const zipped = /\.zip(?:[?#]|$)/i.test(source.address);
  const files = new HttpFiles(source.address, source.page, meter, zipped);
  return zipped ? ZipFiles.open(files, signal) : files;
}
