/** Gold boxes of subject and object, from the table of examples, in shares of the image that the model was shown. */

import type { Store } from "../store/store.ts";
import type { Box } from "./image.ts";

const EDGES = ["x0", "y0", "x1", "y1"] as const;
/** Columns of more rows than this in one piece are not read for a box. */
const MOST_ROWS = 200_000;

const flipped = (box: Box): Box => ({ ...box, x0: 1 - box.x1, x1: 1 - box.x0 });

export async function boxesOf(store: Store, example: number): Promise<Box[]> {
  const column = (name: string) => store.meta.columns.find((c) => c.name === name)?.array;
  const value = async (name: string): Promise<number> => {
    const array = column(name);
    if (!array || !store.has(`examples/${array}`)) return NaN;
    const piece = store.arrays.piece(`examples/${array}`, 0);
    if (piece > MOST_ROWS) return NaN;
    const first = Math.floor(example / piece) * piece;
    const { data } = await store.arrays.read<Float64Array>(`examples/${array}`, [[first, Math.min(first + piece, store.layout.examples)]]);
    return Number(data[example - first]);
  };
  if (!column("subject_x0") || !column("image_width")) return [];
  const [width, height] = await Promise.all([value("image_width"), value("image_height")]);
  const boxes = await Promise.all((["subject", "object"] as const).map(async (name) => {
    const [x0, y0, x1, y1] = (await Promise.all(EDGES.map((edge) => value(`${name}_${edge}`)))) as [number, number, number, number];
    return { name, x0: x0 / width, y0: y0 / height, x1: x1 / width, y1: y1 / height };
  }));
  const mirrored = store.provenance["condition"] === "mirror"; // the table's boxes are of the image as it was
  return boxes.map((box) => (mirrored ? flipped(box) : box)).filter(({ x0, y0, x1, y1 }) => [x0, y0, x1, y1].every(Number.isFinite) && x1 > x0 && y1 > y0);
}
