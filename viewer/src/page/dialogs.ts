/** What opens over the page: help for the keyboard, opening another store, how the map is drawn. */

import { h } from "./dom.ts";
import { PALETTES } from "./colour.ts";
import type { View } from "./view.ts";

const KEYS: readonly (readonly [keys: string[], what: string])[] = [
  [["←", "→"], "layer below, above"], [["space"], "play through the layers"], [["j", "k"], "next, previous example"], [["/"], "search the captions, ids or #number"],
  [["m", "M"], "next, previous map"], [["h"], "mean, max or one head"], [["[", "]"], "previous, next head"], [["e"], "all examples, or one"], [["c"], "compare with a second view"],
  [["x"], "go to the other view"], [["o"], "overlay: heat, spotlight, off"], [["b"], "boxes of subject and object"], [["l"], "copy the link to this view"],
  [["p"], "download the picture"], [["v"], "download the numbers"], [["t"], "light or dark"], [["?"], "these keys"],
];

function dialog(title: string, ...content: Node[]): HTMLDialogElement {
  const close = h("button", { class: "button", type: "button", onclick: () => shown.close() }, "Close");
  const shown = h("dialog", { "aria-label": title }, h("h2", {}, title), ...content, h("div", { class: "end" }, close));
  shown.addEventListener("close", () => shown.remove());
  shown.addEventListener("click", (event) => event.target === shown && !within(shown.getBoundingClientRect(), event) && shown.close());
  document.body.append(shown);
  shown.showModal();
  return shown;
}

/** The dialog's own margin is a part of it, what is behind it is not. */
const within = (box: DOMRect, { clientX: x, clientY: y }: MouseEvent) => x >= box.left && x <= box.right && y >= box.top && y <= box.bottom;

export function helpDialog(): void {
  if (document.querySelector("dialog")) return;
  dialog("Keys", h("dl", { class: "keys" }, KEYS.flatMap(([keys, what]) => [h("dt", {}, keys.map((key) => h("kbd", {}, key))), h("dd", {}, what)])),
    h("p", { class: "hint" }, "With the image in focus, arrow keys read single cells; a click on a token shows what it reads, another one the final token again; with the grid in focus, they pick a head; in the list, they choose examples; in the overview, they choose layers and examples, and Enter opens one. Enter in the search opens the example of a #number, or the first one found."));
}

export interface Opening { address: (address: string) => void; folder: (files: (readonly [path: string, file: File])[]) => void }

export function openingForms(opening: Opening, address = ""): HTMLElement[] {
  const field = h("input", { class: "field", name: "address", type: "text", inputmode: "url", required: true, placeholder: "https://bucket.example/run.zarr", "aria-label": "Address of a store", value: address });
  const form = h("form", { class: "open" }, field, h("button", { class: "button" }, "Open"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (field.value.trim()) opening.address(field.value.trim());
  });
  const picker = h("input", { type: "file", class: "sr", webkitdirectory: true, "aria-label": "Choose the folder of a store" });
  picker.addEventListener("change", () => {
    const files = [...(picker.files ?? [])].map((file) => [file.webkitRelativePath, file] as const);
    if (files.length) opening.folder(files);
  });
  return [form, h("label", { class: "button file" }, "Choose a folder on this computer", picker), h("p", { class: "hint" }, "A folder is read in place; nothing is sent anywhere.")];
}

export function openDialog(opening: Opening): void {
  const shown = dialog("Open a store", ...openingForms({
    address: (address) => { shown.close(); opening.address(address); }, folder: (files) => { shown.close(); opening.folder(files); },
  }));
}

/** The menu of how the map is drawn. */
export function displayMenu(view: () => View, change: (patch: Partial<View>) => void): { element: HTMLElement; sync: () => void } {
  const select = (label: string, key: "scale" | "palette" | "overlay", options: readonly (readonly [string, string])[]) => {
    const list = h("select", { onchange: () => change({ [key]: list.value } as Partial<View>) }, options.map(([value, text]) => h("option", { value }, text)));
    return { row: h("label", {}, label, list), sync: () => (list.value = String(view()[key])) };
  };
  const check = (label: string, key: "smooth" | "boxes" | "together") => {
    const box = h("input", { type: "checkbox", onchange: () => change({ [key]: box.checked }) });
    return { row: h("label", {}, label, box), sync: () => (box.checked = view()[key]) };
  };
  const strength = h("input", { type: "range", min: "0.2", max: "1", step: "0.05", oninput: () => change({ strength: Number(strength.value) }) });
  const rows = [
    select("Overlay", "overlay", [["heat", "heat"], ["spotlight", "spotlight"], ["off", "off"]]),
    select("Colour scale", "scale", [["all", "same for all layers"], ["layer", "of each layer"], ["log", "logarithmic"]]),
    select("Colours", "palette", PALETTES.map((name) => [name, name] as const)),
    { row: h("label", {}, "Strength", strength), sync: () => (strength.value = String(view().strength)) },
    check("Smooth between cells", "smooth"), check("Boxes of subject and object", "boxes"), check("Move both layers together", "together"),
  ];
  const element = h("details", { class: "menu" }, h("summary", { class: "button" }, "Display"), h("div", { class: "card" }, rows.map(({ row }) => row)));
  return { element, sync: () => rows.forEach(({ sync }) => void sync()) };
}

/** A menu of actions. */
export function actionMenu(name: string, actions: readonly (readonly [text: string, act: () => void])[]): HTMLElement {
  const menu = h("details", { class: "menu" }, h("summary", { class: "button" }, name), h("div", { class: "card" }, actions.map(([text, act]) =>
    h("button", { class: "button", type: "button", onclick: () => { menu.removeAttribute("open"); act(); } }, text))));
  return menu;
}

/** Menus close when something else is clicked, or by Escape. */
export function closeMenus(): void {
  const shut = (but: EventTarget | null) => document.querySelectorAll("details.menu[open]").forEach((menu) => menu.contains(but as Node) || menu.removeAttribute("open"));
  addEventListener("pointerdown", (event) => shut(event.target));
  addEventListener("keydown", (event) => event.key === "Escape" && shut(null));
}
