/** The bar at the top of the page. */

import type { Meter } from "../bytes/files.ts";
import { departure, modelName } from "../store/provenance.ts";
import type { Store } from "../store/store.ts";
import { helpDialog, openDialog, type Opening } from "./dialogs.ts";
import { h, setText } from "./dom.ts";
import { bytes, counted } from "./numbers.ts";
import { switchTheme } from "./theme.ts";

interface HeaderParts { meter?: Meter; opening: Opening; copy?: () => void; before?: Node[] }

interface Title { name: string; about: string; departure?: string }

/** What is open: its name, what sets it apart from the trained model on untouched images, and its size. */
export function titleOf({ files, imported, layers, layout, provenance }: Store): Title {
  const held = imported ? [`imported from ${imported}`, `${layers.length} ${layers.length === 1 ? "layer" : "layers"}`] : [`${layout.layers} layers`, `${layout.heads} heads`];
  const about = [modelName(provenance), `${counted(layout.examples)} examples`, ...held];
  return { name: files.name, departure: departure(provenance), about: about.filter(Boolean).join(" · ") };
}

export function header(title: Title, { meter, opening, copy, before = [] }: HeaderParts): HTMLElement {
  const read = h("span", { class: "meter num", title: "Read from this store so far" });
  const tell = () => meter?.requests && setText(read, `${bytes(meter.bytes)} · ${counted(meter.requests)} reads`);
  meter?.addEventListener("change", tell);
  tell();
  return h("header", {}, h("span", { class: "mark", "aria-hidden": "true" }, h("i"), h("i"), h("i")), h("h1", {}, title.name), title.departure ? h("strong", { class: "departure" }, title.departure) : null, h("span", { class: "about" }, title.about), h("span", { class: "grow" }), read,
    ...before, copy ? h("button", { class: "button copy", type: "button", title: "Link to this view (l)", onclick: copy }, "Copy link") : null,
    h("button", { class: "button", type: "button", onclick: () => openDialog(opening) }, "Open…"),
    h("button", { class: "button icon", type: "button", "aria-label": "Light or dark", title: "Light or dark (t)", onclick: switchTheme }, "◐"),
    h("button", { class: "button icon", type: "button", "aria-label": "Keys", title: "Keys (?)", onclick: helpDialog }, "?"));
}
