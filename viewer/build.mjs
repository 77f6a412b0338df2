/** Build the page into the Python package, or its tests into out/. The same sources give the same bytes. */

import { build } from "esbuild";
import { copyFileSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const tests = process.argv.includes("--tests");
const given = process.argv.indexOf("--out");
const out = given > 0 ? process.argv[given + 1] : join(here, "..", "stratascope", "report", "viewer", "page");

/** Codecs that zarrita offers and the format does not have: left out, with their WebAssembly. */
const leaveOutCodecs = {
  name: "leave-out-codecs",
  setup(setup) {
    setup.onResolve({ filter: /^numcodecs\// }, ({ path }) => ({ path, namespace: "left-out" }));
    setup.onLoad({ filter: /.*/, namespace: "left-out" }, () => ({ contents: "export default undefined;" }));
  },
};

const common = { bundle: true, absWorkingDir: here, legalComments: "none", plugins: [leaveOutCodecs], logLevel: "warning" };

if (tests) {
  rmSync(join(here, "out"), { recursive: true, force: true });
  const names = readdirSync(join(here, "tests")).filter((name) => name.endsWith(".test.ts"));
  await build({ ...common, entryPoints: names.map((name) => `tests/${name}`), outdir: "out", platform: "node", format: "esm", target: "node20", outExtension: { ".js": ".mjs" } });
} else {
  mkdirSync(out, { recursive: true });
  const done = await build({
    ...common, entryPoints: { viewer: "src/main.ts", worker: "src/list/worker.ts", style: "src/viewer.css" }, outdir: out, format: "iife", target: "es2022",
    minify: true, charset: "utf8", metafile: true, entryNames: "[name]", write: false,
  });
  for (const { path, contents } of done.outputFiles) writeFileSync(path.replace(/style\.css$/, "viewer.css"), contents);
  for (const name of ["index.html", "icon.svg"]) copyFileSync(join(here, "src", name), join(out, name));
  writeFileSync(join(out, "NOTICES.txt"), notices(Object.keys(done.metafile.inputs)));
}

/** Licences of all packages that have a part in the page. */
function notices(inputs) {
  const names = [...new Set(inputs.map((path) => /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1]).filter(Boolean))].sort();
  const parts = names.map((name) => {
    const folder = join(here, "node_modules", name);
    const { version, license, author } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    const file = readdirSync(folder).find((entry) => /^licen[cs]e(\.|$)/i.test(entry));
    const text = file ? readFileSync(join(folder, file), "utf8").trim() : `Licence: ${license}. ${typeof author === "string" ? author : author?.name ?? ""}`.trim();
    return `${name} ${version}\n${"-".repeat(name.length + version.length + 1)}\n${text}\n`;
  });
  return `The page is made of Stratascope's own sources (Apache-2.0) and of these packages.\n\n${parts.join("\n")}`;
}
