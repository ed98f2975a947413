"""Ctrl-C within a gather: the signal arrives in SQLite's progress handler, and the gather's database is not kept."""

from __future__ import annotations

import asyncio

import pytest

from mktsim.sql import GatherEngine, Planner, Schema
from mktsim.sqlite import Connection, driver

SCHEMA = Schema(("CREATE TABLE products(price INTEGER)",))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, asyncio.CancelledError])
def test_a_gather_that_is_interrupted_closes_its_database(kind: type[BaseException]) -> None:
    """Nobody has the session any more, for the caller is on its way out; the next gather has one of its own."""
    opened: list[Connection] = []
    fails = True

    def look() -> bool:
        if fails:
            raise kind
        return False

    def setup(connection: Connection) -> None:
        opened.append(connection)
        connection.set_progress_handler(look, 1_000)

    engine = GatherEngine(setup=setup)
    plan = Planner(SCHEMA).plan("SELECT COUNT(*) FROM products a, products b, products c")

    def gathered() -> list[tuple[object, ...]]:
        return engine.gather(plan, [("acme", ([(None,)] * 60,))], ())

    with pytest.raises(kind):
        gathered()
    with pytest.raises(driver.ConnectionClosedError):
        opened[0].get_autocommit()
    fails = False
    assert gathered() == [(60**3,)]
    assert len(opened) == 2
    engine.close()
