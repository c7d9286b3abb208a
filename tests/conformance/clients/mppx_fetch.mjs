// Buys RESOURCE_URL by POST with RESOURCE_ORDER and EVM_PRIVATE_KEY through npm `mppx`, method evm; prints one JSON line.
import { Receipt } from "mppx";
import { evm, Mppx } from "mppx/client";
import { privateKeyToAccount } from "viem/accounts";

const { RESOURCE_URL, RESOURCE_ORDER, EVM_PRIVATE_KEY } = process.env;
const { baseSepolia } = evm.assets;
const policy = { currencies: [baseSepolia.USDC], networks: [evm.chains.baseSepolia], maxAmount: "0.2" };
const client = Mppx.create({ methods: [evm({ account: privateKeyToAccount(EVM_PRIVATE_KEY), ...policy })], polyfill: false });
const sent = [];
client.on("credential.created", ({ challenge, credential }) => sent.push({ challenge, credential }));
const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: RESOURCE_ORDER };
const response = await client.fetch(RESOURCE_URL, post);
console.log(
  JSON.stringify({
    status: response.status,
    body: await response.json(),
    receipt: response.headers.has("Payment-Receipt") ? Receipt.fromResponse(response) : null,
    headers: Object.fromEntries(response.headers),
    sent,
  }),
);
