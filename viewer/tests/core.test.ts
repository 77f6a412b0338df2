/** Bytes and numbers, against fixtures that Python made and the golden store of the format. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { decodeTexts } from "../src/bytes/codecs.ts";
import { crc32c } from "../src/bytes/crc32c.ts";
import { fromHalf } from "../src/bytes/half.ts";
import { colourOf } from "../src/page/colour.ts";
import { decodeMap } from "../src/store/packing.ts";
import { PARTS, tokenParts, type Span } from "../src/store/parts.ts";
import { enteringTower, flowBounds, patchPicture, rollout, throughBlock, type Tower } from "../src/store/rollout.ts";
import { Store } from "../src/store/store.ts";
import { DiskFiles } from "./disk.ts";

const made = JSON.parse(readFileSync(new URL("../tests/fixtures.json", import.meta.url), "utf8"));
const bytes = (text: string) => new Uint8Array(Buffer.from(text, "base64"));

function close(found: ArrayLike<number>, wanted: ArrayLike<number>): void {
  assert.equal(found.length, wanted.length);
  for (let k = 0; k < wanted.length; k++) assert.ok(Math.abs(found[k]! - wanted[k]!) <= 1e-12 * Math.abs(wanted[k]!) + 1e-15, `${k}: ${found[k]} ${wanted[k]}`);
}

test("CRC-32C", () => {
  for (const [data, value] of made.crc32c) assert.equal(crc32c(bytes(data)), value);
});

test("colours are those of the figures", () => {
  const { sequential, diverging } = made.colours;
  // d3 draws a spline through the colours of the diverging map, matplotlib straight lines
  for (const [wanted, signed, most] of [[sequential, false, 3], [diverging, true, 16]]) {
    for (let k = 0; k < wanted.length; k++) {
      const place = k / (wanted.length - 1);
      const found = colourOf(signed ? 2 * place - 1 : place, "viridis", signed);
      for (let c = 0; c < 3; c++) assert.ok(Math.abs(found[c]! - wanted[k][c]) <= most, `${k}: ${found} ${wanted[k]}`);
    }
  }
});

test("half floats, to the last bit", () => {
  const wanted = made.halves.values.map((v: string) => ({ inf: Infinity, "-inf": -Infinity, nan: NaN })[v] ?? Number(v));
  assert.deepEqual([...fromHalf(Uint16Array.from(made.halves.bits))], wanted);
});

test("texts of any kind; cut off they are damage", () => {
  const data = bytes(made.texts.bytes);
  assert.deepEqual(decodeTexts(data), made.texts.texts);
  for (let end = 0; end < data.length - 1; end += 7) assert.throws(() => decodeTexts(data.subarray(0, end)), { kind: "damaged" });
});

const { layers, tokens, padded, packed, decoded } = made.maps;
const all = bytes(packed);
const maps: Float64Array[] = Array.from({ length: layers }, (_, k) => decodeMap(all.subarray(k * padded * padded, (k + 1) * padded * padded), padded, tokens));

test("maps are unpacked as the format says", () => {
  close(maps.flatMap((map) => [...map]), decoded);
  for (const map of maps) for (let q = 0; q < tokens; q++) close([map.slice(q * tokens, (q + 1) * tokens).reduce((a, b) => a + b, 0)], [1]);
  assert.throws(() => decodeMap(new Uint8Array(4), 2, 2), { kind: "damaged" });
});

test("rollout through the vision tower and its picture are the analysis' own", () => {
  const { views, tokens, skipped, parents, grids, boxes, packed, onto, rolled, grid, picture } = made.tower;
  const tower: Tower = { views, tokens, skipped, parents: Int32Array.from(parents), grids: Int32Array.from(grids), boxes: Float32Array.from(boxes) };
  const blocks = (packed as string[]).map((text) => new Uint8Array(Buffer.from(text, "base64")));
  const shares = blocks.reduceRight((above, block) => throughBlock(above, block, tower), enteringTower(Float64Array.from(onto), tower));
  close(shares, rolled);
  const found = patchPicture(shares, tower);
  assert.deepEqual(found.grid, grid);
  close(found.weights, picture);
});

test("rollout is the analysis' own", () => {
  rollout(maps, tokens).forEach((row, k) => close(row, made.maps.rollout[k]));
});

test("the bound of flow is the analysis' own", () => {
  flowBounds(maps, tokens).slice(0, -1).forEach((row, k) => close(row, made.maps.bounds[k]));
});

test("parts of a prompt are the analysis' own", () => {
  assert.deepEqual([...PARTS], made.parts.names);
  const spans = new Map(Object.entries(made.parts.spans as Record<string, Span>).filter(([, [start]]) => start >= 0));
  assert.deepEqual([...tokenParts(spans, made.parts.tokens)], made.parts.parts);
});

test("the golden store, by the arithmetic that it was made with", async () => {
  const store = await Store.open(new DiskFiles("../../tests/store/golden/v1.zarr"));
  const counts = [4, 3, 4, 2, 4];
  assert.deepEqual(store.layers, [0, 1]);
  for (const example of [0, 1, 4]) {
    const prompt = await store.prompt(example);
    assert.equal(prompt.tokens, counts[example]);
    assert.equal(prompt.hasMap, example % 2 === 0);
    assert.deepEqual(await store.words(prompt.ids), ["▁the", "▁cat", "\n", "▁the"].slice(0, prompt.tokens));
    await store.requireRecorded(example);
    const [first, second] = await store.perHead("attention_rows", 1, example);
    assert.deepEqual([...first!.subarray(0, 2)], [1, 0]);
    assert.deepEqual([...second!.subarray(0, 2)], [0.5, 0.5]);
    assert.ok(first!.subarray(prompt.tokens).every(Number.isNaN));
    assert.deepEqual([...(await store.attentionMean(example))[1]!.subarray(0, 2)], [0.75, 0.25]);
    assert.deepEqual([...(await store.answerLogits(example))], [example + 0.5, 0 - example]);
  }
  await assert.rejects(store.requireRecorded(2), { kind: "unwritten" });
  const read = store.arrays.read.bind(store.arrays);
  const options = { data: BigInt64Array.of(1n), shape: [1] };
  store.arrays.read = (async (name: string, ...rest: [never]) => (name === "examples/options" ? options : read(name, ...rest))) as typeof read;
  assert.deepEqual([...(await store.answerLogits(1))], [1.5, -1]);
  Object.assign(store.provenance, { data: { options: true } });
  assert.deepEqual([...(await store.answerLogits(1))], [1.5, -Infinity]);
  await assert.rejects(store.arrays.read("residual_of_nothing", []), { kind: "absent-array" });
});
