// Buys RESOURCE_URL with EVM_PRIVATE_KEY through npm `@x402/axios`; prints one JSON line.
import { wrapAxiosWithPayment, x402Client, x402HTTPClient } from "@x402/axios";
import { registerExactEvmScheme } from "@x402/evm/exact/client";
import axios from "axios";
import { privateKeyToAccount } from "viem/accounts";

const { RESOURCE_URL, EVM_PRIVATE_KEY } = process.env;
const client = new x402Client();
registerExactEvmScheme(client, { signer: privateKeyToAccount(EVM_PRIVATE_KEY) });

const http = wrapAxiosWithPayment(axios.create({ timeout: 60_000, proxy: false }), client);
const response = await http.get(RESOURCE_URL).catch((refused) => {
  if (!refused.response) throw refused; // axios rejects every status but 2xx
  return refused.response;
});
const reader = new x402HTTPClient(client);
const header = (name) => response.headers[name.toLowerCase()];
const paid = header("PAYMENT-RESPONSE") ?? header("X-PAYMENT-RESPONSE");
console.log(
  JSON.stringify({
    status: response.status,
    body: response.data,
    payment_response: paid ? reader.getPaymentSettleResponse(header) : null,
    error: response.status === 402 ? reader.getPaymentRequiredResponse(header, response.data).error : null,
  }),
);
