// The signer of a client program: the key EVM_PRIVATE_KEY, or with WALLET_ADDRESS a smart wallet that this key owns. Its signatures are the
// key's behind WALLET_PREFIX; with WALLET_FACTORY and WALLET_CALLDATA they say how the wallet is deployed (ERC-6492).
import { concat, serializeErc6492Signature } from "viem";
import { privateKeyToAccount } from "viem/accounts";

export function signerOf({ EVM_PRIVATE_KEY, WALLET_ADDRESS, WALLET_PREFIX, WALLET_FACTORY, WALLET_CALLDATA }) {
  const owner = privateKeyToAccount(EVM_PRIVATE_KEY);
  if (!WALLET_ADDRESS) return owner;
  const signTypedData = async (message) => {
    const signature = concat([WALLET_PREFIX, await owner.signTypedData(message)]);
    return WALLET_FACTORY ? serializeErc6492Signature({ address: WALLET_FACTORY, data: WALLET_CALLDATA, signature }) : signature;
  };
  return { address: WALLET_ADDRESS, signTypedData };
}
