// Reads facilitator answers with the official TypeScript clients. Input: JSON lines {client, operation, status, body}; output:
// for each a JSON line {read} with what the client made of it, or {error} with the name and text of what it threw.
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { HTTPFacilitatorClient } from "@x402/core/server";
import { useFacilitator } from "x402/verify";

let answer;
const stub = createServer((request, response) => {
  request.resume().on("end", () => {
    response.writeHead(answer.status, { "Content-Type": "application/json" }).end(answer.body);
  });
});
await new Promise((listening) => stub.listen(0, "127.0.0.1", listening));
const url = `http://127.0.0.1:${stub.address().port}`;
const current = new HTTPFacilitatorClient({ url });
const legacy = useFacilitator({ url });
const clients = {
  core: { verify: (...p) => current.verify(...p), settle: (...p) => current.settle(...p), supported: () => current.getSupported() },
  legacy,
};

for await (const line of createInterface({ input: process.stdin })) {
  answer = JSON.parse(line);
  const asked = { x402Version: answer.version ?? 2 };
  try {
    const read = await clients[answer.client][answer.operation](asked, {});
    console.log(JSON.stringify({ read }));
  } catch (error) {
    console.log(JSON.stringify({ error: `${error.name}: ${error.message}` }));
  }
}
stub.close();
stub.closeAllConnections();
