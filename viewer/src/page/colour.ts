/** Colours of weights: even in lightness, and told apart by colour-blind readers too. */

import { interpolateCividis, interpolateInferno, interpolatePuOr, interpolateViridis } from "d3-scale-chromatic";

export type Rgb = readonly [red: number, green: number, blue: number];
export type Palette = "inferno" | "viridis" | "cividis";
export const PALETTES: readonly Palette[] = ["viridis", "inferno", "cividis"];

const STEPS = 256;

function table(colour: (t: number) => string, from = 0, to = 1): Rgb[] {
  return Array.from({ length: STEPS }, (_, k) => parsed(colour(from + ((to - from) * k) / (STEPS - 1))));
}

function parsed(text: string): Rgb {
  if (text.startsWith("#")) return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16)) as unknown as Rgb;
  return text.match(/[\d.]+/g)!.slice(0, 3).map(Number) as unknown as Rgb;
}

const TABLES: Record<Palette, Rgb[]> = {
  // the ends are left out: black would hide the image, and the lightest has no contrast with white
  inferno: table(interpolateInferno, 0.12, 0.97),
  viridis: table(interpolateViridis),
  cividis: table(interpolateCividis),
};
/** Below zero violet, above orange. */
const DIVERGING = table(interpolatePuOr);

/** Colour of a weight on the scale from 0 to 1, or from -1 to 1 where it is signed. */
export function colourOf(t: number, palette: Palette, signed: boolean): Rgb {
  const place = signed ? (t + 1) / 2 : t;
  return (signed ? DIVERGING : TABLES[palette])[Math.round((STEPS - 1) * Math.min(1, Math.max(0, place || 0)))]!;
}

export const css = ([r, g, b]: Rgb, alpha = 1): string => `rgb(${Math.round(r)} ${Math.round(g)} ${Math.round(b)} / ${alpha})`;

/** Black or white, whichever is easier to read on a colour. */
export function inkOn([r, g, b]: Rgb): string {
  const linear = (v: number) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  return light > 0.179 ? "#000" : "#fff";
}

export const mix = (a: Rgb, b: Rgb, t: number): Rgb => [0, 1, 2].map((k) => a[k]! + (b[k]! - a[k]!) * t) as unknown as Rgb;
