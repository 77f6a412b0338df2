/** The worker: keeps the list of examples away from the page's own thread. */

import { Meter } from "../bytes/files.ts";
import { openFiles } from "../bytes/source.ts";
import { faultOf } from "../fault.ts";
import { Store } from "../store/store.ts";
import { Listing } from "./listing.ts";
import type { Answer, Question } from "./protocol.ts";

const tell = (answer: Answer) => (postMessage as (message: Answer) => void)(answer);
/** Pieces of the list are read once: there is no use in keeping them. */
const KEPT = 4 << 20;
let wanted = false;
let listing: Listing | undefined;

addEventListener("message", ({ data }: MessageEvent<Question>) => {
  if (data.ask === "open") void open(data);
  else if (data.ask === "more") {
    wanted = true;
    listing?.more();
  } else if (data.ask === "find") listing?.find(data.filter, data.turn);
  else if (data.ask === "rows") void listing?.rows(data.from, data.to, data.turn);
  else if (data.ask === "example") listing?.example(data.example);
  else listing?.step(data.example, data.by, data.turn);
});

async function open({ source, meta, unwritten }: Extract<Question, { ask: "open" }>): Promise<void> {
  const meter = new Meter();
  let [bytes, requests] = [0, 0];
  meter.addEventListener("change", () => {
    tell({ tell: "read", bytes: meter.bytes - bytes, requests: meter.requests - requests });
    [bytes, requests] = [meter.bytes, meter.requests];
  });
  try {
    listing = new Listing(new Store(await openFiles(source, meter), meta, { kept: KEPT, unwritten }), tell);
    if (wanted) listing.more();
    await listing.read();
  } catch (error) {
    const { kind, message, todo } = faultOf(error);
    tell({ tell: "fault", kind, message, todo });
  }
}
