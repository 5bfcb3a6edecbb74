// @huggingface/inference, one base URL an adapter. Prints its findings as the Python scripts do.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

// The client is installed outside of the tree: the second argument is the folder that holds its node_modules.
const [facts, folder] = [JSON.parse(process.argv[2]), process.argv[3]];
const resolved = createRequire(join(folder, "index.js")).resolve("@huggingface/inference");
const imported = await import(pathToFileURL(resolved));
const { InferenceClient } = imported.InferenceClient ? imported : imported.default;
const manifest = JSON.parse(readFileSync(join(folder, "node_modules/@huggingface/inference/package.json"), "utf8"));

const operations = [];
async function operation(name, work) {
  try {
    await work();
    operations.push({ operation: name, passed: true });
  } catch (error) {
    operations.push({ operation: name, passed: false, error: String(error.stack ?? error) });
  }
}

const client = (suffix = "") =>
  new InferenceClient(facts.key, { endpointUrl: `${facts.url}/adapters/${facts.adapter}${suffix}` });
const isMade = (version, row) =>
  row.label === facts.versions[version].label && Math.abs(row.score - facts.versions[version].score) < 5e-3;

await operation("textClassification", async () => {
  const rows = await client().textClassification({ inputs: "free money" });
  assert.equal(rows.length, 2);
  assert.ok(isMade(2, rows[0]));
});
await operation("textClassification with top_k and function_to_apply", async () => {
  const parameters = { top_k: 1, function_to_apply: "softmax" };
  const rows = await client().textClassification({ inputs: "free money", parameters });
  assert.equal(rows.length, 1);
  assert.ok(isMade(2, rows[0]));
});
await operation("textClassification of a pinned version", async () => {
  assert.ok(isMade(1, (await client("@1").textClassification({ inputs: "free money" }))[0]));
});
await operation("an unknown adapter: the error says which one was meant", async () => {
  await assert.rejects(client("x").textClassification({ inputs: "x" }), /did you mean/i);
});
await operation("an invalid text: the error says what is wrong", async () => {
  await assert.rejects(client().textClassification({ inputs: " " }), /blank/i);
});

console.log(JSON.stringify({ client: "@huggingface/inference", version: manifest.version, operations }));
