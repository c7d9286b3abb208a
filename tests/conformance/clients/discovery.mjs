// Reads the catalogue with the official TypeScript client: prints {listed, found} as JSON.
import { HTTPFacilitatorClient } from "@x402/core/server";
import { withBazaar } from "@x402/extensions/bazaar";

const client = withBazaar(new HTTPFacilitatorClient({ url: process.env.FACILITATOR_URL }));
const listed = await client.extensions.bazaar.listResources({ type: "http", limit: 1000, offset: 0, network: "eip155:84532" });
const found = await client.extensions.bazaar.search({ query: process.env.QUERY, limit: 5 });
console.log(JSON.stringify({ listed, found }));
