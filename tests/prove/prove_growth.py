"""What the service asks of the ledger for each payment and each block touches as many pages in a big ledger as in a small one.

GROWTH_SETTLEMENTS says how big (300,000). Time says little on a shared machine; pages, and no scan of a growing table, say it all.
Read statements only: those that write find their rows by the same keys.
"""

import json
import os
from typing import Any, Final
from uuid import UUID

import asyncpg

from facilitator.devstack.stack import Postgres
from facilitator.store.db import load_queries

SMALL: Final = 10_000
SETTLEMENTS: Final = int(os.environ.get("GROWTH_SETTLEMENTS", "300000"))
NETWORK: Final = "eip155:8453"
USDC: Final = "0x833589fcd6edb6e08f4c7c32d4f71b54bda02913"
_SETTLEMENTS: Final = """
insert into settlement (settlement_id, network, asset, payer, auth_nonce, scheme, pay_to, amount_atomic, valid_after, valid_before,
                        signature, fingerprint, tenant_id, request_id, resource, state, moves, admitted_block, tx_hash,
                        log_index, block_number, block_hash, queued_at, resolved_at, answer_state, answer_holder, answer)
select ('00000000-0000-7000-8000-' || lpad(to_hex(i), 12, '0'))::uuid, 'eip155:8453', '0x833589fcd6edb6e08f4c7c32d4f71b54bda02913',
       '0x' || substr(md5('payer' || i % 20000) || md5('x' || i % 20000), 1, 40), w.word, 'exact', '0x' || lpad(to_hex(i % 400), 40, 'b'),
       1000, 0, 1900000000, decode(repeat('ab', 65), 'hex'), decode(repeat('cd', 32), 'hex'), 'tenant-' || (i % 1000), 'request-' || i,
       'https://shop.example/' || i % 400, 'finalized', 4, 1, w.word, 1, 1000 + i / 100, w.word, now(), now(), 'spent', 'replica',
       jsonb_build_object('success', true, 'transaction', w.word)
  from generate_series($1::bigint, $2::bigint - 1) i, lateral (select '0x' || md5('a' || i) || md5('b' || i) as word) w
"""
_MOVES: Final = """
insert into settlement_move (settlement_id, move, from_state, to_state, tx_hash)
select ('00000000-0000-7000-8000-' || lpad(to_hex(i), 12, '0'))::uuid, m, 'queued', 'submitted', '0x' || md5('a' || i) || md5('b' || i)
  from generate_series($1::bigint, $2::bigint - 1) i, generate_series(1, 4) m
"""
GROWING: Final = {"settlement", "settlement_move"}


def wording(number: int) -> tuple[str, str]:
    """SQL of payer and nonce of one settlement."""
    return (
        f"'0x' || substr(md5('payer' || {number % 20000}) || md5('x' || {number % 20000}), 1, 40)",
        f"'0x' || md5('a' || {number}) || md5('b' || {number})",
    )


async def plant(connection: "asyncpg.Connection[Any]", first: int, beyond: int) -> None:
    for start in range(first, beyond, 50_000):
        for statement in (_SETTLEMENTS, _MOVES):
            await connection.execute(statement, start, min(start + 50_000, beyond), timeout=600)
    await connection.execute("vacuum analyze", timeout=600)


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in nodes(child))]


async def pages(connection: "asyncpg.Connection[Any]", name: str, *arguments: object) -> int:
    """Pages that the statement touches, the second time that it is run."""
    text = "explain (analyze, buffers, format json) " + load_queries("settlements")[name].sql
    for _ in range(2):
        (plan,) = json.loads(await connection.fetchval(text, *arguments))
    scans = [node for node in nodes(plan["Plan"]) if node["Node Type"] == "Seq Scan" and node["Relation Name"] in GROWING]
    assert not scans, (name, scans)
    return int(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])


async def measure(connection: "asyncpg.Connection[Any]", size: int) -> dict[str, int]:
    """Pages of each statement that /verify, /settle and each block ask."""
    keys = [await connection.fetchrow("select {}, {}".format(*wording(number))) for number in range(0, size, size // 50)]
    payers, nonces = [key[0] for key in keys], [key[1] for key in keys]
    strangers = ["0x" + "f" * 64] * len(keys)
    networks, assets = [NETWORK] * len(keys), [USDC] * len(keys)
    some = [UUID(int=(0x7 << 76) | (0x8 << 60) | number) for number in range(0, size, size // 50)]
    return {
        "50 unknown payments": await pages(connection, "own_records", networks, assets, payers, strangers, [], [], 30.0, [], []),
        "50 known payments": await pages(connection, "own_records", networks, assets, payers, nonces, [], [], 30.0, [], []),
        "50 records": await pages(connection, "records", some, 30.0),
        "50 histories": await pages(connection, "history", some),
        "queue": await pages(connection, "list_queued", NETWORK, 50, [], 5.0),
        "age of the queue": await pages(connection, "queue_ages", NETWORK, []),
        "blocks not final": await pages(connection, "unfinal_blocks", NETWORK, 2_000_000_000),
        "watched": await pages(connection, "count_watched", NETWORK),
        "page of a tenant": await pages(connection, "page", "tenant-7", *[None] * 9, 50),
    }


async def test_pages_of_each_statement_stay_as_the_ledger_grows(postgres: Postgres, database_template: str) -> None:
    url = await postgres.create_database("growth", database_template)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("insert into tenant (tenant_id) select 'tenant-' || i from generate_series(0, 999) i")
        await plant(connection, 0, SMALL)
        small = await measure(connection, SMALL)
        await plant(connection, SMALL, SETTLEMENTS)
        big = await measure(connection, SETTLEMENTS)
        for name, count in small.items():
            print(f"{name}: {count} pages in a ledger of {SMALL:,}, {big[name]} in one of {SETTLEMENTS:,}")  # noqa: T201
        for table in sorted(GROWING):
            row = await connection.fetchrow("select pg_table_size($1::regclass), pg_indexes_size($1::regclass)", table)
            print(f"{table}: {row[0] // SETTLEMENTS} bytes and {row[1] // SETTLEMENTS} of indexes for each settlement")  # noqa: T201
        grown = {name: (count, big[name]) for name, count in small.items() if big[name] > 2 * count + 64}
        assert not grown, grown
    finally:
        await connection.close()
        await postgres.drop_database("growth")
