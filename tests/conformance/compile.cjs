// Compiles the Yul source named and prints its creation code in hex: what a test holds the committed code against.
const solc = require(require.resolve("solc", { paths: [__dirname + "/npm"] }));
const source = require("node:fs").readFileSync(process.argv[2], "utf8");
const settings = { optimizer: { enabled: true, details: { yul: true } }, evmVersion: "shanghai", outputSelection: { "*": { "*": ["evm.bytecode"] } } };
const output = JSON.parse(solc.compile(JSON.stringify({ language: "Yul", sources: { source: { content: source } }, settings })));
for (const error of output.errors ?? []) throw new Error(error.formattedMessage);
process.stdout.write(Object.values(output.contracts.source)[0].evm.bytecode.object);
