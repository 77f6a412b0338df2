/** The page over an open store: what is shown, and what follows from a change of it. */

import type { Meter } from "../bytes/files.ts";
import type { Source } from "../bytes/source.ts";
import { ListClient } from "../list/client.ts";
import type { Row } from "../list/protocol.ts";
import { Results } from "../results/results.ts";
import { Answers } from "../store/answers.ts";
import { MEASURES, allLayers, onMapsRead, unavailable } from "../store/measures.ts";
import { hidingOf } from "../store/knockouts.ts";
import type { Store } from "../store/store.ts";
import { boxesOf } from "./boxes.ts";
import { KnockoutCard, NextCard } from "./answer-cards.ts";
import { ProbeCard, ShareCard, summary } from "./cards.ts";
import { actionMenu, displayMenu, type Opening } from "./dialogs.ts";
import { h, setText } from "./dom.ts";
import { describe, numbersCsv, picturePng, save, type Named } from "./download.ts";
import { ExampleList } from "./example-list.ts";
import { header } from "./header.ts";
import { HeadGrid } from "./head-grid.ts";
import { clamp, counted } from "./numbers.ts";
import { Pane, type PaneHost } from "./pane.ts";
import { visible } from "./token-text.ts";
import { TokenStrip } from "./tokens.ts";
import { START, toHash, type PaneView, type View } from "./view.ts";

type Which = "a" | "b";

const PLAY_MS = 420;
const WRITE_MS = 120;
/** Of what a link asks for in vain. */
const MOST_TOLD = 6;
const LONGEST_TOLD = 40;

export class App {
  readonly store: Store;
  view: View;
  readonly #list: ExampleList;
  readonly #client: ListClient;
  readonly #panes: Record<Which, Pane | null> = { a: null, b: null };
  readonly #strips: Record<Which, TokenStrip>;
  readonly #grid: HeadGrid;
  readonly #share: ShareCard;
  readonly #probe: ProbeCard;
  readonly #knockouts: KnockoutCard;
  readonly #next: NextCard;
  readonly #live = h("div", { class: "sr", role: "status", "aria-live": "polite" });
  readonly #notice = h("div", { class: "notice card", role: "status", hidden: true });
  readonly #stage = h("div", { class: "stage" });
  readonly #tokens = h("div", { class: "token-strips" });
  readonly #main: HTMLElement;
  readonly #display: ReturnType<typeof displayMenu>;
  readonly #compare: HTMLButtonElement;
  readonly #header: HTMLElement;
  readonly #known = new Map<number, Row>();
  readonly #host: PaneHost;
  #playing: ReturnType<typeof setInterval> | undefined;
  #writing: ReturnType<typeof setTimeout> | undefined;
  #first = true;
  #results: Results | null = null;

  constructor(root: HTMLElement, store: Store, source: Source, view: View, meter: Meter, opening: Opening) {
    this.store = store;
    this.view = this.#fitted(view);
    this.#client = new ListClient(source, store.meta, store.unwritten);
    this.#client.on("read", ({ bytes, requests }) => meter.add(bytes, requests));
    this.#client.on("example", ({ row }) => this.#hearRow(row));
    this.#client.on("rows", ({ rows }) => rows.forEach((row) => this.#wanted(row.example) && this.#hearRow(row)));
    this.#client.on("listed", () => this.#askRows());
    const answers = new Answers(store);
    this.#host = {
      store, answers, view: () => this.view, change: (patch, which) => this.change(patch, which), activate: (which) => this.#activate(which),
      play: (which) => { this.#activate(which); this.play(); }, drawn: (which, what) => this.#drawn(which, what),
      boxes: (example) => boxesOf(store, example),
      exactFlow: (example, layer) => this.#results?.flow(example, layer, store.layout.layers, String(store.provenance["condition"] ?? "")).catch(() => null) ?? Promise.resolve(null), say: (text) => setText(this.#live, text),
    };
    this.#list = new ExampleList({
      store, judgeable: answers.rightByLabel !== null, meanings: answers.meanings, choose: (example) => this.change({ example }),
      filter: () => ({ query: this.view.query, relation: this.view.relation, outcome: this.view.outcome }),
      search: (filter) => { this.set({ query: filter.query, relation: filter.relation, outcome: filter.outcome }); this.#list.find(); },
    }, this.#client);
    this.#strips = { a: new TokenStrip(""), b: new TokenStrip(" of B") };
    this.#grid = new HeadGrid({
      store, view: () => this.view, colourBy: (grid) => this.set({ grid }),
      pick: (layer, head) => this.change({ layer, head, heads: "one", measure: MEASURES[this.#pane.measure].perHead ? this.#pane.measure : "attention" }),
    });
    this.#share = new ShareCard(store.layers, (layer) => this.change({ layer }));
    // layer k of the residual stream is what enters block k: the last has no block
    const condition = store.provenance["condition"];
    this.#probe = new ProbeCard(typeof condition === "string" ? condition : "", (layer) => this.change({ layer: Math.min(layer, store.layers.at(-1)!) }), (task) => this.set({ task }));
    this.#knockouts = new KnockoutCard(store, (patch) => this.change(patch));
    this.#next = new NextCard(store);
    this.#display = displayMenu(() => this.view, (patch) => this.set(patch));
    this.#compare = h("button", { class: "button", type: "button", "aria-pressed": "false", title: "Two examples or layers side by side (c)", onclick: () => this.compare() }, "Compare");
    this.#header = header(this.#title(), {
      meter, opening, copy: () => void this.copyLink(), before: [this.#compare, this.#display.element, actionMenu("Download", [["Picture (PNG)", () => void this.png()], ["Numbers (CSV)", () => this.csv()]])],
    });
    this.#main = h("main", {}, this.#list.element, this.#stage, h("div", { class: "side" }, this.#grid.element, this.#share.element, this.#probe.element, this.#knockouts.element, this.#next.element), this.#tokens);
    root.replaceChildren(this.#header, this.#main, this.#notice, this.#live);
    onMapsRead((done, total) => setText(this.#live, done < total ? `reading maps, ${done} of ${total}` : "maps read"));
    this.#arrange();
    this.#update();
  }

  get #pane(): PaneView {
    return this.view[this.view.active] ?? this.view.a;
  }

  get lists(): ExampleList {
    return this.#list;
  }

  offerResults(results: Results | null, why?: string): void {
    this.#results = results;
    this.#probe.offer(results, why);
    void this.#probe.show(this.#pane.example, this.#pane.layer, this.view.task);
    // flows shown so far are bounds
    for (const which of ["a", "b"] as const) if (this.view[which]?.measure === "flow") void this.#panes[which]?.show(this.view[which]!);
  }

  /** Change what one pane shows; both layers, where they move together. */
  change(patch: Partial<PaneView>, which: Which = this.view.active): void {
    const target = this.view[which];
    if (!target) return;
    const other = this.view[which === "a" ? "b" : "a"];
    const next = this.#fittedPane({ ...target, ...patch });
    const view = { ...this.view, [which]: next };
    if (this.view.together && other && patch.layer !== undefined) view[which === "a" ? "b" : "a"] = { ...other, layer: next.layer };
    this.view = view;
    this.#update();
  }

  set(patch: Partial<View>): void {
    this.view = this.#fitted({ ...this.view, ...patch });
    this.#update();
  }

  /** Say what of a link is not shown: what means nothing, and what lies outside the store. */
  leaveOut(given: View, ignored: readonly string[]): void {
    const all = [...ignored];
    for (const [prefix, asked, shown] of [["", given.a, this.view.a], ["b.", given.b, this.view.b]] as const) {
      if (!asked || !shown) continue;
      for (const key of ["example", "layer", "head"] as const) {
        if (asked[key] !== shown[key] && !(key === "layer" && asked[key] === START.a.layer)) all.push(`${prefix}${key}=${asked[key]}`);
      }
      for (const key of ["mode", "window"] as const) if (asked[key] && asked[key] !== shown[key]) all.push(`${prefix}${key}=${asked[key]}`);
    }
    const told = all.slice(0, MOST_TOLD).map((what) => `“${visible(what.length > LONGEST_TOLD ? `${what.slice(0, LONGEST_TOLD)}…` : what)}”`);
    if (all.length > MOST_TOLD) told.push(`${all.length - MOST_TOLD} more`);
    this.#notice.hidden = !all.length;
    this.#notice.replaceChildren();
    if (!all.length) return;
    this.#notice.append(h("span", {}, `Left out of the link, as this store or page has no such thing: ${told.join(", ")}.`),
      h("button", { class: "button", type: "button", onclick: () => { this.#notice.replaceChildren(); this.#notice.hidden = true; } }, "Close"));
  }

  /** A link was followed: show all that it says. */
  follow(view: View): void {
    const before = this.view;
    this.view = this.#fitted(view);
    this.#arrange();
    if (before.query !== view.query || before.relation !== view.relation || before.outcome !== view.outcome) this.#list.find();
    this.#update();
  }

  compare(): void {
    this.stop();
    this.view = this.view.b ? { ...this.view, b: null, active: "a" } : { ...this.view, b: { ...this.view.a }, active: "b" };
    this.#arrange();
    this.#update();
    setText(this.#live, this.view.b ? "Comparing: choices now go to view B." : "One view.");
  }

  swap(): void {
    if (this.view.b) this.#activate(this.view.active === "a" ? "b" : "a");
  }

  step(by: number): void {
    const k = clamp(this.store.layers.indexOf(this.#pane.layer) + by, 0, this.store.layers.length - 1);
    this.change({ layer: this.store.layers[k]! });
  }

  play(): void {
    if (this.#playing) return this.stop();
    if (this.#pane.layer === this.store.layers.at(-1)) this.change({ layer: this.store.layers[0]! });
    this.#playing = setInterval(() => (this.#pane.layer === this.store.layers.at(-1) ? this.stop() : this.step(1)), PLAY_MS);
    this.#main.classList.add("playing");
  }

  stop(): void {
    clearInterval(this.#playing);
    this.#playing = undefined;
    this.#main.classList.remove("playing");
  }

  async copyLink(): Promise<void> {
    this.#write();
    try {
      await navigator.clipboard.writeText(location.href);
      setText(this.#live, "Link copied.");
    } catch {
      setText(this.#live, "The browser does not let this page copy: copy the address above.");
    }
    const button = this.#header.querySelector(".copy");
    if (button) {
      setText(button, "Copied");
      setTimeout(() => setText(button, "Copy link"), 1200);
    }
  }

  async png(): Promise<void> {
    const model = (this.store.provenance["model"] as { name?: string } | undefined)?.name ?? "";
    save(await picturePng(this.#named(), this.view, `${this.store.files.name} · ${model} · Stratascope`), `${this.#fileName()}.png`);
  }

  csv(): void {
    save(new Blob([numbersCsv(this.#named(), this.store.layers)], { type: "text/csv" }), `${this.#fileName()}.csv`);
  }

  close(): void {
    this.stop();
    clearTimeout(this.#writing);
    this.#client.close();
  }

  #named(): Named[] {
    return (["a", "b"] as const).flatMap((which) => {
      const [pane, view] = [this.#panes[which], this.view[which]];
      const row = view && this.#known.get(view.example);
      return pane && view ? [{ pane, view, id: row?.id ?? String(view.example), caption: row?.caption ?? "" }] : [];
    });
  }

  #fileName(): string {
    const { example, layer, measure } = this.view.a;
    return `${this.store.files.name.replace(/[^\w.-]+/g, "_")}-${example}-${measure}-layer${layer}${this.view.b ? "-compared" : ""}`;
  }

  #fitted(view: View): View {
    return { ...view, a: this.#fittedPane(view.a), b: view.b && this.#fittedPane(view.b) };
  }

  #fittedPane(pane: PaneView): PaneView {
    const { layers, heads, layout } = this.store;
    // at two thirds of the depth is where most decoders look at the image
    const layer = layers.includes(pane.layer) ? pane.layer : pane.layer < 0 ? layers[Math.floor((layers.length * 2) / 3)]! : layers.at(-1)!;
    const hiding = pane.measure === "knockout" ? hidingOf(this.store, pane.mode, pane.window) : {};
    return { ...pane, ...hiding, layer, head: clamp(pane.head, 0, heads - 1), example: clamp(pane.example, 0, layout.examples - 1) };
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
    for (const which of ["a", "b"] as const) {
      const pane = this.#panes[which];
      if (!pane) continue;
      pane.element.classList.toggle("active", this.view.active === which && this.view.b !== null);
      void pane.show(this.view[which]!);
    }
    this.#list.choose(this.#pane.example);
    this.#display.sync();
    this.#cards();
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
      this.#strips[which].build(pane.shown);
      this.#caption(which);
    }
    this.#strips[which].tint(view, this.view);
    if (which !== this.view.active) return;
    this.#cards();
    if (pane.shown && what === "weights") setText(this.#live, summary(pane.shown, view));
    if (this.#first && (what === "weights" || pane.fault)) {
      this.#first = false;
      this.#client.ask({ ask: "more" });
      document.documentElement.dataset["ready"] = "first-view";
    }
  }

  #cards(): void {
    const pane = this.#panes[this.view.active];
    const shown = pane?.shown ?? null;
    const view = this.#pane;
    this.#grid.show(shown, view);
    void this.#probe.show(view.example, view.layer, this.view.task);
    void this.#shares(view);
    const recorded = shown?.logits && shown.prompt.example === view.example ? view.example : null;
    void this.#knockouts.show(recorded, view);
    void this.#next.show(recorded);
  }

  /** Shares of all layers: of the map shown where it is at hand, else of the mean attention. */
  async #shares(view: PaneView): Promise<void> {
    const shown = this.#panes[this.view.active]?.shown ?? null;
    if (!shown?.logits) return this.#share.show(null, null, view, "attention");
    const facts = MEASURES[view.measure];
    const own = shown.layers && facts.unit === "share" && facts.additive ? shown.layers : null;
    const mean = { measure: "attention", heads: "mean", head: 0, mode: "", window: "" } as const;
    const rows = own ?? (unavailable(this.store, mean) || !this.store.has("attention_mean") ? null : await allLayers(this.store, shown.prompt, mean).catch(() => null));
    if (shown === this.#panes[this.view.active]?.shown) this.#share.show(shown, rows, view, own ? view.measure : "attention");
  }

  #wanted(example: number): boolean {
    return this.view.a.example === example || this.view.b?.example === example;
  }

  #askRows(): void {
    for (const pane of [this.view.a, this.view.b]) if (pane && !this.#known.has(pane.example)) this.#client.ask({ ask: "example", example: pane.example });
    for (const which of ["a", "b"] as const) this.#caption(which);
  }

  #hearRow(row: Row): void {
    this.#known.set(row.example, row);
    for (const which of ["a", "b"] as const) if (this.view[which]?.example === row.example) this.#caption(which);
  }

  /** The caption from the list, or until that is read from the prompt's own tokens. */
  #caption(which: Which): void {
    const [pane, view] = [this.#panes[which], this.view[which]];
    if (!pane || !view) return;
    const row = this.#known.get(view.example);
    const shown = pane.shown?.prompt.example === view.example ? pane.shown : null;
    const span = shown?.prompt.spans.get("caption");
    const spoken = shown?.words && span ? shown.words.slice(...span).join("").replace(/[Ġ▁]/g, " ").trim() : "";
    pane.caption(row?.caption || row?.id || spoken || `Example ${view.example}`, row && row.label >= 0 ? row.label : null);
  }

  #title() {
    const { layout, provenance } = this.store;
    const model = provenance["model"];
    const name = typeof model === "string" ? model : (model as { name?: string } | null)?.name ?? "";
    const condition = provenance["condition"];
    return {
      name: this.store.files.name,
      about: [name, `${counted(layout.examples)} examples`, `${layout.layers} layers`, `${layout.heads} heads`, typeof condition === "string" ? condition : ""].filter(Boolean).join(" · "),
    };
  }

  /** What a link to this view is called. */
  get label(): string {
    return describe(this.#pane);
  }
}

