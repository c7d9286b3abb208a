// Buys RESOURCE_URL (by POST, with RESOURCE_ORDER if that is set) with EVM_PRIVATE_KEY through npm `@x402/fetch`; prints one JSON line.
import { registerExactEvmScheme } from "@x402/evm/exact/client";
import { wrapFetchWithPayment, x402Client, x402HTTPClient } from "@x402/fetch";
import { signerOf } from "./signers.mjs";

const { RESOURCE_URL, RESOURCE_ORDER } = process.env;
const client = new x402Client();
registerExactEvmScheme(client, { signer: signerOf(process.env) });

const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: RESOURCE_ORDER };
const response = await wrapFetchWithPayment(fetch, client)(RESOURCE_URL, RESOURCE_ORDER ? post : {});
const body = await response.json();
const reader = new x402HTTPClient(client);
const header = (name) => response.headers.get(name);
const paid = header("PAYMENT-RESPONSE") ?? header("X-PAYMENT-RESPONSE");
console.log(
  JSON.stringify({
    status: response.status,
    body,
    payment_response: paid ? reader.getPaymentSettleResponse(header) : null,
    error: response.status === 402 ? reader.getPaymentRequiredResponse(header, body).error : null,
  }),
);
