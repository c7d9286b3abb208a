"""A paid Flask application, as the documentation of PyPI `x402` writes it.

Environment: FACILITATOR_URL, FACILITATOR_KEY, EVM_PAYEE_ADDRESS, PORT.
"""

import os

from flask import Flask
from werkzeug.serving import make_server
from x402 import x402ResourceServerSync
from x402.http import AuthHeaders, FacilitatorConfig, HTTPFacilitatorClientSync, PaymentOption, RouteConfig
from x402.http.middleware.flask import payment_middleware
from x402.mechanisms.evm.exact.register import register_exact_evm_server

NETWORK = "eip155:84532"


class Key:
    """The facilitator's API key, on every request."""

    def get_auth_headers(self) -> AuthHeaders:
        """Answer the SDK's question for headers."""
        header = {"Authorization": f"Bearer {os.environ['FACILITATOR_KEY']}"}
        return AuthHeaders(verify=header, settle=header, supported=header)


app = Flask(__name__)


@app.get("/health")
def health() -> dict[str, str]:
    """Say that the server is up."""
    return {"status": "ok"}


@app.get("/report")
def report() -> dict[str, str]:
    """Give what was paid for."""
    return {"report": "sunny"}


server = x402ResourceServerSync(HTTPFacilitatorClientSync(FacilitatorConfig(url=os.environ["FACILITATOR_URL"], auth_provider=Key())))
register_exact_evm_server(server, NETWORK)
price = PaymentOption(scheme="exact", network=NETWORK, price="$0.01", pay_to=os.environ["EVM_PAYEE_ADDRESS"])
payment_middleware(
    app,
    routes={"GET /report": RouteConfig(accepts=price, description="A report", mime_type="application/json")},
    server=server,
)

if __name__ == "__main__":
    make_server("127.0.0.1", int(os.environ["PORT"]), app, threaded=True).serve_forever()
