// The TypeScript reference facilitator: x402Facilitator of @x402/core with @x402/evm behind express, viem with its nonce manager.
// Without the nonce manager, as in the SDK's own example, concurrent settlements collide on one tx_nonce and most are lost.
// Environment: RPC_URL, EVM_PRIVATE_KEY, PORT.
import { x402Facilitator } from "@x402/core/facilitator";
import { toFacilitatorEvmSigner } from "@x402/evm";
import { registerExactEvmScheme } from "@x402/evm/exact/facilitator";
import express from "express";
import { createWalletClient, http, nonceManager, publicActions } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { baseSepolia } from "viem/chains";

const { RPC_URL, EVM_PRIVATE_KEY, PORT } = process.env;
const account = privateKeyToAccount(EVM_PRIVATE_KEY, { nonceManager });
const client = createWalletClient({ account, chain: baseSepolia, transport: http(RPC_URL) }).extend(publicActions);
const signer = toFacilitatorEvmSigner({
  address: account.address,
  getCode: (args) => client.getCode(args),
  readContract: (args) => client.readContract({ ...args, args: args.args || [] }),
  verifyTypedData: (args) => client.verifyTypedData(args),
  writeContract: (args) => client.writeContract({ ...args, args: args.args || [] }),
  sendTransaction: (args) => client.sendTransaction(args),
  waitForTransactionReceipt: (args) => client.waitForTransactionReceipt(args),
});
const facilitator = registerExactEvmScheme(new x402Facilitator(), { signer, networks: "eip155:84532" });

const answered = (act) => async (request, response) => {
  try {
    response.json(await act(request.body.paymentPayload, request.body.paymentRequirements));
  } catch (error) {
    response.status(500).json({ error: error instanceof Error ? error.message : "unknown" });
  }
};

const app = express();
app.use(express.json());
app.get("/readyz", (_request, response) => response.json({ status: "ok" }));
app.post("/verify", answered((payload, terms) => facilitator.verify(payload, terms)));
app.post("/settle", answered((payload, terms) => facilitator.settle(payload, terms)));
app.listen(Number(PORT), "127.0.0.1");
