/** The page over an open store: what is shown, and what follows from a change of it. */

import type { Meter } from "../bytes/files.ts";
import type { Source } from "../bytes/source.ts";
import { ListClient } from "../list/client.ts";
import type { Row } from "../list/protocol.ts";
import { Results } from "../results/results.ts";
import { Answers } from "../store/answers.ts";
import { onMapsRead } from "../store/measures.ts";
import { conditionOf } from "../store/provenance.ts";
import type { Store } from "../store/store.ts";
import { boxesOf } from "./boxes.ts";
import { Captions } from "./captions.ts";
import { summary } from "./cards.ts";
import { actionMenu, displayMenu, type Opening } from "./dialogs.ts";
import { h, setText } from "./dom.ts";
import type { Named } from "./download.ts";
import { ExampleList } from "./example-list.ts";
import { Exports } from "./exports.ts";
import { fitted, fittedPane } from "./fitted.ts";
import { header, titleOf } from "./header.ts";
import { clamp } from "./numbers.ts";
import { LinkNotice } from "./notice.ts";
import { Pane } from "./pane.ts";
import type { PaneHost } from "./pane-layout.ts";
import { Overview } from "./overview.ts";
import { Player } from "./player.ts";
import { Side } from "./side.ts";
import { TokenStrip } from "./tokens.ts";
import { toHash, type PaneView, type View } from "./view.ts";

type Which = "a" | "b";

const WRITE_MS = 120;

export class App {
  readonly store: Store;
  view: View;
  readonly list: ExampleList;
  readonly #client: ListClient;
  readonly #panes: Record<Which, Pane | null> = { a: null, b: null };
  readonly #strips: Record<Which, TokenStrip>;
  readonly #overview: Overview;
  readonly #live = h("div", { class: "sr", role: "status", "aria-live": "polite" });
  readonly #notice = new LinkNotice();
  readonly #stage = h("div", { class: "stage" });
  readonly #tokens = h("div", { class: "token-strips" });
  readonly #main: HTMLElement;
  readonly #display: ReturnType<typeof displayMenu>;
  readonly #compare: HTMLButtonElement;
  readonly #toOverview: HTMLButtonElement;
  readonly #side: Side;
  readonly #header: HTMLElement;
  readonly exports: Exports;
  readonly #captions = new Captions();
  readonly #host: PaneHost;
  readonly #player = new Player<Which>({
    up: (which) => this.#layerOf(which) !== this.store.layers.at(-1) && (this.step(1, which), this.#layerOf(which) !== this.store.layers.at(-1)),
    rewind: (which) => this.#layerOf(which) === this.store.layers.at(-1) && this.change({ layer: this.store.layers[0]! }, which),
    tell: (playing) => {
      this.#main.classList.toggle("playing", playing !== null);
      for (const which of ["a", "b"] as const) this.#panes[which]?.playing(playing === which);
    },
  });
  #writing: ReturnType<typeof setTimeout> | undefined;
  #first = true;
  #results: Results | null = null;

  constructor(root: HTMLElement, store: Store, source: Source, view: View, meter: Meter, opening: Opening) {
    this.store = store;
    this.view = fitted(view, this.store);
    this.#client = new ListClient(source, store.meta, store.unwritten);
    this.#client.on("read", ({ bytes, requests }) => meter.add(bytes, requests));
    this.#client.on("example", ({ row }) => this.#hearRow(row));
    this.#client.on("rows", ({ rows }) => rows.forEach((row) => [this.view.a.example, this.view.b?.example].includes(row.example) && this.#hearRow(row)));
    this.#client.on("listed", () => this.#askRows());
    const answers = new Answers(store);
    this.#host = {
      store, answers, view: () => this.view, change: (patch, which) => this.change(patch, which), activate: (which) => this.#activate(which),
      play: (which) => { this.#activate(which); this.play(which); }, drawn: (which, what) => this.#drawn(which, what),
      boxes: (example) => boxesOf(store, example),
      exactFlow: (example, layer) => this.#results?.flow(example, layer, store.layout.layers, conditionOf(store.provenance)).catch(() => null) ?? Promise.resolve(null), say: (text) => setText(this.#live, text),
    };
    this.exports = new Exports({ store, view: () => this.view, named: () => this.#named(), say: (text) => setText(this.#live, text) });
    this.list = new ExampleList({
      store, judgeable: answers.rightByLabel !== null, meanings: answers.meanings, choose: (example) => this.change({ example }),
      filter: () => ({ query: this.view.query, relation: this.view.relation, outcome: this.view.outcome }),
      search: (filter) => { this.set({ query: filter.query, relation: filter.relation, outcome: filter.outcome }); this.list.find(); },
    }, this.#client);
    this.#strips = { a: new TokenStrip("", (patch) => this.change(patch, "a")), b: new TokenStrip(" of B", (patch) => this.change(patch, "b")) };
    this.#side = new Side({
      store, view: () => this.view, pane: () => this.#pane, shown: () => this.#panes[this.view.active]?.shown ?? null,
      change: (patch) => this.change(patch), set: (patch) => this.set(patch),
    });
    this.#overview = new Overview({
      view: () => this.view, set: (patch) => this.set(patch), say: (text) => setText(this.#live, text), condition: conditionOf(store.provenance),
      open: (example, layer) => this.change({ example, layer: Math.min(layer, store.layers.at(-1)!) }),
    }, () => this.#shownFirst());
    this.#display = displayMenu(() => this.view, (patch) => this.set(patch));
    this.#compare = h("button", { class: "button", type: "button", "aria-pressed": "false", title: "Two examples or layers side by side (c)", onclick: () => this.compare() }, "Compare");
    this.#toOverview = h("button", { class: "button", type: "button", "aria-pressed": "false", hidden: true, title: "All examples, or one (e)", onclick: () => this.turn() }, "Overview");
    this.#header = header(titleOf(store), {
      meter, opening, copy: () => void this.copyLink(), before: [this.list.toggle, this.#compare, this.#toOverview, this.#display.element, actionMenu("Download", [["Picture (PNG)", () => void this.exports.png()], ["Numbers (CSV)", () => this.exports.csv()]])],
    });
    this.#main = h("main", { class: store.imported ? "imported" : "" }, this.list.element, this.#stage, this.#tokens, this.#side.element, this.#overview.element);
    root.replaceChildren(this.#header, this.#main, this.#notice.element, this.#live);
    onMapsRead((done, total) => setText(this.#live, done < total ? `reading maps, ${done} of ${total}` : "maps read"));
    this.#arrange();
    this.#update();
  }

  get #pane(): PaneView {
    return this.view[this.view.active] ?? this.view.a;
  }

  offerResults(results: Results | null, why?: string): void {
    this.#results = results;
    this.#side.offer(results, why);
    this.#overview.offer(results);
    this.#toOverview.hidden = !results?.tasks.length;
    if (this.#all) this.set({ page: results?.tasks.length ? "overview" : "example" });
    if (this.#all) return;
    this.#side.probe();
    // flows shown so far are bounds
    for (const which of ["a", "b"] as const) if (this.view[which]?.measure === "flow") void this.#panes[which]?.show(this.view[which]!);
  }

  /** Change what one pane shows; both layers, where they move together. */
  change(patch: Partial<PaneView>, which: Which = this.view.active): void {
    const target = this.view[which];
    if (!target) return;
    const other = this.view[which === "a" ? "b" : "a"];
    const next = fittedPane({ ...target, ...patch }, this.store);
    const view: View = { ...this.view, [which]: next };
    if (this.#all && patch.example !== undefined) view.page = "example";
    if (patch.example !== undefined) this.list.unfold(false);
    if (this.view.together && other && patch.layer !== undefined) view[which === "a" ? "b" : "a"] = { ...other, layer: next.layer };
    this.view = view;
    this.#update();
  }

  set(patch: Partial<View>): void {
    this.view = fitted({ ...this.view, ...patch }, this.store);
    this.#update();
  }

  readonly leaveOut = (given: View, ignored: readonly string[]): void => this.#notice.tell(ignored, given, this.view);

  /** A link was followed: show all that it says. */
  follow(view: View): void {
    const before = this.view;
    this.view = fitted(view, this.store);
    this.#arrange();
    if (before.query !== view.query || before.relation !== view.relation || before.outcome !== view.outcome) this.list.find();
    this.#update();
  }

  /** From all examples to one, or back. */
  turn(): void {
    if (!this.#results?.tasks.length) return;
    this.stop();
    this.set({ page: this.#all ? "example" : "overview" });
    setText(this.#live, this.#all ? "Overview of all examples." : "One example.");
  }

  get #all(): boolean {
    return this.view.page === "overview";
  }

  compare(): void {
    this.stop();
    if (this.#all) this.view = { ...this.view, page: "example" };
    this.view = this.view.b ? { ...this.view, b: null, active: "a" } : { ...this.view, b: { ...this.view.a }, active: "b" };
    this.#arrange();
    this.#update();
    setText(this.#live, this.view.b ? "Comparing: choices now go to view B." : "One view.");
  }

  swap(): void {
    if (this.view.b) this.#activate(this.view.active === "a" ? "b" : "a");
  }

  step(by: number, which: Which = this.view.active): void {
    if (this.#all) return this.#overview.step(by);
    const k = clamp(this.store.layers.indexOf(this.#layerOf(which)) + by, 0, this.store.layers.length - 1);
    this.change({ layer: this.store.layers[k]! }, which);
  }

  play(which: Which = this.view.active): void {
    if (!this.#all) this.#player.toggle(which);
  }

  readonly stop = (): void => this.#player.stop();

  #layerOf(which: Which): number {
    return (this.view[which] ?? this.view.a).layer;
  }

  async copyLink(): Promise<void> {
    this.#write();
    await this.exports.link(this.#header.querySelector(".copy"));
  }

  close(): void {
    this.stop();
    clearTimeout(this.#writing);
    this.#client.close();
  }

  #named(): Named[] {
    return (["a", "b"] as const).flatMap((which) => {
      const [pane, view] = [this.#panes[which], this.view[which]];
      const row = view && this.#captions.of(view.example);
      return pane && view ? [{ pane, view, id: row?.id ?? "", caption: row?.caption ?? "" }] : [];
    });
  }

  #arrange(): void {
    for (const which of ["a", "b"] as const) {
      if (this.view[which] && !this.#panes[which]) this.#panes[which] = new Pane(which, this.#host);
      if (!this.view[which]) this.#panes[which] = null;
    }
    const shown = (["a", "b"] as const).filter((which) => this.#panes[which]);
    this.#stage.replaceChildren(...shown.map((which) => this.#panes[which]!.element));
    this.#tokens.replaceChildren(...shown.map((which) => this.#strips[which].element));
    this.#main.classList.toggle("comparing", shown.length > 1);
    this.#compare.setAttribute("aria-pressed", String(shown.length > 1));
  }

  #activate(which: Which): void {
    if (this.view.active === which || !this.view[which]) return;
    this.view = { ...this.view, active: which };
    this.#update();
  }

  #update(): void {
    this.#overview.element.hidden = !this.#all;
    for (const part of [this.#stage, this.#side.element, this.#tokens, this.#compare]) part.hidden = this.#all;
    this.#display.element.hidden = this.#all || !!this.store.imported;
    this.#toOverview.setAttribute("aria-pressed", String(this.#all));
    if (this.#all) void this.#overview.show();
    for (const which of ["a", "b"] as const) {
      const pane = this.#all ? null : this.#panes[which];
      if (!pane) continue;
      pane.element.classList.toggle("active", this.view.active === which && this.view.b !== null);
      void pane.show(this.view[which]!);
    }
    this.#display.sync();
    if (!this.#all) this.#side.show(!this.#first);
    this.list.choose(this.#pane.example);
    this.#askRows();
    clearTimeout(this.#writing);
    this.#writing = setTimeout(() => this.#write(), WRITE_MS);
  }

  #write(): void {
    const hash = toHash(this.view);
    if (hash !== location.hash.slice(1)) history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }

  #drawn(which: Which, what: "example" | "weights"): void {
    const [pane, view] = [this.#panes[which], this.view[which]];
    if (!pane || !view) return;
    if (what === "example") {
      this.#strips[which].build(pane.shown, this.store.has("attention_maps") && !!pane.shown?.prompt.hasMap);
      this.#caption(which);
    }
    this.#strips[which].tint(view, this.view);
    if (which !== this.view.active) return;
    this.#side.show(!this.#first);
    if (pane.shown && what === "weights") setText(this.#live, summary(pane.shown, view));
    if (what === "weights" || pane.fault) {
      this.#shownFirst();
      this.#side.show(true);
    }
  }

  /** The rest of the list is read once something is shown. */
  #shownFirst(): void {
    if (!this.#first) return;
    this.#first = false;
    this.#client.ask({ ask: "more" });
    document.documentElement.dataset["ready"] = "first-view";
  }

  #askRows(): void {
    for (const pane of [this.view.a, this.view.b]) if (pane && !this.#captions.of(pane.example)) this.#client.ask({ ask: "example", example: pane.example });
    for (const which of ["a", "b"] as const) this.#caption(which);
  }

  #hearRow(row: Row): void {
    this.#captions.hear(row);
    for (const which of ["a", "b"] as const) if (this.view[which]?.example === row.example) this.#caption(which);
  }

  #caption(which: Which): void {
    const [pane, view] = [this.#panes[which], this.view[which]];
    if (pane && view) pane.caption(this.#captions.text(view.example, pane.shown), this.#captions.label(view.example));
  }
}
