/** What single keys do, wherever the focus is but in a field. */

import { MEASURES, offered } from "../store/measures.ts";
import type { App } from "./app.ts";
import { helpDialog } from "./dialogs.ts";
import { switchTheme } from "./theme.ts";
import { nextHeads, nextMeasure } from "./view.ts";

export function listenToKeys(app: () => App | null): void {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const target = event.target as HTMLElement;
    const typing = target.matches?.("input:not([type=range]):not([type=checkbox]), select, textarea");
    if (typing) {
      if (event.key === "Escape") target.blur();
      return;
    }
    const shown = app();
    // a button's own keys are its own, and a slider's
    if (event.key === " " && target.matches?.("button, summary, input:not([type=range])")) return;
    if (event.key.startsWith("Arrow") && target.matches?.("input[type=range]")) return;
    const act = anywhere[event.key] ?? (shown ? actions(shown)[event.key] : undefined);
    if (!act) return;
    event.preventDefault();
    act();
  });
}

const anywhere: Record<string, () => void> = { "?": helpDialog, t: switchTheme };

function actions(app: App): Record<string, () => void> {
  const { view } = app;
  const pane = view[view.active] ?? view.a;
  const head = (by: number) => app.change({ heads: "one", head: pane.head + by, measure: MEASURES[pane.measure].perHead ? pane.measure : "attention" });
  const measures = offered(app.store);
  const overlays = ["heat", "spotlight", "off"] as const;
  return {
    ArrowRight: () => app.step(1), ArrowLeft: () => app.step(-1), " ": () => app.play(), j: () => app.list.step(1), k: () => app.list.step(-1),
    "/": () => { app.list.unfold(true); app.list.search.focus(); }, m: () => app.change({ measure: nextMeasure(measures, pane.measure) }), M: () => app.change({ measure: nextMeasure(measures, pane.measure, -1) }),
    h: () => app.change({ heads: nextHeads(pane.heads) }), "[": () => head(-1), "]": () => head(1), e: () => app.turn(), c: () => app.compare(), x: () => app.swap(),
    o: () => app.set({ overlay: overlays[(overlays.indexOf(view.overlay) + 1) % 3]! }), b: () => app.set({ boxes: !view.boxes }),
    l: () => void app.copyLink(), p: () => void app.exports.png(), v: () => app.exports.csv(), Escape: () => { app.stop(); app.list.unfold(false); },
  };
}
