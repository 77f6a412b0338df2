/** From weights to places on a colour scale. */

export type ScaleKind = "layer" | "all" | "log";

export interface Scale {
  kind: ScaleKind;
  low: number;
  high: number;
  /** Whether some weights lie beyond the top. */
  clipped: boolean;
  /** Place of a weight, from 0 to 1; from -1 to 1 for a signed measure. */
  at: (weight: number) => number;
}

/** A few sink tokens hold most of the attention: the scale stops here so that the rest can be seen. */
const TOP = 0.975;
const LOG_RANGE = 300;

/** `shown` is what the scale is for; `all`, the same of every layer, where one scale is to hold for all. */
export function makeScale(kind: ScaleKind, shown: ArrayLike<number>, signed: boolean, all?: readonly ArrayLike<number>[] | null): Scale {
  const source = kind === "all" && all ? all.flatMap((row) => Array.from(row)) : Array.from(shown);
  const sizes = source.map(Math.abs).filter((v) => v > 0).sort((a, b) => a - b);
  const peak = sizes.at(-1) ?? 0;
  const quantile = kind === "all" ? 0.999 : TOP;
  const high = sizes.length ? sizes[Math.min(sizes.length - 1, Math.floor(sizes.length * quantile))]! : 1;
  const clipped = peak > high * 1.001;
  if (kind === "log") {
    const low = high / LOG_RANGE;
    const at = (v: number) => Math.sign(v) * clip(Math.log(Math.max(Math.abs(v), low) / low) / Math.log(LOG_RANGE));
    return { kind, low: signed ? -high : low, high, clipped, at };
  }
  return { kind, low: signed ? -high : 0, high, clipped, at: (v) => Math.sign(v) * clip(Math.abs(v) / high) };
}

const clip = (t: number) => Math.min(1, Math.max(0, t));
