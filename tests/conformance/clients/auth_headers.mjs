// The official client, with createAuthHeaders that signs a JWT for each request: node auth_headers.mjs URL KEY_ID < private.pem
import { createPrivateKey, randomBytes, sign } from "node:crypto";
import { readFileSync } from "node:fs";
import { HTTPFacilitatorClient } from "@x402/core/server";

const [url, keyId] = process.argv.slice(2);
const { key: pem, request } = JSON.parse(readFileSync(0, "utf8"));
const key = createPrivateKey(pem);
const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");

function bearer(method, path) {
  const now = Math.floor(Date.now() / 1000);
  const header = { alg: "EdDSA", kid: keyId, typ: "JWT", nonce: randomBytes(16).toString("hex") };
  const claims = { sub: keyId, iss: "cdp", uris: [`${method} ${new URL(url).host}${path}`], iat: now, nbf: now, exp: now + 120 };
  const signed = `${encode(header)}.${encode(claims)}`;
  return { Authorization: `Bearer ${signed}.${sign(null, Buffer.from(signed), key).toString("base64url")}` };
}

const client = new HTTPFacilitatorClient({
  url,
  createAuthHeaders: async () => ({
    verify: bearer("POST", "/verify"),
    settle: bearer("POST", "/settle"),
    supported: bearer("GET", "/supported"),
    bazaar: {},
  }),
});
const { paymentPayload, paymentRequirements } = request;
const verified = await client.verify(paymentPayload, paymentRequirements);
const settled = await client.settle(paymentPayload, paymentRequirements);
console.log(JSON.stringify({ verified, settled }));
