"""A paid FastAPI application, as the documentation of PyPI `x402` writes it.

Environment: FACILITATOR_URL, FACILITATOR_KEY, EVM_PAYEE_ADDRESS, PORT.
"""

import os

import uvicorn
from fastapi import FastAPI
from x402 import x402ResourceServer
from x402.http import AuthHeaders, FacilitatorConfig, HTTPFacilitatorClient, PaymentOption, RouteConfig
from x402.http.middleware.fastapi import PaymentMiddlewareASGI
from x402.mechanisms.evm.exact.register import register_exact_evm_server

NETWORK = "eip155:84532"


class Key:
    """The facilitator's API key, on every request."""

    def get_auth_headers(self) -> AuthHeaders:
        """Answer the SDK's question for headers."""
        header = {"Authorization": f"Bearer {os.environ['FACILITATOR_KEY']}"}
        return AuthHeaders(verify=header, settle=header, supported=header)


app = FastAPI()


@app.get("/health")
def health() -> dict[str, str]:
    """Say that the server is up."""
    return {"status": "ok"}


@app.get("/report")
def report() -> dict[str, str]:
    """Give what was paid for."""
    return {"report": "sunny"}


server = x402ResourceServer(HTTPFacilitatorClient(FacilitatorConfig(url=os.environ["FACILITATOR_URL"], auth_provider=Key())))
register_exact_evm_server(server, NETWORK)
price = PaymentOption(scheme="exact", network=NETWORK, price="$0.01", pay_to=os.environ["EVM_PAYEE_ADDRESS"])
app.add_middleware(
    PaymentMiddlewareASGI,
    routes={"GET /report": RouteConfig(accepts=price, description="A report", mime_type="application/json")},
    server=server,
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
