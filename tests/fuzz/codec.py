"""Coverage-guided fuzzing of everything that reads a stranger's bytes before a key is asked for, by atheris (libFuzzer).

    python tests/fuzz/codec.py [libFuzzer's options] [corpus directory]

`tests/property/test_fuzzing.py` runs it bounded, `make prove` long. A finding ends it with the input in a file; given that
file as argument, it repeats.
"""

import sys
import time
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))  # tests.fixtures is no installed package

with atheris.instrument_imports(include=["facilitator.protocol", "facilitator.units", "facilitator.schemes", "json"]):  # type: ignore[no-untyped-call]
    import json

    from facilitator.protocol.codec import Malformed, Refused, check_content_type, decode_header, decode_request
    from facilitator.protocol.messages import Payment
    from facilitator.protocol.reasons import Refusal
    from facilitator.protocol.strict_json import HostileError, load
    from facilitator.schemes import signatures
    from facilitator.schemes.exact_eip3009 import ExactEip3009
    from facilitator.schemes.usdc import USDC
    from facilitator.units import UINT256_MAX

SCHEME = ExactEip3009(USDC)
SLOW_S = 0.1
"""CPU time that no input may take."""


def read(data: bytes) -> None:
    """What must hold for any bytes."""
    began = time.process_time()
    decoded = decode_request(data)
    assert isinstance(decoded, Payment | Refused | Malformed), decoded
    if isinstance(decoded, Malformed):
        decoded.message.encode("ascii")
        assert len(decoded.message) < 1000
    if isinstance(decoded, Payment):
        asked = decoded.requirements
        assert 0 <= asked.amount_atomic <= UINT256_MAX
        assert asked.asset == asked.asset.lower()
        assert asked.pay_to == asked.pay_to.lower()
        authorization = SCHEME.read(decoded)
        if not isinstance(authorization, Refusal):
            refusal = SCHEME.check_terms(authorization, asked) or SCHEME.check_signature(authorization)
            assert refusal is None or refusal.message
    try:
        tree = load(data)
    except HostileError:
        pass
    else:
        assert json.loads(data) == tree, "two parsers read two things"
    raw = decode_header(data.decode("latin-1"))
    assert isinstance(raw, bytes | Malformed)
    check_content_type(data.decode("latin-1"))
    signature = signatures.normalise(data[32:])
    if signatures.flaw(signature) is None:
        signatures.recover(data[:32], signature)
    took_s = time.process_time() - began
    assert took_s < SLOW_S, f"{took_s:.3f} s of CPU time"


def main() -> None:
    """Fuzz until the options say otherwise, or something is found."""
    atheris.Setup(sys.argv, read)  # type: ignore[no-untyped-call]
    atheris.Fuzz()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
