// Would each of these calls succeed, each as if it were alone? Run as the creation code of an `eth_call` without `to`:
// nothing is deployed, nothing remains. Arguments follow the code, packed, one entry for each trial:
//   payer (20 bytes), length of data (2), to (20), data (length).
// Returns a byte for each: 0 the call failed, 1 it succeeded, 2 code lies at the payer's address and nothing was called.
object "Trials" {
    code {
        let own := datasize("Trials")
        let stub := datasize("Trial")
        let at := 0x500 // verdicts are written from 0 on; there is room for 1024 and the first stub
        codecopy(at, own, sub(codesize(), own))
        let end := sub(add(at, codesize()), own)
        let count := 0
        for {} lt(at, end) { count := add(count, 1) } {
            let next := add(add(at, 42), shr(240, mload(add(at, 20))))
            switch extcodesize(shr(96, mload(at)))
            case 0 {
                // The trial's creation code: the stub, laid right before `to` over what was read already, then `to` and data.
                let start := sub(add(at, 22), stub)
                datacopy(start, dataoffset("Trial"), stub)
                pop(create(0, start, sub(next, start)))
                mstore8(count, 0)
                if eq(returndatasize(), 1) { returndatacopy(count, 0, 1) }
            }
            default { mstore8(count, 2) }
            at := next
        }
        return(0, count)
    }
    object "Trial" {
        code {
            // Whatever the call did is undone: creation ends in a revert, which brings the outcome home.
            let own := datasize("Trial")
            let size := sub(codesize(), own)
            codecopy(0, own, size)
            mstore8(0, call(gas(), shr(96, mload(0)), 0, 20, sub(size, 20), 0, 0))
            revert(0, 1)
        }
    }
}
