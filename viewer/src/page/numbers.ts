/** How numbers are written. */

import type { MeasureFacts } from "../store/measures.ts";

const count = new Intl.NumberFormat("en");

export const clamp = (value: number, low: number, high: number): number => Math.min(high, Math.max(low, value));
export const counted = (n: number): string => count.format(n);

export function percent(value: number, digits = 2): string {
  if (!Number.isFinite(value)) return "–";
  const p = 100 * value;
  if (p === 0) return "0%";
  if (p > 0 && p < 0.01) return "<0.01%";
  const text = p.toPrecision(p >= 10 ? Math.max(2, digits) : digits);
  // what is not quite all is never written as all, nor as 1.0e+2
  return `${p >= 99.95 ? "100" : Number(text) >= 100 ? p.toFixed(1) : text}%`;
}

/** A weight as its measure counts it. */
export function weight(value: number, { unit }: MeasureFacts, digits = 3): string {
  if (!Number.isFinite(value)) return "–";
  if (unit === "share") return percent(value, digits);
  const text = Math.abs(value) >= 1e-3 || value === 0 ? value.toPrecision(digits) : value.toExponential(1);
  return unit === "logit" && value > 0 ? `+${text}` : text.replace("-", "−");
}

export function bytes(n: number): string {
  return n < 1e6 ? `${(n / 1e3).toFixed(n < 1e4 ? 1 : 0)} kB` : `${(n / 1e6).toFixed(1)} MB`;
}
