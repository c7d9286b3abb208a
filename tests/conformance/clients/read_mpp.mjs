// What npm `mppx` makes of {challenge, secret, receipt, document} on stdin; prints one JSON line.
import { Challenge, Receipt } from "mppx";
import { validate } from "mppx/discovery";
import { text } from "node:stream/consumers";

const { challenge, secret, receipt, document } = JSON.parse(await text(process.stdin));
const read = Challenge.deserialize(challenge);
console.log(
  JSON.stringify({
    challenge: read,
    bound: Challenge.verify(read, { secretKey: secret }),
    receipt: Receipt.deserialize(receipt),
    faults: validate(document),
  }),
);
