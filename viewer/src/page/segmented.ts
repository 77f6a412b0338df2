/** A row of buttons of which one is chosen, as radio buttons are. */

import { h } from "./dom.ts";

interface Segment { value: string; text: string; title?: string }
export interface Segmented {
  element: HTMLElement;
  set: (value: string) => void;
  rename: (value: string, text: string) => void;
  /** Grey out what cannot be shown, with the reason; it stays choosable, and then says why. */
  mark: (value: string, why: string | null) => void;
}

export function segmented(label: string, segments: readonly Segment[], choose: (value: string) => void): Segmented {
  const titles = new Map(segments.map(({ value, title }) => [value, title ?? ""]));
  const buttons = new Map(segments.map(({ value, text, title }) => [value,
    h("button", { type: "button", role: "radio", "data-value": value, title, "aria-checked": "false", onclick: () => choose(value) }, text)]));
  const element = h("div", { class: "segmented", role: "radiogroup", "aria-label": label }, [...buttons.values()]);
  element.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    const all = [...buttons.values()];
    const next = all[(all.indexOf(event.target as HTMLButtonElement) + by + all.length) % all.length]!;
    next.focus();
    next.click();
  });
  return {
    element,
    set(chosen) {
      for (const [value, button] of buttons) {
        button.setAttribute("aria-checked", String(value === chosen));
        button.tabIndex = value === chosen ? 0 : -1;
      }
    },
    rename(value, text) {
      const button = buttons.get(value);
      if (button && button.textContent !== text) button.textContent = text;
    },
    mark(value, why) {
      const button = buttons.get(value);
      button?.classList.toggle("lacking", why !== null);
      button?.setAttribute("title", why ?? titles.get(value) ?? "");
    },
  };
}
