// A paid Hono application, as the documentation of npm `@x402/hono` writes it.
// Environment: FACILITATOR_URL, FACILITATOR_KEY, EVM_PAYEE_ADDRESS, PORT.
import { serve } from "@hono/node-server";
import { HTTPFacilitatorClient } from "@x402/core/server";
import { ExactEvmScheme } from "@x402/evm/exact/server";
import { paymentMiddleware, x402ResourceServer } from "@x402/hono";
import { Hono } from "hono";

const { FACILITATOR_URL, FACILITATOR_KEY, EVM_PAYEE_ADDRESS, PORT } = process.env;
const network = "eip155:84532";
const header = { Authorization: `Bearer ${FACILITATOR_KEY}` };

const facilitator = new HTTPFacilitatorClient({
  url: FACILITATOR_URL,
  createAuthHeaders: async () => ({ verify: header, settle: header, supported: header }),
});
const server = new x402ResourceServer(facilitator).register(network, new ExactEvmScheme());

const app = new Hono();
app.get("/health", (context) => context.json({ status: "ok" }));
app.use(
  paymentMiddleware(
    {
      "GET /report": {
        accepts: { scheme: "exact", network, price: "$0.01", payTo: EVM_PAYEE_ADDRESS },
        description: "A report",
        mimeType: "application/json",
      },
    },
    server,
  ),
);
app.get("/report", (context) => context.json({ report: "sunny" }));
serve({ fetch: app.fetch, port: Number(PORT), hostname: "127.0.0.1" });
