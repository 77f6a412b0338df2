/** What needs no browser: search, scales, links, fused heads, probabilities. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { Corpus } from "../src/list/corpus.ts";
import { makeScale } from "../src/page/scale.ts";
import { visible } from "../src/page/token-text.ts";
import { START, fromHash, toHash, type View } from "../src/page/view.ts";
import { chances } from "../src/results/results.ts";
import { fused } from "../src/store/measures.ts";
import { RecentlyUsed } from "../src/store/recently-used.ts";

const words = ["cat", "Dog", "ÄPFEL", "İstanbul", "ß", "under", "the", "the the", "", "a\nb", "x\ty"];

test("search finds what looking at every row finds", () => {
  const rows = Array.from({ length: 500 }, (_, k) => [words[k % 11], words[(k * 7) % 11], words[(k * 3) % 5], k].join(" "));
  const corpus = new Corpus();
  for (let k = 0; k < rows.length; k += 64) corpus.push(rows.slice(k, k + 64));
  assert.equal(corpus.length, 500);
  rows.forEach((row, k) => assert.equal(corpus.at(k), row.replaceAll("\n", " ")));
  for (const query of ["", "cat", "DOG", "äpfel cat", "the the", "istanbul", "ß 4", "99", "nothing", " under  dog ", "a b"]) {
    const parts = query.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = rows.flatMap((row, k) => (parts.every((p) => row.replaceAll("\n", " ").toLowerCase().includes(p)) ? [k] : []));
    assert.deepEqual([...corpus.search(query)], wanted, query);
  }
  assert.equal(corpus.at(500), "");
  assert.equal(corpus.at(-1), "");
});

test("a link says all of a view, and nothing but what differs", () => {
  assert.equal(toHash(START), "");
  const view: View = {
    ...START, a: { example: 7, layer: 3, measure: "rollout", heads: "max", head: 2 }, b: { example: 0, layer: 0, measure: "attention", heads: "one", head: 0 },
    active: "b", together: true, overlay: "off", scale: "log", palette: "viridis", strength: 0.35, smooth: true, boxes: true, grid: "object",
    task: "truth:shuffled", query: "a&b=c #1", relation: "left of", outcome: "wrong", store: "https://x.example/y?z=1#q",
  };
  assert.deepEqual(fromHash(`#${toHash(view)}`), view);
});

test("a hostile link gives a view all the same", () => {
  const view = fromHash("#example=1e999&layer=x&measure=__proto__&heads=&strength=99&smooth=maybe&palette=constructor&b.example=NaN&toString=1");
  assert.equal(view.a.example, 0);
  assert.equal(view.a.measure, "attention");
  assert.equal(view.strength, 1);
  assert.equal(view.palette, "inferno");
  assert.equal(view.b?.example, 0);
});

test("heads are fused as they are called", () => {
  const heads = [Float64Array.of(1, -4, 0), Float64Array.of(2, 3, -1)];
  const how = (measure: "attention" | "attribution", over: "mean" | "max" | "one", head = 0) => [...fused(heads, { measure, heads: over, head })];
  assert.deepEqual(how("attention", "mean"), [1.5, -0.5, -0.5]);
  assert.deepEqual(how("attribution", "mean"), [3, -1, -1]);
  assert.deepEqual(how("attribution", "max"), [2, -4, -1]);
  assert.deepEqual(how("attention", "one", 1), [2, 3, -1]);
});

test("scales keep order and sign, and a sink does not hide the rest", () => {
  const weights = [...Array.from({ length: 99 }, (_, k) => k / 1000), 50];
  for (const kind of ["layer", "log"] as const) {
    const scale = makeScale(kind, weights, false);
    assert.ok(scale.clipped && scale.high < 1);
    for (let k = 1; k < 100; k++) assert.ok(scale.at(weights[k]!) >= scale.at(weights[k - 1]!));
    assert.equal(scale.at(50), 1);
  }
  const signed = makeScale("layer", [-2, 1], true);
  assert.deepEqual([signed.at(-2), signed.at(1), signed.low], [-1, 0.5, -2]);
  assert.equal(makeScale("layer", [0, 0], false).at(0), 0);
});

test("probabilities of one logit and of several", () => {
  assert.deepEqual(chances([0]), [0.5, 0.5]);
  assert.ok(Math.abs(chances([2])[1]! - 1 / (1 + Math.exp(-2))) < 1e-15);
  assert.ok(Math.abs(chances([1000, 0, 0]).reduce((a, b) => a + b) - 1) < 1e-15);
});

test("tokens show their blanks and hide nothing", () => {
  assert.equal(visible("Ġthe"), "·the");
  assert.equal(visible("▁the"), "·the");
  assert.equal(visible("\n"), "⏎");
  assert.equal(visible(""), "∅");
  assert.equal(visible("a\u202eb\u0000"), "a⟨202e⟩b⟨0⟩");
});

test("what was used last stays", () => {
  const kept = new RecentlyUsed<number>(10);
  kept.set("a", 1, 4);
  kept.set("b", 2, 4);
  kept.get("a");
  kept.set("c", 3, 4);
  assert.deepEqual([kept.get("a"), kept.get("b"), kept.get("c")], [1, undefined, 3]);
  kept.set("d", 4, 99);
  assert.deepEqual([kept.get("a"), kept.get("c"), kept.get("d")], [undefined, undefined, 4]);
});
