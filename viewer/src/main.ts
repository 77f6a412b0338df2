/** The page begins: find out which store it is for, open it, or say why not. */

import { Meter } from "./bytes/files.ts";
import { HttpFiles } from "./bytes/http.ts";
import { openFiles, type Source } from "./bytes/source.ts";
import { Fault, faultOf } from "./fault.ts";
import { App } from "./page/app.ts";
import { closeMenus, openingForms, type Opening } from "./page/dialogs.ts";
import { h, worded } from "./page/dom.ts";
import { header } from "./page/header.ts";
import { listenToKeys } from "./page/keys.ts";
import { onTheme } from "./page/theme.ts";
import { fromHash, namesExample, toHash } from "./page/view.ts";
import { Results } from "./results/results.ts";
import { departure } from "./store/provenance.ts";
import { Store, type Unwritten } from "./store/store.ts";

/** What lies beside the page as view.json: addresses relative to the page, and blocks that the store lacks. */
interface Beside { store?: string; results?: string; note?: string; unwritten?: Unwritten }

const root = document.getElementById("app")!;
let app: App | null = null;
let attempt = 0;

const opening: Opening = {
  address(address) {
    location.hash = toHash({ ...fromHash(""), store: address });
    void begin();
  },
  folder(files) {
    // what the address says of another store would be wrong of this one, which no link can lead to
    history.replaceState(null, "", location.pathname + location.search);
    void open({ kind: "chosen", files }, {});
  },
};

async function begin(): Promise<void> {
  const view = fromHash(location.hash);
  const beside = await config();
  const address = view.store || beside.store;
  if (!address) return welcome();
  await open({ kind: "address", address, page: document.baseURI }, view.store ? {} : beside);
}

/** What the address asks for, and what of it means nothing. */
function asked() {
  const ignored: string[] = [];
  return { view: fromHash(location.hash, (what) => ignored.push(what)), ignored };
}

async function config(): Promise<Beside> {
  if (location.protocol === "file:") return {};
  const bytes = await new HttpFiles("./", document.baseURI, new Meter()).whole("view.json").catch(() => undefined);
  try {
    const beside: unknown = bytes ? JSON.parse(new TextDecoder().decode(bytes)) : {};
    return beside && typeof beside === "object" ? beside : {};
  } catch {
    return {};
  }
}

async function open(source: Source, { results, note, unwritten }: Beside): Promise<void> {
  const mine = ++attempt;
  app?.close();
  app = null;
  const meter = new Meter();
  skeleton(source.kind === "address" ? source.address : "a folder on this computer");
  try {
    const store = await Store.open(await openFiles(source, meter), Array.isArray(unwritten) ? unwritten : []);
    if (mine !== attempt) return;
    if (!store.layout.examples) throw new Fault("metadata", "The store holds no example.", "Open another one.");
    const { view, ignored } = asked();
    if (results && !view.page && !namesExample(location.hash)) view.page = "overview";
    if (!results) view.page = "";
    app = new App(root, store, source, view, meter, opening);
    app.leaveOut(view, ignored);
    document.title = [store.files.name, departure(store.provenance), "Stratascope"].filter(Boolean).join(" · ");
  } catch (error) {
    if (mine === attempt) failure(faultOf(error), source, note);
    return;
  }
  if (!results) return;
  try {
    app.offerResults(await Results.open(results, document.baseURI, new Meter()));
  } catch (error) {
    const fault = faultOf(error);
    app.offerResults(null, `${fault.message} ${fault.todo}`);
  }
}

function page(title: string, ...content: (Node | null)[]): void {
  root.replaceChildren(header({ name: "Stratascope", about: "activation viewer" }, { opening }),
    h("main", { class: "page" }, h("section", { class: "card", "aria-label": title }, h("h2", {}, title), content)));
}

function welcome(): void {
  page("Open an activation store", h("p", {}, "Give the address of a store on a web host or bucket, or choose its folder."), ...openingForms(opening));
}

function failure(fault: Fault, source: Source, note?: string): void {
  document.documentElement.dataset["ready"] = "failure";
  const address = source.kind === "address" ? source.address : "";
  page("The store cannot be opened", h("p", { class: "what", role: "alert" }, worded(fault.message)), h("p", {}, worded(fault.todo)), note ? h("p", {}, worded(note)) : null,
    address ? h("p", {}, h("code", {}, address)) : null, h("button", { class: "button", type: "button", onclick: () => void begin() }, "Try again"), ...openingForms(opening, address));
}

function skeleton(what: string): void {
  delete document.documentElement.dataset["ready"];
  const block = (name: string) => h("div", { class: `skeleton ${name}` });
  root.replaceChildren(header({ name: "Opening…", about: what }, { opening }),
    h("main", { "aria-busy": "true", "aria-label": "Opening the store" }, block("examples"), block("stage"), block("side"), block("token-strips")));
}

addEventListener("hashchange", () => {
  const { view, ignored } = asked();
  if (app && view.store === app.view.store) {
    app.follow(view);
    app.leaveOut(view, ignored);
  }
  else void begin();
});
onTheme(() => app?.set({}));
listenToKeys(() => app);
closeMenus();
void begin();
