/** The page's side of the list of examples. */

import type { Source } from "../bytes/source.ts";
import type { RootMeta } from "../store/metadata.ts";
import type { Unwritten } from "../store/store.ts";
import type { Answer, Question } from "./protocol.ts";

interface Policy { createScriptURL(url: string): unknown }
interface Factory { createPolicy(name: string, rules: { createScriptURL: (url: string) => string }): Policy }

/** The one script that this page may start besides its own. */
const WORKER = "worker.js";
const factory = (globalThis as { trustedTypes?: Factory }).trustedTypes;
const policy = factory?.createPolicy("stratascope", {
  createScriptURL(url) {
    if (url !== WORKER) throw new TypeError(`no script of this page: ${url}`);
    return url;
  },
});

export class ListClient extends EventTarget {
  readonly #worker: Worker;

  constructor(source: Source, meta: RootMeta, unwritten: Unwritten) {
    super();
    this.#worker = new Worker((policy?.createScriptURL(WORKER) ?? WORKER) as string);
    this.#worker.addEventListener("message", ({ data }: MessageEvent<Answer>) => this.dispatchEvent(new CustomEvent(data.tell, { detail: data })));
    this.#worker.addEventListener("error", (event) => {
      this.dispatchEvent(new CustomEvent("fault", { detail: { tell: "fault", kind: "unknown", message: `The list of examples stopped: ${event.message}`, todo: "Reload the page." } }));
    });
    this.ask({ ask: "open", source, meta, unwritten });
  }

  ask(question: Question): void {
    this.#worker.postMessage(question);
  }

  on<K extends Answer["tell"]>(tell: K, hear: (answer: Extract<Answer, { tell: K }>) => void): void {
    this.addEventListener(tell, (event) => hear((event as CustomEvent<Extract<Answer, { tell: K }>>).detail));
  }

  close(): void {
    this.#worker.terminate();
  }
}
