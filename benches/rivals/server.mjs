// The gate as a typical product has it: node's http server, pg's pool, a transaction per request.
//
//     DATABASE_URL=postgres://… LISTEN=127.0.0.1:9000 ANSWER='{…}' node server.mjs

import { createServer } from "node:http";
import pg from "pg";

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });
const answer = Buffer.from(process.env.ANSWER);

// Counts the run once and within its limit, or not at all.
async function count({ customer_id, idempotency_key, required_balance = 1 }) {
  const client = await pool.connect();
  try {
    await client.query("BEGIN");
    const event = await client.query(
      `INSERT INTO events (customer_id, idempotency_key, units) VALUES ($1, $2, $3)
       ON CONFLICT DO NOTHING`,
      [customer_id, idempotency_key, required_balance],
    );
    if (event.rowCount === 1) {
      const counter = await client.query(
        `UPDATE counters SET used = used + $2
         WHERE customer_id = $1 AND used + $2 <= granted RETURNING used`,
        [customer_id, required_balance],
      );
      if (counter.rowCount === 0) throw new Error("the limit is reached");
    }
    await client.query("COMMIT");
  } catch (error) {
    await client.query("ROLLBACK");
    throw error;
  } finally {
    client.release();
  }
}

async function body(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return JSON.parse(Buffer.concat(chunks));
}

const server = createServer(async (request, response) => {
  const headers = { "content-type": "application/json" };
  try {
    await count(await body(request));
    response.writeHead(200, { ...headers, "content-length": answer.length }).end(answer);
  } catch (error) {
    const text = JSON.stringify({ error: error.message });
    response.writeHead(500, { ...headers, "content-length": Buffer.byteLength(text) }).end(text);
  }
});
server.keepAliveTimeout = 60_000;
const [host, port] = process.env.LISTEN.split(":");
server.listen(Number(port), host, 1024);
