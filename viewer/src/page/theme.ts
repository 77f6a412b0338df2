/** Light or dark: the system's choice until the reader makes one. */

export function switchTheme(): void {
  const root = document.documentElement;
  const dark = root.dataset["theme"] ? root.dataset["theme"] === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset["theme"] = dark ? "light" : "dark";
  dispatchEvent(new Event("theme"));
}

/** Call whenever colours of the page change. */
export function onTheme(act: () => void): void {
  addEventListener("theme", act);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", act);
}
