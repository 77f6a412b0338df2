/** The list of a store's examples: read piece by piece, searched and filtered; it runs in a worker. */

import { faultOf } from "../fault.ts";
import { Answers } from "../store/answers.ts";
import type { Store } from "../store/store.ts";
import { Corpus } from "./corpus.ts";
import type { Answer, Filter, Outcome, Row } from "./protocol.ts";

const AT_ONCE = 8;
const EVERY_MS = 150;
/** Pieces of the list that are fetched at once. */
const TOGETHER = 8;
const LABEL_MS = 50;
const SEPARATOR = "\t";

export class Listing {
  readonly #store: Store;
  readonly #answers: Answers;
  readonly #tell: (answer: Answer) => void;
  readonly #texts = new Corpus();
  readonly #relations = new Map<string, number>();
  readonly #relationNames: string[] = [];
  readonly #relation: Uint32Array;
  readonly #label: Int8Array;
  readonly #outcome: Int8Array;
  readonly #judged: Uint8Array;
  #listed = 0;
  #filter: Filter = { query: "", relation: "", outcome: "" };
  #turn = 0;
  #found: Uint32Array = new Uint32Array();
  #judging: Promise<void> | undefined;
  /** Fulfilled once the page has drawn what it shows first. */
  readonly #wanted: Promise<void>;
  /** Read the rest of the list too. */
  readonly more: () => void;

  constructor(store: Store, tell: (answer: Answer) => void) {
    const { examples, block } = store.layout;
    this.#store = store;
    this.#tell = tell;
    this.#answers = new Answers(store);
    this.#relation = new Uint32Array(examples);
    this.#label = new Int8Array(examples).fill(-1);
    this.#outcome = new Int8Array(examples).fill(-1);
    let more = () => {};
    this.#wanted = new Promise((done) => (more = done));
    this.more = more;
    this.#judged = new Uint8Array(Math.ceil(examples / block));
  }

  /** Read the list, piece by piece, and say how far it is. */
  async read(): Promise<void> {
    const { arrays, layout: { examples } } = this.#store;
    const column = this.#store.meta.columns.find(({ name }) => name === "caption");
    const caption = column && `examples/${column.array}`;
    const piece = Math.max(arrays.piece("example", 0), caption ? arrays.piece(caption, 0) : 1);
    let told = 0;
    for (let first = 0; first < examples; first = this.#listed) {
      // the first piece fills the window; the rest comes after the first view, several at a time
      if (first) await this.#wanted;
      const range: readonly [number, number] = [first, Math.min(first + (first ? TOGETHER : 1) * piece, examples)];
      const [ids, relations, labels, captions] = await Promise.all([
        arrays.read<string[]>("example", [range]),
        arrays.read<string[]>("relation", [range]),
        arrays.read<BigInt64Array>("label", [range]),
        caption ? arrays.read<string[]>(caption, [range]) : null,
      ]);
      this.#texts.push(ids.data.map((id, k) => `${(captions?.data[k] ?? "").replaceAll(SEPARATOR, " ")}${SEPARATOR}${id}`));
      relations.data.forEach((name, k) => {
        let code = this.#relations.get(name);
        if (code === undefined) {
          this.#relations.set(name, (code = this.#relations.size));
          this.#relationNames.push(name);
        }
        this.#relation[first + k] = code;
      });
      for (let k = 0; k < labels.data.length; k++) this.#label[first + k] = Number(labels.data[k]);
      this.#listed = range[1];
      if (Date.now() - told > EVERY_MS || range[1] === examples) {
        told = Date.now();
        this.#sayListed();
        this.#find();
      }
      await new Promise((next) => setTimeout(next));
    }
    if (!examples) this.#sayListed();
  }

  find(filter: Filter, turn: number): void {
    this.#filter = filter;
    this.#turn = turn;
    this.#find();
    if (filter.outcome) void this.#judgeAll();
  }

  /** Tell rows of what was found; those whose answers are not known yet are told again once they are. */
  async rows(from: number, to: number, turn: number): Promise<void> {
    if (turn !== this.#turn) return;
    const numbers = [...this.#found.subarray(from, to)];
    const say = () => turn === this.#turn && this.#tell({ tell: "rows", turn, from, rows: numbers.map((n) => this.#row(n)) });
    say();
    const blocks = [...new Set(numbers.map((n) => this.#store.block(n)))].filter((b) => !this.#judged[b]);
    if (!blocks.length || !this.#answers.rightByLabel) return;
    try {
      await Promise.all(blocks.slice(0, AT_ONCE).map((block) => this.#judge(block)));
      say();
    } catch (error) {
      this.#fault(error);
    }
  }

  example(example: number): void {
    if (example < this.#listed) this.#tell({ tell: "example", row: this.#row(example) });
  }

  /** The example some places further among those found. */
  step(example: number, by: number, turn: number): void {
    if (!this.#found.length) return this.#tell({ tell: "step", turn, example, place: 0 });
    let place = this.#found.findIndex((n) => n >= example);
    if (place < 0) place = this.#found.length;
    const here = this.#found[place] === example;
    // no step at all only asks where the example is
    if (!by) return this.#tell({ tell: "step", turn, example, place: Math.min(place, this.#found.length - 1) });
    const next = Math.max(0, Math.min(this.#found.length - 1, here || by < 0 ? place + by : place + by - 1));
    this.#tell({ tell: "step", turn, example: this.#found[next]!, place: next });
  }

  #row(example: number): Row {
    const [caption = "", id = ""] = this.#texts.at(example).split(SEPARATOR);
    const relation = this.#relationNames[this.#relation[example]!] ?? "";
    return { example, id, caption, relation, label: this.#label[example]!, outcome: this.#outcome[example] as Outcome };
  }

  #find(): void {
    const { query, relation, outcome } = this.#filter;
    const number = /^#(\d+)$/.exec(query.trim());
    let found: Uint32Array = number ? Uint32Array.of(Number(number[1])).filter((n) => n < this.#listed) : this.#texts.search(query);
    if (relation) {
      const code = this.#relations.get(relation) ?? -1;
      found = found.filter((n) => this.#relation[n] === code);
    }
    if (outcome) {
      const wanted = outcome === "right" ? 1 : 0;
      found = found.filter((n) => this.#outcome[n] === wanted);
    }
    this.#found = found;
    const judged = !outcome || this.#judged.every(Boolean);
    this.#tell({ tell: "found", turn: this.#turn, count: found.length, done: this.#listed === this.#store.layout.examples && judged });
  }

  /** Compare all answers with the labels: one small file a block. */
  #judgeAll(): Promise<void> {
    this.#judging ??= (async () => {
      const blocks = this.#judged.length;
      let next = 0;
      let told = 0;
      const work = async () => {
        while (next < blocks && this.#filter.outcome) {
          const block = next++;
          if (!this.#judged[block]) await this.#judge(block);
          if (Date.now() - told > EVERY_MS) {
            told = Date.now();
            this.#tell({ tell: "judged", blocks: this.#judged.reduce((a, b) => a + b, 0), of: blocks });
            this.#find();
          }
        }
      };
      await Promise.all(Array.from({ length: AT_ONCE }, work));
      this.#tell({ tell: "judged", blocks: this.#judged.reduce((a, b) => a + b, 0), of: blocks });
      this.#find();
    })().catch((error: unknown) => this.#fault(error)).finally(() => (this.#judging = undefined));
    return this.#judging;
  }

  async #judge(block: number): Promise<void> {
    const { block: size, choices, examples } = this.#store.layout;
    const last = Math.min((block + 1) * size, examples);
    const found = await this.#store.blockLogits(block);
    // an answer is right or wrong once its label is known too
    while (this.#listed < last) await new Promise((next) => setTimeout(next, LABEL_MS));
    for (let example = block * size; example < last; example++) {
      const k = example - block * size;
      if (!found || found.status[k] !== 1) this.#outcome[example] = -2;
      else {
        const right = this.#answers.right(found.logits.subarray(k * choices.length, (k + 1) * choices.length), this.#label[example]!);
        this.#outcome[example] = right === null ? -1 : right ? 1 : 0;
      }
    }
    this.#judged[block] = 1;
  }

  #sayListed(): void {
    this.#tell({ tell: "listed", rows: this.#listed, of: this.#store.layout.examples, relations: [...this.#relationNames].sort() });
  }

  #fault(error: unknown): void {
    const { kind, message, todo } = faultOf(error);
    this.#tell({ tell: "fault", kind, message, todo });
  }
}
