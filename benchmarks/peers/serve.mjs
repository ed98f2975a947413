// Serve N SQLite-backed Durable Objects and one worker that asks them all, on loopback.
// Usage: node serve.mjs FOLDER   It prints "listening URL" and serves until its standard input ends.
import { readFileSync } from "node:fs";
import { Miniflare } from "miniflare";

const runtime = new Miniflare({
  modules: true,
  script: readFileSync(new URL("./worker.mjs", import.meta.url), "utf8"),
  compatibilityDate: "2025-04-01",
  host: "127.0.0.1",
  port: 0,
  durableObjects: { VENDORS: { className: "Vendor", useSQLite: true } },
  durableObjectsPersist: process.argv[2],
});
console.log(`listening ${await runtime.ready}`);
process.stdin.resume();
process.stdin.on("end", async () => {
  await runtime.dispose();
  process.exit(0);
});
