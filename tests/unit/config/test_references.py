"""References to keys: what is read, what is shown, and that nothing is quoted that may be a key."""

import pytest

from facilitator.references import KeyReference

ADDRESS = "0x" + "ab" * 20
GOOD = [
    "env:RELAYER",
    "file:/run/secrets/relayer",
    "keystore:/keys/one.json?password=env:PASSWORD",
    f"aws-kms:arn:aws:kms:eu-central-1:111122223333:key/mrk-1234?address={ADDRESS}",
    f"aws-kms:arn:aws:kms:eu-central-1:111122223333:alias/relayer?address={ADDRESS}&endpoint=http://127.0.0.1:4566",
    f"gcp-kms:projects/p/locations/global/keyRings/r/cryptoKeys/k/cryptoKeyVersions/3?address={ADDRESS}",
    f"web3signer:https://signer.internal:9000?address={ADDRESS}&token=env:SIGNER_TOKEN",
]


@pytest.mark.parametrize("text", GOOD)
def test_a_reference_is_shown_as_it_was_written(text: str) -> None:
    assert str(KeyReference.parse(text)) == text


def test_every_secret_behind_a_reference_is_known() -> None:
    shown = [[str(secret) for secret in KeyReference.parse(text).secrets] for text in (GOOD[2], GOOD[3], GOOD[6])]
    assert shown == [["keystore:/keys/one.json?password=env:PASSWORD", "env:PASSWORD"], [], ["env:SIGNER_TOKEN"]]


@pytest.mark.parametrize(
    "text",
    [
        "0x" + "11" * 32,
        "env:",
        "file:relative",
        "keystore:/keys/one.json",
        "aws-kms:arn:aws:kms:eu-central-1:111122223333:key/mrk-1234",
        f"aws-kms:alias/relayer?address={ADDRESS}",
        f"gcp-kms:projects/p?address={ADDRESS}",
        f"web3signer:https://user:{'11' * 32}@host?address={ADDRESS}",
        f"web3signer:https://host?address={ADDRESS}&password={'11' * 32}",
        f"web3signer:https://host?address={ADDRESS}&token={'11' * 32}",
        "web3signer:https://host?address=0x12",
    ],
)
def test_what_is_no_reference_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="expected|must not stand") as caught:
        KeyReference.parse(text)
    assert "11" * 16 not in str(caught.value)
