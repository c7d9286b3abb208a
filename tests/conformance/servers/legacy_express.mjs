// A paid Express application of protocol version 1, as the documentation of npm `x402-express` writes it, on the Express
// that this package itself depends on.
// Environment: FACILITATOR_URL, FACILITATOR_KEY, EVM_PAYEE_ADDRESS, PORT.
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { paymentMiddleware } from "x402-express";

const express = createRequire(fileURLToPath(import.meta.resolve("x402-express")))("express");
const { FACILITATOR_URL, FACILITATOR_KEY, EVM_PAYEE_ADDRESS, PORT } = process.env;
const header = { Authorization: `Bearer ${FACILITATOR_KEY}` };

const app = express();
app.get("/health", (_request, response) => response.json({ status: "ok" }));
app.use(
  paymentMiddleware(
    EVM_PAYEE_ADDRESS,
    { "GET /report": { price: "$0.01", network: "base-sepolia", config: { description: "A report" } } },
    {
      url: FACILITATOR_URL,
      createAuthHeaders: async () => ({ verify: header, settle: header, supported: header }),
    },
  ),
);
app.get("/report", (_request, response) => response.json({ report: "sunny" }));
app.listen(Number(PORT), "127.0.0.1");
