/** What the page and the worker that keeps the list of examples say to each other. */

import type { Source } from "../bytes/source.ts";
import type { FaultKind } from "../fault.ts";
import type { RootMeta } from "../store/metadata.ts";
import type { Unwritten } from "../store/store.ts";

/** -2: not recorded, -1: not known, 0: wrong, 1: right. */
export type Outcome = -2 | -1 | 0 | 1;

export interface Row {
  example: number;
  id: string;
  caption: string;
  relation: string;
  label: number;
  outcome: Outcome;
}

export interface Filter { query: string; relation: string; outcome: "" | "right" | "wrong" }

export type Question =
  | { ask: "open"; source: Source; meta: RootMeta; unwritten: Unwritten }
  | { ask: "more" }
  | { ask: "find"; filter: Filter; turn: number }
  | { ask: "rows"; from: number; to: number; turn: number }
  | { ask: "example"; example: number }
  | { ask: "step"; example: number; by: number; turn: number };

export type Answer =
  | { tell: "listed"; rows: number; of: number; relations: string[] }
  | { tell: "judged"; blocks: number; of: number }
  | { tell: "found"; turn: number; count: number; done: boolean }
  | { tell: "rows"; turn: number; from: number; rows: Row[] }
  | { tell: "example"; row: Row }
  | { tell: "step"; turn: number; example: number; place: number }
  | { tell: "read"; bytes: number; requests: number }
  | { tell: "fault"; kind: FaultKind; message: string; todo: string };
