// From a module to a component: SOURCE WIT WORLD OUT. The engine gets no interface of a system: what would need one (the
// clock, randomness, output, the network) fails when it is called.
import { writeFile } from "node:fs/promises";
import { argv, exit } from "node:process";

const PACKAGE = "@bytecodealliance/componentize-js";
const [sourcePath, witPath, worldName, out] = argv.slice(2);
try {
  import.meta.resolve(PACKAGE);
} catch {
  exit(3);
}
const { componentize } = await import(PACKAGE);
const disableFeatures = ["clocks", "fetch-event", "http", "random", "stdio"];
const { component } = await componentize({ sourcePath, witPath, worldName, disableFeatures });
await writeFile(out, component);
