"""Tenants, keys and console links on the command line: made, changed, shown, ended; all in the audit trail under who typed it."""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, cast

from facilitator.api.admin import key_facts, tenant_facts
from facilitator.api.tokens import parse_public_key
from facilitator.books import ACTOR, Bind, Done
from facilitator.config import Config
from facilitator.console.roles import ROLES
from facilitator.console.secrets import hash_of, new_secret
from facilitator.domain.confirmation import LEVELS
from facilitator.errors import ConfigFault
from facilitator.store import administration, console, tenants
from facilitator.store.administration import NotPossible, Rules
from facilitator.store.db import Db
from facilitator.store.seals import record_event
from facilitator.store.tenants import SCOPES, ApiKey, NewKey, Scope, Tenant, TenantRecord

_ACTOR: Final = f"cli {ACTOR}"
_DONE: Final = 0
_FAILED: Final = 1
_NO_LIMIT: Final = "none"
_NAME_MAX: Final = 200


def add_commands(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", with_config: argparse.ArgumentParser, on_ledger: Bind
) -> None:
    """`keys …`, `tenants …` and `console …`; `on_ledger` makes of a command what argparse calls."""
    _add_keys(commands, with_config, on_ledger)
    _add_tenants(commands, with_config, on_ledger)
    console = commands.add_parser("console", help="the finance console").add_subparsers(required=True, metavar="COMMAND")
    link = console.add_parser("link", parents=[with_config], help="a link that signs somebody in, once; it is shown once")
    link.add_argument("--role", required=True, choices=ROLES)
    link.add_argument("--user", required=True, metavar="NAME", help="who it is for, as the audit trail will have it")
    link.set_defaults(run=on_ledger(console_link))


def _add_keys(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", with_config: argparse.ArgumentParser, bind: Bind) -> None:
    keys = commands.add_parser("keys", help="API keys").add_subparsers(required=True, metavar="COMMAND")
    create = keys.add_parser("create", parents=[with_config], help="make a key, and its tenant if need be; the secret is shown once")
    create.add_argument("--tenant", required=True, type=_tenant_id)
    create.add_argument("--scopes", required=True, type=_scopes, help=f"comma-separated, of {', '.join(SCOPES)}")
    create.add_argument("--expires", type=_expiry, help="a date and time with its zone, or a time from now such as 90d or 12h")
    create.add_argument("--public-key", type=_public_key, metavar="FILE", help="PEM (Ed25519 or P-256): requests are signed, as JWT")
    create.add_argument("--json", action="store_true")
    create.set_defaults(run=bind(keys_create))
    rotate = keys.add_parser("rotate", parents=[with_config], help="make a key in the place of another; for a while both work")
    rotate.add_argument("key_id", metavar="ID")
    rotate.add_argument("--overlap", type=_span, default=timedelta(hours=24), metavar="TIME", help="how long the old one works yet: 24h")
    rotate.add_argument("--json", action="store_true")
    rotate.set_defaults(run=bind(keys_rotate))
    listing = keys.add_parser("list", parents=[with_config], help="all keys, dead ones too")
    listing.add_argument("--tenant")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(run=bind(keys_list))
    revoke = keys.add_parser("revoke", parents=[with_config], help="end a key; running services notice within access.refresh_s")
    revoke.add_argument("key_id", metavar="ID")
    revoke.set_defaults(run=bind(keys_revoke))


def _add_tenants(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", with_config: argparse.ArgumentParser, bind: Bind) -> None:
    group = commands.add_parser("tenants", help="tenants, their rules and limits").add_subparsers(required=True, metavar="COMMAND")
    for name, work, text in (
        ("create", tenants_create, "make a tenant, without keys yet"),
        ("set", tenants_set, "change rules and limits; running services notice within access.refresh_s"),
        ("show", tenants_show, "one tenant's rules and limits, as JSON"),
        ("disable", tenants_disable, "end all keys of a tenant until it is enabled again"),
        ("enable", tenants_enable, "let a disabled tenant's keys work again"),
    ):
        command = group.add_parser(name, parents=[with_config], help=text)
        command.add_argument("tenant_id", metavar="ID", type=_tenant_id)
        command.set_defaults(run=bind(work))
        if name == "set":
            _add_rules(command)
    listing = group.add_parser("list", parents=[with_config], help="all tenants, disabled ones too")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(run=bind(tenants_list))


def _add_rules(command: argparse.ArgumentParser) -> None:
    command.add_argument("--confirm-level", choices=[*LEVELS, "default"], help="how deep its payments must be before success is told")
    for flag, text in (
        ("--shared-transactions", "whether its payments may share a transaction"),
        ("--accept-external", "whether a payment executed by another sender is a success: only for who de-duplicates by nonce"),
        ("--trust-payment-identifier", "whether the buyer's payment-identifier stands for an Idempotency-Key"),
        ("--accept-unscreened", "whether its payments are made while a sanctions list is stale or cannot be read"),
        ("--discoverable", "whether resources are listed whose sellers declare it (bazaar)"),
    ):
        command.add_argument(flag, choices=["yes", "no"], help=text)
    command.add_argument(
        "--rate", action="append", type=_rate, default=[], metavar="ROUTE=PER_SECOND:BURST", help="/settle=10:20, or /settle=none"
    )
    for flag, name, text in (
        ("--settlements-max", "settlementsMax", "settlements under way at the same time, in each process"),
        ("--payer-settlements-max", "payerSettlementsMax", "the same of one payer"),
        (
            "--payer-strikes-max",
            "payerStrikesMax",
            "payments that cost gas and paid nobody at which a payer rests; default by configuration",
        ),
        ("--strikes-max", "strikesMax", "the same of all its payers together, at which the tenant rests"),
    ):
        command.add_argument(flag, dest=name, type=_count, metavar="N", help=f"{text}; none ends the limit")
    command.add_argument("--amount-min", dest="amountMin", metavar="ATOMIC", help="least amount, in atomic units; none ends the limit")
    command.add_argument("--gas-wei-per-day", dest="gasWeiPerDay", metavar="WEI", help="gas budget of a day, on each network; none ends it")
    command.add_argument(
        "--gas-usd-per-day", dest="gasUsdPerDay", metavar="USD", help="the same in dollars, such as 12.50, on all networks"
    )
    for flag, name, text in (
        ("--networks", "networks", "networks that it may be paid on"),
        ("--assets", "assets", "tokens that it may be paid in"),
        ("--pay-to", "payTo", "recipients that it may name"),
    ):
        command.add_argument(flag, dest=name, type=_entries, metavar="LIST", help=f"{text}, comma-separated; none ends the limit")


# ---- arguments


def _scopes(text: str) -> list[Scope]:
    scopes = [part.strip() for part in text.split(",") if part.strip()]
    for scope in scopes:
        if scope not in SCOPES:
            raise argparse.ArgumentTypeError(f"{scope!r} is none of {', '.join(SCOPES)}")
    if not scopes:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(SCOPES)}")
    return cast("list[Scope]", list(dict.fromkeys(scopes)))


def _span(text: str) -> timedelta:
    match = re.fullmatch(r"(0|[1-9][0-9]{0,4})([dhm])", text)
    if match is None:
        raise argparse.ArgumentTypeError("expected a time such as 24h, 90d or 30m")
    return int(match[1]) * {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1)}[match[2]]


def _public_key(path: str) -> str:
    try:
        return parse_public_key(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _expiry(text: str) -> datetime:
    now = datetime.now(UTC)
    if match := re.fullmatch(r"([1-9][0-9]{0,4})([dh])", text):
        number = int(match[1])
        return now + (timedelta(days=number) if match[2] == "d" else timedelta(hours=number))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("expected a time such as 2027-01-31T00:00:00Z, 90d or 12h") from None
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError("the time needs a zone: write 2027-01-31T00:00:00Z")
    if moment <= now:
        raise argparse.ArgumentTypeError("this time is past")
    return moment


def _rate(text: str) -> tuple[str, dict[str, object] | None]:
    if match := re.fullmatch(r"(/[a-z/{}]+)=([0-9]+(?:\.[0-9]+)?):([0-9]+)", text, re.ASCII):
        return match[1], {"perSecond": float(match[2]), "burst": int(match[3])}
    if match := re.fullmatch(r"(/[a-z/{}]+)=none", text, re.ASCII):
        return match[1], None
    raise argparse.ArgumentTypeError("expected ROUTE=PER_SECOND:BURST such as /settle=10:20, or /settle=none")


def _count(text: str) -> int | str:
    if text == _NO_LIMIT:
        return text
    if not re.fullmatch(r"[0-9]{1,7}", text, re.ASCII):
        raise argparse.ArgumentTypeError("expected a number, or none")
    return int(text)


def _entries(text: str) -> list[str] | str:
    return text if text == _NO_LIMIT else [part.strip() for part in text.split(",") if part.strip()]


def _tenant_id(text: str) -> str:
    try:
        return tenants.parse_tenant_id(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# ---- keys


async def keys_create(_config: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """A new key, shown once."""
    new = tenants.generate_key() if parsed.public_key is None else tenants.signing_key(parsed.public_key)
    row = await administration.create_key(db, _ACTOR, new, parsed.tenant, parsed.scopes, parsed.expires, make_tenant=True)
    return _shown_once(new, row, parsed.json)


async def keys_rotate(_config: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """A new key in the place of an old one, shown once."""
    new = tenants.generate_key()
    try:
        row = await administration.rotate_key(db, _ACTOR, new, parsed.key_id, parsed.overlap)
    except NotPossible as reason:
        return _complain(f"{reason}: `facilitator keys list` shows them")
    return _shown_once(new, row, parsed.json)


def _shown_once(new: NewKey, row: ApiKey, as_json: bool) -> Done:  # noqa: FBT001
    if as_json:
        return Done(_DONE, [json.dumps({"key": new.text, **key_facts(row)})])
    shown = "It is not shown again." if new.public_key is None else "Sign with the private key; `kid` and `sub` are this id."
    print(f"key {row.key_id} of tenant {row.tenant_id}, scopes {', '.join(row.scopes)}. {shown}", file=sys.stderr)
    return Done(_DONE, [new.text])


async def keys_list(_config: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """Keys as they are on record."""
    facts = [key_facts(row) for row in await tenants.list_api_keys(db, parsed.tenant)]
    columns = ["id", "tenant", "scopes", "created", "expires", "revoked", "lastUsed", "replaces"]
    return Done(_DONE, [json.dumps(facts)] if parsed.json else _table(columns, facts))


async def keys_revoke(_config: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """End a key."""
    row = await administration.revoke_key(db, _ACTOR, parsed.key_id)
    if row is None:
        return _complain(f"there is no key {parsed.key_id}: `facilitator keys list` shows them")
    return Done(_DONE, [f"revoked {row.key_id} of tenant {row.tenant_id}"])


# ---- tenants


async def tenants_create(_config: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """A new tenant."""
    row = await administration.create_tenant(db, _ACTOR, Tenant(tenant_id=parsed.tenant_id))
    return _complain(f"there is a tenant {parsed.tenant_id} already") if row is None else _told(row, parsed)


async def tenants_set(_config: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """Change what was named."""
    flags = ("shared_transactions", "accept_external", "trust_payment_identifier", "accept_unscreened", "discoverable")
    rules = cast("Rules", {name: getattr(parsed, name) == "yes" for name in flags if getattr(parsed, name) is not None})
    if parsed.confirm_level is not None:
        rules["confirm_level"] = None if parsed.confirm_level == "default" else parsed.confirm_level
    named = (
        *("settlementsMax", "payerSettlementsMax", "payerStrikesMax", "strikesMax"),
        *("amountMin", "gasWeiPerDay", "gasUsdPerDay", "networks", "assets", "payTo"),
    )
    limits = {name: _or_null(getattr(parsed, name)) for name in named if getattr(parsed, name) is not None}
    if parsed.rate:
        limits["rates"] = dict(parsed.rate)
    try:
        return _told(await administration.change_tenant(db, _ACTOR, parsed.tenant_id, rules, limits=limits), parsed)
    except ValueError as error:
        raise ConfigFault("no_limits", str(error)) from None


def _or_null(given: object) -> object:
    return None if given == _NO_LIMIT else given


async def tenants_show(_config: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """One tenant."""
    return _told(await tenants.find_record(db, parsed.tenant_id), parsed)


async def tenants_disable(_config: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """End its keys."""
    return _told(await administration.change_tenant(db, _ACTOR, parsed.tenant_id, {}, disabled=True), parsed)


async def tenants_enable(_config: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """Let them work again."""
    return _told(await administration.change_tenant(db, _ACTOR, parsed.tenant_id, {}, disabled=False), parsed)


async def tenants_list(_config: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """All tenants."""
    facts = [tenant_facts(row) for row in await tenants.list_tenants(db)]
    if parsed.json:
        return Done(_DONE, [json.dumps(facts)])
    return Done(_DONE, _table(["id", "created", "disabled", "confirmLevel", "limits"], facts))


def _told(row: TenantRecord | None, parsed: argparse.Namespace) -> Done:
    if row is None:
        return _complain(f"there is no tenant {parsed.tenant_id}: `facilitator tenants list` shows them")
    return Done(_DONE, [json.dumps(tenant_facts(row), indent=2)])


# ---- telling


def _complain(message: str) -> Done:
    print(f"facilitator: {message}", file=sys.stderr)
    return Done(_FAILED, [])


def _table(columns: Sequence[str], rows: Iterable[dict[str, object]]) -> list[str]:
    def cell(value: object) -> str:
        if isinstance(value, dict):
            return json.dumps(value, separators=(",", ":")) if value else "-"
        return "-" if value is None else ",".join(value) if isinstance(value, list) else str(value)

    lines = [list(columns), *([cell(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]


async def console_link(config: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """`console link`."""
    if config.console is None:
        raise ConfigFault("no_console", "there is no [console] table: the console is off")
    if not 0 < len(parsed.user) <= _NAME_MAX or not parsed.user.isprintable():
        raise ConfigFault("bad_usage", f"--user: expected a name of up to {_NAME_MAX} letters")
    secret = new_secret()
    async with db.transaction() as session:
        await console.make_link(session, hash_of(secret), parsed.user, parsed.role, _ACTOR, config.console.link_life_s)
        await record_event(session, "console_link_made", _ACTOR, json.dumps({"person": parsed.user, "role": parsed.role}))
    base = (config.console.url or f"http://{config.console.listen}").rstrip("/")
    return Done(_DONE, [f"{base}/sign-in?token={secret}"])
