"""Who may do what in the finance console. Pure; the table is the law, and every page names the permission that it needs."""

from collections.abc import Mapping
from typing import Final, Literal, get_args

Role = Literal["viewer", "finance", "auditor", "admin"]
Permission = Literal["view", "export", "audit", "resolve", "close"]
"""`view` reads the books; `export` takes files away; `audit` reads the audit trail; `resolve` explains discrepancies;
`close` closes and reopens book days."""

ROLES: Final[tuple[Role, ...]] = get_args(Role)
PERMISSIONS: Final[Mapping[Role, frozenset[Permission]]] = {
    "viewer": frozenset({"view"}),
    "finance": frozenset({"view", "export", "resolve", "close"}),
    "auditor": frozenset({"view", "export", "audit"}),
    "admin": frozenset(get_args(Permission)),
}


def parse_role(text: str) -> Role:
    """Read a role. Raises ValueError that names those there are."""
    for role in ROLES:
        if text == role:
            return role
    raise ValueError(f"expected one of {', '.join(ROLES)}, got {text[:40]!r}")
