"""The pages of the finance console, and the table of them."""

from typing import Final

from aiohttp import web

from facilitator.console.desk import Desk, Page, Visit
from facilitator.finance import views


async def overview(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /: how the books stand."""
    return desk.render(visit, "overview.html", overview=await views.overview(desk.need_db(), desk.finance.booking_zone))


PAGES: Final = (Page(method="GET", path="/", handler=overview),)
