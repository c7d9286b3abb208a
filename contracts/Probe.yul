// What becomes of this call, given so much gas? Run as the creation code of an `eth_call` without `to`: nothing is deployed,
// nothing remains. Arguments follow the code, packed: gas (8 bytes), to (20), data (all the rest).
// Returns whether it succeeded (1 byte), the gas it took (8), and what it returned, of that the first 512 bytes.
object "Probe" {
    code {
        let own := datasize("Probe")
        let size := sub(codesize(), own)
        codecopy(0, own, size)
        let before := gas()
        mstore8(add(size, 32), call(shr(192, mload(0)), shr(96, mload(8)), 0, 28, sub(size, 28), 0, 0))
        let took := sub(before, gas())
        let length := returndatasize()
        if gt(length, 512) { length := 512 }
        let start := add(size, 32)
        mstore(add(start, 1), shl(192, took))
        returndatacopy(add(start, 9), 0, length)
        return(start, add(9, length))
    }
}
