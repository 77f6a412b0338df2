/** Going through the layers of one view by itself, until the last one or until somebody stops it. */

const PLAY_MS = 420;

interface PlayerHost<Which> {
  /** One layer up; false where there is none. */
  up: (which: Which) => boolean;
  /** To the first layer, where the last one is shown. */
  rewind: (which: Which) => void;
  tell: (which: Which | null) => void;
}

export class Player<Which> {
  readonly #host: PlayerHost<Which>;
  #timer: ReturnType<typeof setInterval> | undefined;
  #which: Which | null = null;

  constructor(host: PlayerHost<Which>) {
    this.#host = host;
  }

  /** Begin with a view, or stop where it plays already. */
  toggle(which: Which): void {
    const stop = this.#which === which;
    this.stop();
    if (stop) return;
    this.#host.rewind(which);
    this.#which = which;
    this.#timer = setInterval(() => this.#host.up(which) || this.stop(), PLAY_MS);
    this.#host.tell(which);
  }

  stop(): void {
    if (this.#which === null) return;
    clearInterval(this.#timer);
    this.#which = null;
    this.#host.tell(null);
  }
}
