/** What needs no browser: search, scales, links, fused heads, probabilities. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { webAddress } from "../src/bytes/http.ts";
import { Corpus } from "../src/list/corpus.ts";
import { strongest } from "../src/page/image.ts";
import { percent } from "../src/page/numbers.ts";
import { makeScale } from "../src/page/scale.ts";
import { visible } from "../src/page/token-text.ts";
import { START, fromHash, toHash, type View } from "../src/page/view.ts";
import { chances } from "../src/results/results.ts";
import { overTokens } from "../src/store/knockouts.ts";
import { MEASURES, fused } from "../src/store/measures.ts";
import { tokenParts } from "../src/store/parts.ts";
import { RecentlyUsed } from "../src/store/recently-used.ts";
import type { Prompt } from "../src/store/store.ts";

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

test("shares are written as they are: nearly all is not all", () => {
  const written = [0, 0.00005, 0.0123, 0.138, 0.9, 0.994, 0.996, 0.9994, 0.9996, 1].map((v) => percent(v));
  assert.deepEqual(written, ["0%", "<0.01%", "1.2%", "14%", "90%", "99%", "99.6%", "99.9%", "100%", "100%"]);
  assert.equal(percent(0.9991, 4), "99.91%");
});

test("an address of the Hub is a web address", () => {
  assert.equal(webAddress("hf://datasets/me/vsr/run.zarr"), "https://huggingface.co/datasets/me/vsr/resolve/main/run.zarr");
  assert.equal(webAddress("hf://me/model@refs%2Fpr%2F1/a/run.zarr/"), "https://huggingface.co/me/model/resolve/refs%2Fpr%2F1/a/run.zarr/");
  for (const other of ["hf://datasets/me", "https://host/a@b/c", "../run.zarr"]) assert.equal(webAddress(other), other);
});

test("the strongest cell is one, or how many are alike", () => {
  assert.deepEqual(strongest([0.1, -0.7, 0.2]), { cell: 1, alike: 1 });
  assert.deepEqual(strongest([0.1, -0.7, 0.7, 0.7]), { cell: 1, alike: 3 });
  assert.deepEqual(strongest([0, 0]), { cell: 0, alike: 2 });
});

test("a link says all of a view, and nothing but what differs", () => {
  assert.equal(toHash(START), "");
  const view: View = {
    ...START, page: "overview", position: "object", residual: 3, order: "probability", shade: "right", a: { example: 7, layer: 3, measure: "rollout", heads: "max", head: 2, mode: "", window: "", token: -1 }, b: { example: 0, layer: 0, measure: "attention", heads: "one", head: 0, mode: "later", window: "0-5", token: -1 },
    active: "b", together: true, overlay: "off", scale: "log", palette: "cividis", strength: 0.35, smooth: true, boxes: true, grid: "object",
    task: "truth:shuffled", query: "a&b=c #1", relation: "left of", outcome: "wrong", store: "https://x.example/y?z=1#q",
  };
  assert.deepEqual(fromHash(`#${toHash(view)}`), view);
});

test("a hostile link gives a view all the same", () => {
  const view = fromHash("#example=1e999&layer=x&measure=__proto__&heads=&strength=99&smooth=maybe&palette=constructor&b.example=NaN&toString=1");
  assert.equal(view.a.example, 0);
  assert.equal(view.a.measure, "attention");
  assert.equal(view.strength, 1);
  assert.equal(view.palette, "viridis");
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

test("a garbled link gives a view that says all of itself, and tells what was left out", () => {
  // a generator of its own, so that every run is the same
  let state = 12345;
  const random = (n: number) => (state = (Math.imul(state, 1103515245) + 12345) >>> 0) % n;
  const keys = ["example", "layer", "measure", "heads", "head", "mode", "window", "b.example", "b.layer", "active", "overlay", "strength", "boxes", "query", "store", "__proto__", "constructor", "toString", "é", ""];
  const values = ["0", "7", "-1", "1e999", "NaN", "rollout", "one", "1", "", "<img src=x onerror=alert(1)>", "javascript:alert(1)", "%", "%ff", "\u0000", "\u202e", "a".repeat(9000), "__proto__", "later", "wrong", "☃"];
  const shapes = Object.keys(START).sort();
  for (let k = 0; k < 3000; k++) {
    const parts = Array.from({ length: random(8) }, () => `${keys[random(keys.length)]}${["=", "==", "", "=%"][random(4)]}${random(2) ? values[random(values.length)] : encodeURIComponent(values[random(values.length)]!)}`);
    const hash = `#${parts.join(["&", "&&", "#", ";"][random(4)])}`;
    const ignored: string[] = [];
    const view = fromHash(hash, (what) => ignored.push(what));
    assert.deepEqual(Object.keys(view).sort(), shapes, hash);
    for (const pane of [view.a, view.b]) {
      if (!pane) continue;
      assert.ok([pane.example, pane.layer, pane.head].every(Number.isInteger), hash);
      assert.ok(Object.hasOwn(MEASURES, pane.measure) && ["mean", "max", "one"].includes(pane.heads), hash);
    }
    assert.ok(view.strength >= 0.2 && view.strength <= 1 && view.query.length <= 2000 && view.store.length <= 2000);
    // what was understood is a link of its own that leaves out nothing
    const again: string[] = [];
    assert.deepEqual(fromHash(`#${toHash(view)}`, (what) => again.push(what)), view, hash);
    assert.deepEqual(again, []);
  }
  assert.equal(Object.getPrototypeOf(fromHash("#__proto__=1&b.__proto__=2")), Object.prototype);
  const told: string[] = [];
  fromHash("#measure=__proto__&exmaple=3&boxes=yes&b.layer=2&b.heads=none", (what) => told.push(what));
  assert.deepEqual(told.sort(), ["b.heads=none", "boxes=yes", "exmaple", "measure=__proto__"]);
});

test("what hiding did lies over the cells of its group and the tokens of its part", () => {
  const spans = new Map([["image", [1, 13]], ["subject", [14, 15]]] as [string, [number, number]][]);
  const prompt: Prompt = { example: 0, tokens: 16, ids: new Int32Array(16), grid: [3, 4], spans, hasMap: true };
  const effects = new Map([["subject", -3], ["template", 0.5], ["cell_0_0", 1], ["cell_0_1", 2], ["cell_1_0", 3], ["cell_1_1", 4]]);
  const cells = [1, 1, 2, 2, 1, 1, 2, 2, 3, 3, 4, 4];
  assert.deepEqual([...overTokens(effects, prompt, tokenParts(spans, 16))], [0.5, ...cells, 0.5, -3, 0.5]);
});
