import base64
import hashlib
import json
import re

import pytest
from multidict import CIMultiDict

from facilitator.gateway.cors import expose
from facilitator.gateway.paywall import Page, Paywall, Unpaid, official_paywall, render_paywall
from facilitator.gateway.prices import Resource, Terms, find_token, parse_payee
from facilitator.units import Atomic

HOSTILE = "</script><script>alert(1)</script>&\u2028"
TERMS = Terms(
    token=find_token("base-sepolia"),
    pay_to=parse_payee("0x2222222222222222222222222222222222222222"),
    amount_atomic=Atomic(10_000),
    max_timeout_s=300,
)


def unpaid(text: str) -> Unpaid:
    return Unpaid(terms=(TERMS,), resource=Resource(url=f"http://shop/{text}", description=text, mime_type="text/plain"), error="pay")


def test_what_others_wrote_stays_text() -> None:
    page = render_paywall(unpaid(HOSTILE)).html
    assert "<script>alert" not in page
    assert "\u2028" not in page.partition('id="demand">')[2].partition("</script>")[0]
    embedded = re.search(r'id="demand">(.*?)</script>', page, re.DOTALL)
    assert embedded is not None
    assert json.loads(embedded[1])["resource"]["description"] == HOSTILE


def test_the_page_runs_its_own_script_and_loads_nothing() -> None:
    page = render_paywall(unpaid("a report"))
    assert page.policy is not None
    for tag in ("script", "style"):
        (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page.html, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode() in page.policy
    assert re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page.html) == ["https://www.x402.org"]
    assert "default-src 'none'" in page.policy


def test_the_page_is_readable_without_eyes_and_scripts() -> None:
    page = render_paywall(unpaid("a report")).html
    for part in ('<html lang="en">', "<h1>Payment required</h1>", 'aria-live="polite"', "<noscript>", "0.01 USDC", "eip155:84532"):
        assert part in page


def test_the_official_page_may_be_had_instead() -> None:
    official: Paywall = official_paywall(app_name="Shop", network="test")
    page = official(unpaid("a report"))
    assert isinstance(page, Page)
    assert page.policy is None
    assert "0x2222222222222222222222222222222222222222" in page.html


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "PAYMENT-REQUIRED, PAYMENT-RESPONSE, X-PAYMENT-RESPONSE, WWW-Authenticate, Payment-Receipt"),
        ("ETag, payment-response", "ETag, payment-response, PAYMENT-REQUIRED, X-PAYMENT-RESPONSE, WWW-Authenticate, Payment-Receipt"),
        ("*", "*"),
    ],
)
def test_payment_headers_are_exposed_beside_what_is_exposed_already(before: str | None, after: str) -> None:
    headers = CIMultiDict({"Access-Control-Expose-Headers": before} if before else {})
    expose(headers, None, ())
    assert headers["Access-Control-Expose-Headers"] == after
    assert "Access-Control-Allow-Origin" not in headers
