/** What else the row of an example says: fields that a data set brought along. */

import { faultOf } from "../fault.ts";
import { fields, hasFields } from "../store/fields.ts";
import type { Store } from "../store/store.ts";
import { h, worded } from "./dom.ts";
import { visible } from "./token-text.ts";

export class RowCard {
  readonly element: HTMLElement;
  readonly #store: Store;
  readonly #list = h("dl", { class: "fields" });
  #example = -1;

  constructor(store: Store) {
    this.#store = store;
    this.element = h("section", { class: "card", hidden: !hasFields(store) }, h("h2", {}, "Of this row"), this.#list);
  }

  async show(example: number): Promise<void> {
    if (this.element.hidden || example === this.#example) return;
    this.#example = example;
    let found: HTMLElement[];
    try {
      found = (await fields(this.#store, example)).flatMap(([name, value]) => [h("dt", {}, name), h("dd", { dir: "auto" }, value === null ? "–" : visible(value))]);
    } catch (error) {
      const { message, todo } = faultOf(error);
      found = [h("dd", {}, worded(`${message} ${todo}`))];
    }
    if (example === this.#example) this.#list.replaceChildren(...found);
  }
}
