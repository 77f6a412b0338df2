/** What leaves the page: its link, its picture, its numbers. */

import { departure, modelName } from "../store/provenance.ts";
import type { Store } from "../store/store.ts";
import { numbersCsv, picturePng, save, type Named } from "./download.ts";
import { setText } from "./dom.ts";
import type { View } from "./view.ts";

const SAID_MS = 1200;

interface ExportHost {
  store: Store;
  view: () => View;
  /** The panes shown, with the names of their examples. */
  named: () => Named[];
  say: (text: string) => void;
}

export class Exports {
  readonly #host: ExportHost;

  constructor(host: ExportHost) {
    this.#host = host;
  }

  /** The address as it is; `button` says that it was copied. */
  async link(button: Element | null): Promise<void> {
    const { say } = this.#host;
    try {
      await navigator.clipboard.writeText(location.href);
    } catch {
      // nothing is in the clipboard: no word of it on the button
      return say("The browser does not let this page copy: copy the address above.");
    }
    say("Link copied.");
    if (!button) return;
    setText(button, "Copied");
    setTimeout(() => setText(button, "Copy link"), SAID_MS);
  }

  async png(): Promise<void> {
    const { store, view, named } = this.#host;
    if (store.imported) return this.#nothing();
    const foot = [store.files.name, modelName(store.provenance), departure(store.provenance), "Stratascope"].filter(Boolean).join(" · ");
    save(await picturePng(named(), view(), foot), `${this.#fileName}.png`);
  }

  csv(): void {
    if (this.#host.store.imported) return this.#nothing();
    save(new Blob([numbersCsv(this.#host.named(), this.#host.store.layers)], { type: "text/csv" }), `${this.#fileName}.csv`);
  }

  #nothing(): void {
    this.#host.say("Imported activations have no picture and no weights of tokens to save.");
  }

  get #fileName(): string {
    const { a, b } = this.#host.view();
    return `${this.#host.store.files.name.replace(/[^\w.-]+/g, "_")}-${a.example}-${a.measure}-layer${a.layer}${b ? "-compared" : ""}`;
  }
}
