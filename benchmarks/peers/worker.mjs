// A vendor is a Durable Object with its own SQLite; the worker is the coordinator.
import { DurableObject } from "cloudflare:workers";

export class Vendor extends DurableObject {
  fill(ddl, columns, rows) {
    const { sql } = this.ctx.storage;
    sql.exec(ddl);
    const marks = columns.map(() => "?").join(",");
    for (const row of rows) sql.exec(`INSERT INTO products(${columns.join(",")}) VALUES(${marks})`, ...row);
  }

  // The statement that a vendor runs; rows travel as arrays, as they do in the coordinator measured beside.
  query(statement, params) {
    return [...this.ctx.storage.sql.exec(statement, ...params).raw()];
  }
}

const stub = (env, id) => env.VENDORS.get(env.VENDORS.idFromName(id));

// One promise a vendor, all in flight: how the platform's own examples scatter.
async function ask(env, { ids, statement, params }) {
  const answers = await Promise.all(ids.map((id) => stub(env, id).query(statement, params)));
  return answers.flat();
}

export default {
  async fetch(request, env) {
    const body = await request.json();
    const path = new URL(request.url).pathname;
    if (path === "/fill") {
      await Promise.all(body.vendors.map(([id, rows]) => stub(env, id).fill(body.ddl, body.columns, rows)));
      return Response.json(body.vendors.length);
    }
    if (path === "/top") {
      // By rating, NULLs last; the sort is stable, so that ties stay in the order of vendors.
      const rows = await ask(env, body);
      const key = (row) => row[body.key] ?? -Infinity;
      return Response.json(rows.sort((a, b) => key(b) - key(a)).slice(0, body.limit));
    }
    return new Response("no such path", { status: 404 });
  },
};
