// Buys RESOURCE_URL (by POST, with RESOURCE_ORDER if that is set) with EVM_PRIVATE_KEY through npm `x402-fetch` of protocol version 1; prints one JSON line.
import { createWalletClient, http } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { baseSepolia } from "viem/chains";
import { decodeXPaymentResponse, wrapFetchWithPayment } from "x402-fetch";

const { RESOURCE_URL, RESOURCE_ORDER, EVM_PRIVATE_KEY } = process.env;
// The wallet signs by itself and asks no node; port 9 makes sure of it.
const wallet = createWalletClient({
  account: privateKeyToAccount(EVM_PRIVATE_KEY),
  chain: baseSepolia,
  transport: http("http://127.0.0.1:9", { retryCount: 0 }),
});

const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: RESOURCE_ORDER };
const response = await wrapFetchWithPayment(fetch, wallet)(RESOURCE_URL, RESOURCE_ORDER ? post : {});
const body = await response.json();
const paid = response.headers.get("X-PAYMENT-RESPONSE");
console.log(
  JSON.stringify({
    status: response.status,
    body,
    payment_response: paid ? decodeXPaymentResponse(paid) : null,
    error: response.status === 402 ? body.error : null,
  }),
);
