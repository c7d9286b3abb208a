// Signs in to RESOURCE_URL with EVM_PRIVATE_KEY through npm `@x402/fetch` and `@x402/extensions`; prints one JSON line.
import { createSIWxClientExtension } from "@x402/extensions/sign-in-with-x";
import { wrapFetchWithPayment, x402Client } from "@x402/fetch";
import { privateKeyToAccount } from "viem/accounts";

const { RESOURCE_URL, EVM_PRIVATE_KEY } = process.env;
const client = new x402Client(); // has no way to pay, and need not
client.registerExtension(createSIWxClientExtension({ signers: [privateKeyToAccount(EVM_PRIVATE_KEY)] }));
const response = await wrapFetchWithPayment(fetch, client)(RESOURCE_URL);
console.log(JSON.stringify({ status: response.status, body: await response.json() }));
