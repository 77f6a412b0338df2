/** The list of examples: a window onto as many rows as there are, filled by the worker. */

import type { ListClient } from "../list/client.ts";
import type { Filter, Row } from "../list/protocol.ts";
import type { Store } from "../store/store.ts";
import { h, setText, setWorded } from "./dom.ts";
import { counted } from "./numbers.ts";

const ROW = 62;
/** Browsers cut elements off at some 17 to 33 million pixels: taller lists are scrolled in proportion. */
const TALLEST = 8_000_000;
const AROUND = 6;
const TYPING = 120;

interface ListHost {
  store: Store;
  filter: () => Filter;
  search: (filter: Filter) => void;
  choose: (example: number) => void;
  judgeable: boolean;
  /** What a label says, by its number. */
  meanings: readonly string[];
}

export class ExampleList {
  readonly element: HTMLElement;
  readonly search: HTMLInputElement;
  /** On a narrow screen the list lies over the page, and this shows it. */
  readonly toggle = h("button", { class: "button list-toggle", type: "button", "aria-expanded": "false", onclick: () => this.unfold(true) }, "Examples");
  readonly #host: ListHost;
  readonly #client: ListClient;
  readonly #relation: HTMLSelectElement;
  readonly #outcome: HTMLSelectElement;
  readonly #box = h("div", { class: "rows", role: "listbox", tabIndex: 0, "aria-label": "Examples" });
  readonly #room = h("div", { class: "room", role: "presentation" });
  readonly #count = h("div", { class: "count num", role: "status" });
  readonly #progress = h("progress", { max: 1, value: 0, hidden: true, "aria-label": "Reading" });
  readonly #rows = new Map<number, Row>();
  #turn = 0;
  #found = 0;
  #done = false;
  #listed = 0;
  #judged: { blocks: number; of: number } | null = null;
  #chosen = 0;
  #asked = "";
  #steps = 0;
  #stepping = false;
  /** Whether the list has been scrolled to the example that the page began with. */
  #revealed = false;
  /** Whether the first example found is to be opened. */
  #opening = false;
  #typing: ReturnType<typeof setTimeout> | undefined;

  constructor(host: ListHost, client: ListClient) {
    this.#host = host;
    this.#client = client;
    const filter = host.filter();
    this.search = h("input", { type: "search", class: "field", placeholder: "Search captions, ids, #number", "aria-label": "Search captions and ids", value: filter.query });
    this.search.value = filter.query;
    this.#relation = h("select", { class: "field", "aria-label": "Relation" }, h("option", { value: "" }, "any relation"));
    this.#outcome = h("select", { class: "field", "aria-label": "Right or wrong", disabled: !host.judgeable, title: host.judgeable ? "" : "The label of this prompt names no answer" },
      h("option", { value: "" }, "any answer"), h("option", { value: "right" }, "model right"), h("option", { value: "wrong" }, "model wrong"));
    this.#outcome.value = host.judgeable ? filter.outcome : "";
    const changed = () => host.search({ query: this.search.value, relation: this.#relation.value, outcome: this.#outcome.value as Filter["outcome"] });
    this.search.addEventListener("input", () => {
      clearTimeout(this.#typing);
      this.#typing = setTimeout(changed, TYPING);
    });
    this.search.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      clearTimeout(this.#typing);
      const number = /^\s*#(\d+)\s*$/.exec(this.search.value);
      if (number && Number(number[1]) < host.store.layout.examples) host.choose(Number(number[1]));
      else this.#opening = !number;
      changed();
    });
    this.#relation.addEventListener("change", changed);
    this.#outcome.addEventListener("change", changed);
    this.#box.append(this.#room);
    this.#box.addEventListener("scroll", () => this.#window());
    this.#box.addEventListener("click", (event) => {
      const row = (event.target as Element).closest<HTMLElement>("[data-example]");
      if (row) host.choose(Number(row.dataset["example"]));
    });
    this.#box.addEventListener("keydown", (event) => this.#key(event));
    this.element = h("section", { class: "card examples", "aria-label": "Examples" },
      h("div", { class: "find" }, h("button", { class: "button list-toggle", type: "button", onclick: () => this.unfold(false) }, "Close the list"), this.search, h("div", { class: "pair" }, this.#relation, this.#outcome)), this.#box, this.#progress, this.#count);
    new ResizeObserver(() => this.#window()).observe(this.#box);
    client.on("listed", ({ rows, of, relations }) => this.#hearListed(rows, of, relations));
    client.on("judged", ({ blocks, of }) => { this.#judged = { blocks, of }; this.#say(); });
    client.on("found", ({ turn, count, done }) => turn === this.#turn && this.#hearFound(count, done));
    client.on("rows", ({ turn, from, rows }) => {
      if (turn !== this.#turn) return;
      rows.forEach((row, k) => this.#rows.set(from + k, row));
      this.#draw();
    });
    client.on("step", ({ turn, example, place }) => {
      this.#stepping = false;
      if (turn !== this.#turn) return;
      this.#reveal(place);
      if (example !== this.#chosen) host.choose(example);
      if (this.#steps) this.#askStep();
    });
    client.on("fault", ({ message, todo }) => {
      this.#progress.hidden = true;
      this.#count.classList.add("wrong");
      setWorded(this.#count, `${message} ${todo}`);
    });
    this.find();
  }

  unfold(open: boolean): void {
    this.element.classList.toggle("open", open);
    this.toggle.setAttribute("aria-expanded", String(open));
    if (open) this.#box.focus();
  }

  /** Search again, by what the view says. */
  find(): void {
    const filter = this.#host.filter();
    if (document.activeElement !== this.search) this.search.value = filter.query;
    this.#relation.value = filter.relation;
    this.#outcome.value = this.#host.judgeable ? filter.outcome : "";
    this.#rows.clear();
    this.#asked = "";
    this.#judged = null;
    this.#stepping = false;
    this.#steps = 0;
    this.#client.ask({ ask: "find", filter: { ...filter, outcome: this.#outcome.value as Filter["outcome"] }, turn: ++this.#turn });
  }

  choose(example: number): void {
    this.#chosen = example;
    this.#draw();
  }

  /** Choose the next or the last of those found. */
  step(by: number): void {
    this.#steps += by;
    if (!this.#stepping) this.#askStep();
  }

  /** Steps taken while one is being asked for are asked for together, from where that one leads. */
  #askStep(): void {
    this.#stepping = true;
    this.#client.ask({ ask: "step", example: this.#chosen, by: this.#steps, turn: this.#turn });
    this.#steps = 0;
  }

  #hearListed(rows: number, of: number, relations: readonly string[]): void {
    this.#listed = rows;
    const known = new Set([...this.#relation.options].map((o) => o.value));
    if (relations.some((r) => !known.has(r))) {
      this.#relation.replaceChildren(h("option", { value: "" }, "any relation"), ...relations.map((r) => h("option", { value: r }, r || "(none)")));
      this.#relation.value = this.#host.filter().relation;
    }
    const wanted = this.#host.filter().relation;
    if (rows >= of && wanted && this.#relation.value !== wanted) {
      // a link may ask for a relation of another store
      this.#relation.append(h("option", { value: wanted }, `${wanted} (not in this store)`));
      this.#relation.value = wanted;
    }
    this.#progress.hidden = rows >= of;
    this.#progress.value = of ? rows / of : 1;
    this.#say();
  }

  #hearFound(count: number, done: boolean): void {
    this.#found = count;
    this.#done = done;
    this.#rows.clear();
    this.#asked = "";
    this.#room.style.height = `${Math.min(TALLEST, count * ROW)}px`;
    this.#say();
    this.#window();
    if (this.#opening && (count || done)) {
      this.#opening = false;
      if (count) this.#client.ask({ ask: "step", example: -1, by: 1, turn: this.#turn });
    }
    if (this.#turn === 1 && !this.#revealed && count) {
      this.#revealed = this.#listed > this.#chosen;
      this.step(0);
    }
  }

  #say(): void {
    const of = this.#host.store.layout.examples;
    this.#count.classList.remove("wrong");
    const reading = this.#listed < of ? ` · reading the list, ${Math.floor((100 * this.#listed) / of)} %` : "";
    const judging = this.#judged && this.#judged.blocks < this.#judged.of ? ` · comparing answers, ${Math.floor((100 * this.#judged.blocks) / this.#judged.of)} %` : "";
    const none = this.#done && !this.#found && !judging ? ": none fits the search and lists above" : "";
    setText(this.#count, `${counted(this.#found)} of ${counted(of)} examples${none}${reading}${judging || (this.#done ? "" : reading ? "" : " …")}`);
  }

  /** First row in the window, for a list of any length. */
  get #first(): number {
    const { scrollTop, clientHeight } = this.#box;
    const tall = this.#found * ROW;
    if (tall <= TALLEST) return Math.floor(scrollTop / ROW);
    const share = scrollTop / Math.max(1, TALLEST - clientHeight);
    return Math.floor(share * (this.#found - clientHeight / ROW));
  }

  #window(): void {
    const first = Math.max(0, this.#first - AROUND);
    const last = Math.min(this.#found, this.#first + Math.ceil(this.#box.clientHeight / ROW) + AROUND);
    const asked = `${this.#turn}:${first}:${last}`;
    if (asked !== this.#asked && last > first) {
      this.#asked = asked;
      let missing = false;
      for (let place = first; place < last; place++) missing ||= !this.#rows.has(place);
      if (missing) this.#client.ask({ ask: "rows", from: first, to: last, turn: this.#turn });
    }
    this.#draw();
  }

  #draw(): void {
    const from = Math.max(0, this.#first - AROUND);
    const to = Math.min(this.#found, this.#first + Math.ceil(this.#box.clientHeight / ROW) + AROUND);
    const tall = this.#found * ROW;
    // rows of a list that is scrolled in proportion lie around where it is scrolled to
    const shift = tall <= TALLEST ? 0 : this.#box.scrollTop - this.#first * ROW;
    const drawn: HTMLElement[] = [];
    let active = "";
    for (let place = from; place < to; place++) {
      const row = this.#rows.get(place);
      const top = `${place * ROW + shift}px`;
      if (!row) {
        drawn.push(h("div", { class: "row waiting", style: { top }, role: "presentation" }));
        continue;
      }
      const chosen = row.example === this.#chosen;
      const id = `example-${row.example}`;
      if (chosen) active = id;
      drawn.push(rowElement(row, this.#host.meanings[row.label] ?? "", place, this.#found, chosen, id, top));
    }
    this.#room.replaceChildren(...drawn);
    if (active) this.#box.setAttribute("aria-activedescendant", active);
    else this.#box.removeAttribute("aria-activedescendant");
  }

  #reveal(place: number): void {
    const { scrollTop, clientHeight } = this.#box;
    const tall = this.#found * ROW;
    if (tall > TALLEST) {
      const seen = this.#first;
      if (place < seen || place > seen + clientHeight / ROW - 1) this.#box.scrollTop = (place / (this.#found - clientHeight / ROW)) * (TALLEST - clientHeight);
      return;
    }
    if (place * ROW < scrollTop) this.#box.scrollTop = place * ROW;
    else if ((place + 1) * ROW > scrollTop + clientHeight) this.#box.scrollTop = (place + 1) * ROW - clientHeight;
  }

  #key(event: KeyboardEvent): void {
    const page = Math.max(1, Math.floor(this.#box.clientHeight / ROW) - 1);
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -this.#found, End: this.#found }[event.key];
    if (by === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.step(by);
  }
}

function rowElement(row: Row, meaning: string, place: number, count: number, chosen: boolean, id: string, top: string): HTMLElement {
  const mark = { "1": ["✓", "right", "model right"], "0": ["✗", "wrong", "model wrong"], "-1": ["", "", ""], "-2": ["–", "", "not recorded"] }[String(row.outcome)]!;
  return h("div", {
    class: "row", role: "option", id, "data-example": String(row.example), style: { top }, "aria-selected": String(chosen), "aria-setsize": String(count), "aria-posinset": String(place + 1),
  }, h("span", { class: `mark ${mark[1]}`, title: mark[2] }, mark[0], mark[2] ? h("span", { class: "sr" }, ` ${mark[2]}`) : null),
    h("span", { class: "text" }, row.caption || row.id),
    h("span", { class: "about", title: `id ${row.id}` }, [`#${row.example}`, row.relation, meaning === row.relation ? "" : meaning, `id ${row.id}`].filter(Boolean).join(" · ")));
}
