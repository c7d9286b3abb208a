"""Listen addresses: what is loopback decides who may reach an open service."""

import pytest

from facilitator.units import Listen


@pytest.mark.parametrize("text", ["127.0.0.1:4022", "127.9.9.9:1", "[::1]:4022", "localhost:0"])
def test_loopback_addresses(text: str) -> None:
    listen = Listen.parse(text)
    assert listen.loopback
    assert str(listen) == text


@pytest.mark.parametrize("text", ["0.0.0.0:4022", "[::]:4022", "10.0.0.1:80", "facilitator.example:443", "localhost.example:1"])
def test_addresses_that_others_may_reach(text: str) -> None:
    assert not Listen.parse(text).loopback


@pytest.mark.parametrize("text", ["", "4022", ":4022", "127.0.0.1", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:٤", "a b:1", "::1:4022"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Listen.parse(text)
