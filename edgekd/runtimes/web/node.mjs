// Node.js as the host: node node.mjs LINK FOLDER, where FOLDER holds ONNX Runtime Web's files (its `dist`).

import { pathToFileURL } from "node:url";
import { serve } from "./engine.mjs";

const [link, folder] = process.argv.slice(2);
const ort = await import(pathToFileURL(`${folder}/ort.node.min.mjs`).href);
try {
  await serve(ort, link, { host: `Node.js ${process.version}`, isolated: true });
} catch (error) {
  if (error?.cause?.code !== "ECONNREFUSED") throw error; // the one who asked is gone
}
process.exit(0);
