// Pays with a wallet in the browser (EIP-1193): signs the first offered authorization and asks again with it.
// A payment whose outcome is unknown is sent again as it is: signing another one could pay twice.
"use strict";
(() => {
  const element = (id) => document.getElementById(id);
  const wallet = window.ethereum;
  if (!wallet) return;
  const demand = JSON.parse(element("demand").textContent);
  const terms = demand.accepts[0];
  const chainId = Number(terms.network.split(":")[1]);
  const button = element("pay");
  const say = (text) => { element("status").textContent = text; };
  const authorization = (name, type) => ({ name, type });
  const types = {
    EIP712Domain: [authorization("name", "string"), authorization("version", "string"), authorization("chainId", "uint256"), authorization("verifyingContract", "address")],
    TransferWithAuthorization: [authorization("from", "address"), authorization("to", "address"), authorization("value", "uint256"), authorization("validAfter", "uint256"), authorization("validBefore", "uint256"), authorization("nonce", "bytes32")],
  };
  let payment = null;

  async function sign() {
    const [from] = await wallet.request({ method: "eth_requestAccounts" });
    const chain = "0x" + chainId.toString(16);
    if (Number(await wallet.request({ method: "eth_chainId" })) !== chainId) {
      await wallet.request({ method: "wallet_switchEthereumChain", params: [{ chainId: chain }] });
    }
    const random = crypto.getRandomValues(new Uint8Array(32));
    const message = {
      from,
      to: terms.payTo,
      value: terms.amount,
      validAfter: "0",
      validBefore: String(Math.floor(Date.now() / 1000) + terms.maxTimeoutSeconds),
      nonce: "0x" + Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join(""),
    };
    const domain = { name: terms.extra.name, version: terms.extra.version, chainId, verifyingContract: terms.asset };
    const typed = JSON.stringify({ types, domain, primaryType: "TransferWithAuthorization", message });
    const signature = await wallet.request({ method: "eth_signTypedData_v4", params: [from, typed] });
    const payload = { x402Version: 2, resource: demand.resource, accepted: terms, payload: { signature, authorization: message } };
    return btoa(String.fromCharCode(...new TextEncoder().encode(JSON.stringify(payload))));
  }

  async function show(response) {
    const type = response.headers.get("Content-Type") || "";
    const blob = await response.blob();
    const shown = document.createElement(/^(text\/plain|application\/json)/.test(type) ? "pre" : "a");
    if (shown.tagName === "PRE") {
      shown.textContent = await blob.text();
    } else {
      shown.href = URL.createObjectURL(blob);
      shown.download = "";
      shown.textContent = "Open what you paid for";
    }
    element("result").replaceChildren(shown);
    element("how").hidden = true;
    button.hidden = true;
    say("Paid.");
  }

  async function pay() {
    button.disabled = true;
    try {
      say(payment ? "Asking again with the same payment…" : "Waiting for your wallet…");
      payment = payment || (await sign());
      say("Paying…");
      const response = await fetch(location.href, { headers: { "PAYMENT-SIGNATURE": payment, Accept: "application/json, */*" } });
      if (response.ok) return await show(response);
      const told = await response.json().catch(() => ({}));
      const open = response.status >= 500 || told.error === "settlement_pending";
      if (!open) payment = null;
      button.textContent = open ? "Ask again with the same payment" : "Try again";
      say(told.message || told.error || "The seller answered " + response.status + ".");
    } catch (problem) {
      if (payment) button.textContent = "Ask again with the same payment";
      say("Not paid yet: " + (problem && problem.message ? problem.message : problem));
    }
    button.disabled = false;
  }

  button.hidden = false;
  button.addEventListener("click", pay);
})();
