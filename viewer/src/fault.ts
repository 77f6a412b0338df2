/** What can go wrong, said so that a person knows what to do. */

export type FaultKind =
  | "address" | "not-found" | "foreign" | "version" | "metadata" | "unreachable" | "refused" | "no-range" | "short"
  | "missing" | "damaged" | "unwritten" | "unrecorded" | "absent-array" | "too-large" | "zip" | "unknown";

export class Fault extends Error {
  override name = "Fault";
  readonly kind: FaultKind;
  /** What the reader of the page can do about it. */
  readonly todo: string;

  constructor(kind: FaultKind, message: string, todo = "", options?: ErrorOptions) {
    super(message, options);
    this.kind = kind;
    this.todo = todo;
  }
}

/** The fault inside an error: libraries wrap what their stores and codecs throw. */
export function faultOf(error: unknown): Fault {
  for (let e: unknown = error; e instanceof Error; e = e.cause) if (e instanceof Fault) return e;
  const text = error instanceof Error ? error.message : String(error);
  return new Fault("unknown", `Something unexpected happened: ${text}`, "Reload the page; if it happens again, report it.", { cause: error });
}

export const isAbort = (error: unknown): boolean => error instanceof DOMException && error.name === "AbortError";
