/** The cards beside the image: heads, shares, probe, knockouts, next tokens, and what else the row of the example says. */

import type { Results } from "../results/results.ts";
import { MEASURES } from "../store/measures.ts";
import { conditionOf } from "../store/provenance.ts";
import type { Store } from "../store/store.ts";
import { KnockoutCard, NextCard } from "./answer-cards.ts";
import { ProbeCard, ShareCard, toDivide } from "./cards.ts";
import { h } from "./dom.ts";
import { HeadGrid } from "./head-grid.ts";
import type { Shown } from "./pane.ts";
import { RowCard } from "./row-card.ts";
import type { PaneView, View } from "./view.ts";

interface SideHost {
  store: Store;
  view: () => View;
  /** What the active pane shows, and what of it is read. */
  pane: () => PaneView;
  shown: () => Shown | null;
  change: (patch: Partial<PaneView>) => void;
  set: (patch: Partial<View>) => void;
}

export class Side {
  readonly element: HTMLElement;
  readonly #host: SideHost;
  readonly #grid: HeadGrid;
  readonly #share: ShareCard;
  readonly #probe: ProbeCard;
  readonly #knockouts: KnockoutCard;
  readonly #next: NextCard;
  readonly #row: RowCard;

  constructor(host: SideHost) {
    this.#host = host;
    const { store, view, pane, change, set } = host;
    this.#grid = new HeadGrid({
      store, view, colourBy: (grid) => set({ grid }),
      pick: (layer, head) => change({ layer, head, heads: "one", measure: MEASURES[pane().measure].perHead ? pane().measure : "attention" }),
    });
    this.#share = new ShareCard(store.layers, (layer) => change({ layer }));
    // layer k of the residual stream is what enters block k: the last has no block
    this.#probe = new ProbeCard(conditionOf(store.provenance), (layer) => change({ layer: Math.min(layer, store.layers.at(-1)!) }), (task) => set({ task }));
    this.#knockouts = new KnockoutCard(store, change);
    this.#next = new NextCard(store);
    this.#row = new RowCard(store);
    this.element = h("div", { class: "side" }, this.#grid.element, this.#share.element, this.#probe.element, this.#knockouts.element, this.#next.element, this.#row.element);
  }

  offer(results: Results | null, why?: string): void {
    this.#probe.offer(results, why);
  }

  /** Show the active pane's example; the rest of its row only where `row`, once something is shown. */
  show(row: boolean): void {
    const view = this.#host.pane();
    const shown = this.#host.shown();
    this.#grid.show(shown, view);
    this.probe();
    void this.#shares(view);
    const recorded = shown?.logits && shown.prompt.example === view.example ? view.example : null;
    void this.#knockouts.show(recorded, view);
    void this.#next.show(recorded);
    if (row) void this.#row.show(view.example);
  }

  probe(): void {
    const view = this.#host.pane();
    void this.#probe.show(view.example, view.layer, this.#host.view().task);
  }

  async #shares(view: PaneView): Promise<void> {
    const shown = this.#host.shown();
    if (!shown?.logits) return this.#share.show(null, null, view, "");
    const { rows, how } = await toDivide(this.#host.store, shown, view);
    if (shown === this.#host.shown() && view === this.#host.pane()) this.#share.show(shown, rows, view, how);
  }
}
