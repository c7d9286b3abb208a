// Runs the paywall's own script as a browser would, with a wallet of viem's; prints what the page then shows as one JSON line.
// Environment: RESOURCE_URL, EVM_PRIVATE_KEY.
import { runInNewContext } from "node:vm";
import { privateKeyToAccount } from "viem/accounts";

const { RESOURCE_URL, EVM_PRIVATE_KEY } = process.env;
const account = privateKeyToAccount(EVM_PRIVATE_KEY);
const asked = [];
let chainId = "0x1";

async function request({ method, params }) {
  asked.push(method);
  switch (method) {
    case "eth_requestAccounts":
      return [account.address];
    case "eth_chainId":
      return chainId;
    case "wallet_switchEthereumChain":
      chainId = params[0].chainId;
      return null;
    case "eth_signTypedData_v4": {
      const typed = JSON.parse(params[1]);
      for (const name of ["value", "validAfter", "validBefore"]) typed.message[name] = BigInt(typed.message[name]);
      return account.signTypedData(typed);
    }
    default:
      throw new Error(`the page asked the wallet for ${method}`);
  }
}

const page = await (await fetch(RESOURCE_URL, { headers: { Accept: "text/html", "User-Agent": "Mozilla/5.0" } })).text();
const element = (fields = {}) => ({ hidden: true, replaceChildren(shown) { this.shown = shown; }, addEventListener(_, run) { this.click = run; }, ...fields });
const elements = {
  demand: element({ textContent: /id="demand">(.*?)<\/script>/s.exec(page)[1] }),
  pay: element(),
  status: element(),
  result: element(),
  how: element(),
};
const document = { getElementById: (id) => elements[id], createElement: (tag) => ({ tagName: tag.toUpperCase() }) };
const script = /<script>(.*?)<\/script>/s.exec(page)[1];
const globals = { window: { ethereum: { request } }, document, location: { href: RESOURCE_URL }, fetch, crypto, TextEncoder, URL, btoa };
runInNewContext(script, { ...globals, Uint8Array, Array, JSON, Number, String, Math, Date });
const offered = elements.pay.hidden === false;
await elements.pay.click();
console.log(JSON.stringify({ offered, asked, status: elements.status.textContent, result: elements.result.shown?.textContent ?? null, button: elements.pay.textContent ?? null }));
