/** An example's other fields: columns of the table of examples that the page does not know by name. */

import type { Store } from "./store.ts";

const KNOWN = /^(id|image|caption|relation|label|subject|object|split|status|image_(width|height)|(subject|object)_[xy][01])$/;
/** Columns of more rows than this in one piece are not read for one example. */
const MOST_ROWS = 200_000;
const MOST_FIELDS = 24;

/** Whether a store's rows have such fields. */
export const hasFields = (store: Store): boolean => fieldsOf(store).length > 0;

/** Name -> value as text, null where it is missing; in the order of the table. */
export function fields(store: Store, example: number): Promise<(readonly [name: string, value: string | null])[]> {
  return Promise.all(fieldsOf(store).map(async ({ name, array, missing }) => {
    const path = `examples/${array}`;
    const [value, lacking] = await Promise.all([read(store, path, example), missing ? read(store, `${path}.missing`, example) : 0]);
    return [name, lacking ? null : written(value, store.arrays.meta[path]!.data_type)] as const;
  }));
}

function written(value: string | number | bigint, type: string): string | null {
  if (type === "bool") return value ? "yes" : "no";
  if (typeof value !== "number" || Number.isInteger(value)) return String(value);
  return Number.isFinite(value) ? String(Number(value.toPrecision(6))) : null;
}

function fieldsOf(store: Store) {
  return store.meta.columns.filter(({ name, array }) => !KNOWN.test(name) && store.has(`examples/${array}`) && store.arrays.piece(`examples/${array}`, 0) <= MOST_ROWS).slice(0, MOST_FIELDS);
}

async function read(store: Store, path: string, example: number): Promise<string | number | bigint> {
  const piece = store.arrays.piece(path, 0);
  const first = Math.floor(example / piece) * piece;
  const { data } = await store.arrays.read(path, [[first, Math.min(first + piece, store.layout.examples)]]);
  return data[example - first]!;
}
