/** Elements made of names and text; nothing here ever reads markup. */

type Child = Node | string | null | undefined | false;
type Props = Record<string, unknown>;

export function h<K extends keyof HTMLElementTagNameMap>(tag: K, props?: Props | null, ...children: (Child | Child[])[]): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  apply(element, props);
  element.append(...children.flat().filter((c): c is Node | string => c !== null && c !== undefined && c !== false));
  return element;
}

export function s<K extends keyof SVGElementTagNameMap>(tag: K, props?: Props | null, ...children: (Child | Child[])[]): SVGElementTagNameMap[K] {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  apply(element, props);
  element.append(...children.flat().filter((c): c is Node | string => c !== null && c !== undefined && c !== false));
  return element;
}

function apply(element: HTMLElement | SVGElement, props?: Props | null): void {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value as EventListener);
    else if (name === "style") Object.assign(element.style, value);
    else if (name === "class") element.setAttribute("class", String(value));
    else if (name in element && element instanceof HTMLElement && typeof value !== "string") (element as unknown as Props)[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
}

/** Set text only where it differs, so that nothing is announced or laid out again. */
export function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

/** Words as they are read: what stands in backticks is something to type, and set as that. */
export function worded(text: string): (string | Node)[] {
  return text.split("`").map((part, k, all) => (k % 2 && k < all.length - 1 ? h("code", {}, part) : k % 2 ? `\`${part}` : part));
}

/** The same in place of what stood there, only where it differs. */
export function setWorded(element: Element, text: string): void {
  const parts = worded(text);
  if (element.textContent !== parts.map((part) => (typeof part === "string" ? part : part.textContent)).join("")) element.replaceChildren(...parts);
}

let lastId = 0;
export const freshId = (name: string): string => `${name}-${++lastId}`;

const tip = h("div", { class: "tip", hidden: true, "aria-hidden": "true" });

export function showTip(x: number, y: number, text: string): void {
  if (!tip.isConnected) document.body.append(tip);
  setText(tip, text);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 6))}px`;
  tip.style.top = `${y + 18 + height > innerHeight ? y - height - 10 : y + 16}px`;
}

export function hideTip(): void {
  tip.hidden = true;
}
