/** Two kinds of chart over layers, drawn as SVG: lines, and shares stacked upon each other. */

import { s } from "./dom.ts";

export interface Series { name: string; colour: string; dash?: string; values: readonly number[]; strong?: boolean; low?: readonly number[]; high?: readonly number[] }

interface LayerChart {
  layers: readonly number[];
  series: readonly Series[];
  kind: "lines" | "stacked";
  domain: readonly [number, number];
  /** Where a dotted line with a word stands. */
  reference?: { value: number; name: string };
  label: string;
  tick: (value: number) => string;
  onPick: (layer: number) => void;
}

export interface DrawnChart { svg: SVGSVGElement; mark: (layer: number) => void; layerAt: (clientX: number) => number }

const WIDTH = 400;
const HEIGHT = 150;
const LEFT = 40;
const RIGHT = 100;
const TOP = 8;
const BOTTOM = 20;
const LINE = 13;

export function drawChart(chart: LayerChart, width = WIDTH, height = HEIGHT): DrawnChart {
  const { layers, domain: [low, high] } = chart;
  const x = (k: number) => LEFT + ((width - LEFT - RIGHT) * k) / Math.max(1, layers.length - 1);
  const y = (value: number) => TOP + (height - TOP - BOTTOM) * (1 - (value - low) / (high - low || 1));
  const marks = chart.kind === "stacked" ? stacked(chart, x, y) : lines(chart, x, y);
  const cursor = s("line", { class: "cursor", y1: TOP - 3, y2: height - BOTTOM });
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": chart.label, class: "chart" },
    axisY(chart, y, width), axisX(layers, x, height), ...marks.shapes, ...named(chart, marks.ends, y, width, height),
    ...(chart.reference ? [reference(chart.reference, y, width)] : []), cursor);
  const layerAt = (clientX: number) => {
    const box = svg.getBoundingClientRect();
    const place = ((clientX - box.left) * width) / box.width;
    const k = Math.round(((place - LEFT) / (width - LEFT - RIGHT)) * (layers.length - 1));
    return layers[Math.min(layers.length - 1, Math.max(0, k))]!;
  };
  svg.addEventListener("click", (event) => chart.onPick(layerAt(event.clientX)));
  return {
    svg, layerAt,
    mark(layer) {
      let k = layers.indexOf(layer);
      if (k < 0) k = layers.findLastIndex((l) => l <= layer);
      cursor.setAttribute("x1", String(x(Math.max(0, k))));
      cursor.setAttribute("x2", String(x(Math.max(0, k))));
    },
  };
}

type Place = (value: number) => number;

function lines(chart: LayerChart, x: Place, y: Place) {
  const ends = chart.series.map(({ values }) => values.at(-1) ?? 0);
  const path = (values: readonly number[]) => values.map((v, k) => `${k ? "L" : "M"}${x(k).toFixed(1)} ${y(v).toFixed(1)}`).join("");
  const bands = chart.series.flatMap(({ low, high, colour }) => {
    if (!low?.every(Number.isFinite) || !high?.every(Number.isFinite)) return [];
    const back = low.map((v, k) => `L${x(k).toFixed(1)} ${y(v).toFixed(1)}`).reverse().join("");
    return [s("path", { d: `${path(high)}${back}Z`, fill: colour, class: "band" })];
  });
  const shapes = chart.series.map(({ values, colour, dash, strong }) => s("path", {
    d: path(values), fill: "none", stroke: colour,
    "stroke-width": strong ? 2.4 : 1.5, "stroke-dasharray": dash, "stroke-linejoin": "round",
  }));
  return { shapes: [...bands, ...shapes], ends };
}

function stacked(chart: LayerChart, x: Place, y: Place) {
  const base = chart.layers.map(() => 0);
  const ends: number[] = [];
  const shapes = chart.series.map(({ values, colour }) => {
    const lower = base.map((v, k) => `L${x(k).toFixed(1)} ${y(v).toFixed(1)}`).reverse().join("");
    values.forEach((v, k) => (base[k]! += v));
    const upper = base.map((v, k) => `${k ? "L" : "M"}${x(k).toFixed(1)} ${y(v).toFixed(1)}`).join("");
    ends.push(base.at(-1)! - (values.at(-1) ?? 0) / 2);
    return s("path", { d: `${upper}${lower}Z`, fill: colour, class: "area" });
  });
  return { shapes, ends };
}

/** Names at the lines' ends, moved apart so that none covers another. */
function named(chart: LayerChart, ends: readonly number[], y: Place, width: number, height: number): SVGElement[] {
  const order = ends.map((end, k) => ({ k, at: y(end) })).sort((p, q) => (chart.kind === "stacked" ? q.k - p.k : p.at - q.at));
  order.forEach((one, n) => (one.at = Math.max(one.at, n ? order[n - 1]!.at + LINE : TOP + 4)));
  for (let n = order.length - 1, limit = height - BOTTOM; n >= 0; n--, limit -= LINE) order[n]!.at = Math.min(order[n]!.at, limit);
  return order.map(({ k, at }) => {
    const { name, colour, dash, strong } = chart.series[k]!;
    const left = width - RIGHT + 8;
    const sample = chart.kind === "stacked" ? s("rect", { x: left, y: at - 4, width: 8, height: 8, rx: 2, fill: colour })
      : s("path", { d: `M${left - 2} ${at}h12`, stroke: colour, "stroke-width": strong ? 2.4 : 1.6, "stroke-dasharray": dash });
    return s("g", {}, sample, s("text", { x: left + 13, y: at + 3.5, class: strong ? "name strong" : "name" }, name));
  });
}

function axisY({ domain: [low, high], tick }: LayerChart, y: Place, width: number): SVGElement {
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((t) => low + t * (high - low));
  return s("g", { class: "axis" }, ticks.map((value, k) => s("g", {},
    s("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: "rule" }),
    k % 2 ? null : s("text", { x: LEFT - 6, y: y(value) + 3.5, "text-anchor": "end" }, tick(value)))));
}

function axisX(layers: readonly number[], x: Place, height: number): SVGElement {
  const step = Math.max(1, Math.ceil(layers.length / 8));
  return s("g", { class: "axis" }, layers.map((layer, k) => (k % step ? null
    : s("text", { x: x(k), y: height - 6, "text-anchor": "middle" }, String(layer)))));
}

function reference({ value, name }: { value: number; name: string }, y: Place, width: number): SVGElement {
  return s("g", { class: "axis" }, s("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: "reference" }),
    s("text", { x: width - RIGHT - 3, y: y(value) - 4, "text-anchor": "end" }, name));
}
