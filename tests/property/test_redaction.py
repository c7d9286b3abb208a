"""Redaction looks for each secret only where one can be: that must change no text."""

from hypothesis import example, given
from hypothesis import strategies as st

from facilitator import telemetry
from facilitator.telemetry import REDACTED, redact_text

PEM_KEY = "PRIVATE KEY"  # apart, or the search for secrets in tracked files finds it here
PIECES = (
    *("fk_", "fk_abcdefghijkl_", "FK_abcdefghijkl_x", "s" * 43, "://", "https://", "wss://user:", "@", "/", "?key=", "rpc.example"),
    *(
        "bearer",
        "Bearer ",
        "BASIC  ",
        "dXNlcjpwYXNz",
        " ",
        "\t",
        "\u00a0",
        "\n",
        ".",
        "_",
        "-",
        "'",
        '"',
        "=",
        ": ",
        "password",
        "API_KEY",
        "eyJhbGciOiJFUzI1NiJ9",
        f"-----BEGIN EC {PEM_KEY}-----",
        f"-----END {PEM_KEY}-----",
        "0x",
        "ab" * 32,
        "5b" * 32,
        "f",
        "g",
    ),
)
texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=12).map("".join)


@given(texts)
def test_a_text_is_redacted_as_by_all_patterns_one_after_the_other(text: str) -> None:
    redacted = telemetry._OUR_KEY.sub(r"fk_\1_" + REDACTED, text)
    redacted = telemetry._URL.sub(telemetry._shorten_url, redacted)
    redacted = telemetry._JWT.sub(REDACTED, redacted)
    redacted = telemetry._PEM.sub(REDACTED, redacted)
    redacted = telemetry._NAMED.sub(rf"\1\2{REDACTED}", redacted)
    redacted = telemetry._BEARER.sub(rf"\1 {REDACTED}", redacted)
    redacted = telemetry._LONG_HEX.sub(REDACTED, redacted)
    assert redact_text(text) == redacted


@given(
    st.dictionaries(st.sampled_from(["note", "private_key", "url", "key_id"]), st.one_of(texts, st.integers(), st.none(), st.booleans()))
)
def test_what_a_line_keeps_as_it_is_holds_nothing_to_redact(event: dict[str, object]) -> None:
    cleaned = {key: telemetry._clean(key, value, depth=0) for key, value in event.items()}
    assert telemetry.redact(None, "info", dict(event)) == cleaned


@given(
    st.dictionaries(
        st.sampled_from(["note", "reason", "private_key", "url", "key_id"]),
        st.one_of(
            texts,
            st.integers(-(2**63), 2**64 - 1),
            st.floats(),
            st.none(),
            st.booleans(),
            st.lists(texts, max_size=2),
            st.binary(max_size=4),
        ),
    )
)
@example({"note": "a" * 127})
@example({"note": "a" * 128})
@example({"note": 'password":"hunter2"'})
@example({"note": "password='hunter2'"})
@example({"note": "é", "reason": "plain"})
@example({"note": "a\nb"})
@example({"token": "plain"})
def test_a_line_looked_at_as_a_whole_is_the_line_that_was_redacted_fact_by_fact(event: dict[str, object]) -> None:
    redacted = telemetry.redact(None, "info", dict(event))
    assert telemetry._render(None, "info", dict(event)) == telemetry._ENCODER.encode(redacted).decode()


def test_a_canonical_line_of_a_good_payment_is_looked_at_as_a_whole() -> None:
    line: dict[str, object] = {"network": "eip155:84532", "asset": "0x" + "ab" * 20, "auth_nonce": "0x" + "cd" * 32, "duration_ms": 1.5}
    assert telemetry._render_plain({**line, "outcome": "valid", "timestamp": "2026-11-21T14:31:48.123456Z", "route": "/verify"}) is not None
