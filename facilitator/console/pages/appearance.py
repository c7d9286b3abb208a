"""Light or dark, by a cookie: it works without a script, and says nothing about who has it."""

from typing import Final

from aiohttp import web

from facilitator.console.desk import THEME_COOKIE, THEMES, Desk, Refused, Visit, local_path

_YEAR_S: Final = 31_536_000


async def choose_theme(_desk: Desk, visit: Visit) -> web.StreamResponse:
    """POST /theme: and back to the page that asked."""
    theme = visit.form.get("theme", "")
    if theme not in THEMES:
        raise Refused(400, "There are no such colours.")
    answer = web.Response(status=303, headers={"Location": local_path(visit.form.get("back", "/"))})
    answer.set_cookie(THEME_COOKIE, theme, max_age=_YEAR_S, path="/", secure=visit.request.secure, httponly=True, samesite="Lax")
    return answer
