"""The comparison page: every example statement runs, equals one SQLite, and is answered by the tier the page says."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from mktsim.errors import UnsupportedQueryError
from mktsim.fanout import QueryCoordinator, Scanner
from mktsim.sql import Schema
from mktsim.testing import run_oracle, typed
from tests.oracle import ask

PAGE = (Path(__file__).parents[1] / "docs" / "COMPARISON.md").read_text(encoding="utf-8")
TIERS = {"route", "two-phase", "collect", "local", "refused"}


def _rows():
    """Return the table's rows as (feature, statement, tier, sources cited)."""
    found = []
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| ") and cells[0] != "feature":
            feature, example, tier, *others = cells
            assert len(others) == 2, f"a cell of {feature!r} has a bar in it"
            found.append((feature, example.strip("`"), tier, re.findall(r"\[([VC]\d)\]", " ".join(others))))
    return found


ROWS = _rows()
STATEMENTS = tuple(
    statement.strip() for statement in re.search(r"```sql\n(.*?)```", PAGE, re.S)[1].split(";") if statement.strip()
)
SCHEMA = Schema(STATEMENTS, shard_column="vendorId")


def _fill(vendors):
    """Return one database with all rows, and one per vendor, of which the last has none."""
    draw = random.Random(2026)
    one, fleet = SCHEMA.database(), [SCHEMA.database() for _ in range(vendors)]
    for place, database in enumerate(fleet[:-1]):
        name = f"v{place:03d}"
        # Product ids collide between vendors; names differ in case only; prices and stock repeat and are missing.
        products = [
            (
                *(name, f"p{number}", draw.choice(("Mouse", "mouse", "Lamp", "lamp ", "Desk", None))),
                *(draw.choice(("home", "office", None)), draw.choice((0.1, 0.2, 0.3, 19.99, 20.0, 149.5, None))),
                draw.choice((0, 1, 2, 3, 5, 8, None)),
            )
            for number in range(6)
        ]
        reviews = [(name, f"p{draw.randrange(9)}", draw.choice((1, 2, 3, 4, 5, None))) for _ in range(8)]
        prices = [(f"p{draw.randrange(7)}", draw.choice((0.1, 0.3, 20.0))) for _ in range(6)]
        for target in (one, database):
            target.executemany("INSERT INTO products VALUES (?, ?, ?, ?, ?, ?)", products)
            target.executemany("INSERT INTO reviews VALUES (?, ?, ?)", reviews)
            target.executemany("INSERT INTO prices VALUES (?, ?)", prices)
    return one, fleet


@pytest.fixture(scope="module")
def sides():
    """One SQLite, and a coordinator over six vendors with the same rows."""
    one, fleet = _fill(6)
    scanners = [Scanner.from_connection(f"v{place:03d}", database) for place, database in enumerate(fleet)]
    coordinator = QueryCoordinator(scanners, schema=SCHEMA)
    yield one, coordinator
    coordinator.close()
    for database in (one, *fleet):
        database.close()


@pytest.mark.parametrize(("feature", "sql", "tier"), [row[:3] for row in ROWS], ids=[row[0] for row in ROWS])
def test_every_example_equals_one_sqlite_and_is_answered_by_the_tier_the_page_says(sides, feature, sql, tier):
    """Values, types, order and names; where the page says refused, the error is the named one and SQLite has none."""
    one, coordinator = sides
    names, rows = run_oracle(one, sql)
    assert rows, f"the example of {feature!r} shows nothing"
    if tier == "refused":
        with pytest.raises(UnsupportedQueryError):
            ask(coordinator, sql)
        return
    answer = ask(coordinator, sql)
    assert typed(answer.rows) == typed(rows)
    assert answer.columns == names
    assert answer.stats.tier == tier, f"{feature!r}: correct the page, the tier is now {answer.stats.tier}"


def test_the_page_has_every_tier_and_every_source_it_cites():
    """No tier is without an example, no citation without a source and no source without a citation."""
    assert {row[2] for row in ROWS} == TIERS
    cited = {source for row in ROWS for source in row[3]} | set(
        re.findall(r"\[([VC]\d)\]", PAGE.split("## Sources")[0])
    )
    assert cited == set(re.findall(r"(?m)^- \[([VC]\d)\]", PAGE))
    assert len(ROWS) == len({row[0] for row in ROWS}) >= 35
