"""The 57 SELECTs that Vitess refuses over shards: all answered, and each answer is one SQLite's.

The statements come without rows. Rows are generated: few distinct values, so that joins match, groups have several
members and peers tie; NULL everywhere; and in columns whose name tells no type, integers and texts side by side.

Where a statement leaves the order of rows or of peers open, one SQLite still has an order, that of its walk over rows
in (vendor, rowid) order, and the coordinator promises that one: nothing is sorted before it is compared.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mktsim.testing import Case, TableData, check_statement

CASES = Path(__file__).parents[2] / "shared" / "sql-cases" / "vitess_refuses.json"

pytestmark = pytest.mark.skipif(not CASES.exists(), reason="the public SQL cases lie beside the project, not in it")

_INTEGERS = (1, 1, 2, 2, 3, 4, 5, 6, -7, None)
_TEXTS = ("test", "test", "a", "A", "b", "", "é", None)
_ANY = (1, 2, 3, 5, 6, "a", "a", "A", "1", None)
#: Declared type and values by column name, for names that tell a type; `user_extra.id` and `t.bar` are joined on.
_KINDS = {
    "INTEGER": (("id", "id2", "user_id", "intcol"), _INTEGERS),
    "TEXT": (("textcol1", "name", "user_name", "col1", "col2"), _TEXTS),
    "TEXT COLLATE NOCASE": (("cola", "colb"), _TEXTS),
}


@cache
def statements() -> list[dict[str, Any]]:
    """Return the cases."""
    return list(json.loads(CASES.read_text()))


def generate(schema: dict[str, list[str]], vendors: int, seed: int) -> Case:
    """Return tables of 30 to 40 rows over `vendors` vendors and, amid them, one that has no row."""
    draw = random.Random(f"{seed} {sorted(schema)}")
    empty = vendors // 2
    tables, owners = [], {}
    for name, columns in sorted(schema.items()):
        # Columns `a` and `b` are counted distinct: under their own names, of any type.
        shapes = [next((kind for kind, (names, _) in _KINDS.items() if column in names), "") for column in columns]
        pools = [_KINDS[shape][1] if shape else _ANY for shape in shapes]
        rows = tuple(tuple(draw.choice(pool) for pool in pools) for _ in range(30 + draw.randrange(11)))
        definitions = tuple(f"{column} {shape}".strip() for column, shape in zip(columns, shapes, strict=True))
        tables.append(TableData(name, definitions, rows))
        places = [place for place in range(vendors + 1) if place != empty]
        owners[name] = tuple(draw.choice(places) for _ in rows)
    return Case(tuple(tables), vendors + 1, owners)


@pytest.mark.parametrize("vendors", [1, 5, 7])
@pytest.mark.parametrize("seed", [2026, 2027, 2028])
def test_every_statement_vitess_refuses_is_answered_as_one_sqlite_answers_it(vendors, seed):
    """Values, types, order and column names; a statement both sides refuse would not count as answered."""
    refused = [
        case["sql"]
        for case in statements()
        if check_statement(case["sql"], generate(case["schema"], vendors, seed)) is None
    ]
    assert refused == []
    assert len(statements()) == 57


def test_the_generated_rows_reach_every_statement():
    """Every statement has rows to answer with for some seed, and NULL, ties and duplicates are among its inputs."""
    sizes: Counter[int] = Counter()
    for seed in (2026, 2027, 2028):
        for place, case in enumerate(statements()):
            answer = check_statement(case["sql"], generate(case["schema"], 5, seed))
            sizes[place] += len(answer.rows) if answer is not None else 0
    assert [statements()[place]["sql"] for place in range(57) if not sizes[place]] == []
