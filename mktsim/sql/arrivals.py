"""Rows of a collected statement, entered into the gather as they arrive: no vendor's rows wait for another's.

Rules
-----
1. What a scanner sent is given up as soon as it is in the gather's database, which spills to a file past its cache. So
   the peak is what one scanner sends and that cache, not what all of them send.
2. Order of arrival does not matter. Where scanners have ranks, a row's place is written into its rowid: rank first.
   Where vendors of several scanners lie between each other, or where keys may collide, rows wait in a table without
   keys, beside their vendor's id, and enter the statement's tables in order at the end.
3. Past some thousand rows indexes are dropped, and made again when all rows are there.
4. Caps on rows and bytes hold at every step, as named errors. Rows that wait count twice while they move.

What this does not do
---------------------
A shard's answer is one message: its rows are in memory together before the first of them enters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from mktsim.errors import cause
from mktsim.sql.plan import Plan
from mktsim.sqlite import ConstraintError, Error, Value, quote, rows

if TYPE_CHECKING:
    from mktsim.sql.gather import GatherEngine, Segment

Row = tuple[Any, ...]

#: Rows past which indexes wait for the end.
_LARGE: Final = 10_000
_RANK_BITS: Final = 32
_INDEXES: Final = "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL ORDER BY rowid"


class Arrivals:
    """One statement's rows under way; made by :meth:`GatherEngine.arrivals`, closed by its user.

    Parameters
    ----------
    engine : GatherEngine
        Who lends the database.
    plan : Plan
        A collected statement.
    ranked : bool
        Whether what arrives has a rank, a small integer. Otherwise its segments' places tell the order.
    """

    def __init__(self, engine: GatherEngine, plan: Plan, *, ranked: bool) -> None:
        self._engine = engine
        self._plan = plan
        self._session = engine.lend(plan)
        self._connection = connection = self._session.connection
        self._ranked = ranked
        self._waits = not (ranked and self._session.consumes and all(statement.placed for statement in plan.scatter))
        self._sent = 0
        self._indexes: list[str] = []
        self._is_sound = True
        if self._waits:
            for position, statement in enumerate(plan.scatter):
                columns = ", ".join(f"c{place}" for place in range(statement.width))
                connection.execute(f"CREATE TABLE IF NOT EXISTS mktsim_wait_{position}(place, {columns})")
        connection.execute("BEGIN")

    def add(self, rank: int, segments: Sequence[Segment]) -> list[Any]:
        """Enter what one scanner sent; return segments that only count their rows.

        Raises
        ------
        QueryTooLargeError
            There are more rows or bytes than the limits allow.
        """
        plan = self._plan
        before = self._sent
        self._sent += sum(len(part) for _, parts in segments for part in parts)
        self._engine.check_rows(self._sent, plan)
        try:
            if before <= _LARGE < self._sent and not self._waits:
                self._drop_indexes()
            counted = []
            numbers = [rank << _RANK_BITS] * len(plan.scatter)
            for place, parts in segments:
                for position, (statement, part) in enumerate(zip(plan.scatter, parts, strict=True)):
                    if not part:
                        continue
                    if self._waits:
                        marks = ", ".join("?" * (statement.width + 1))
                        key = rank if self._ranked else place
                        self._connection.executemany(
                            f"INSERT INTO mktsim_wait_{position} VALUES ({marks})", ((key, *row) for row in part)
                        )
                    else:
                        start = numbers[position]
                        numbers[position] += len(part)
                        self._connection.executemany(
                            statement.placed, ((number, *row) for number, row in enumerate(part, start))
                        )
                counted.append((place, [range(len(part)) for part in parts]))
                for part in parts:
                    part.clear()
        except Error as error:
            self._is_sound = False
            raise self._engine.named(error, plan) from cause(error)
        return counted

    def answer(self, values: Sequence[Value], unix_ms: int | None) -> list[Row]:
        """Run the statement over all that has arrived.

        Raises
        ------
        EvaluationError, QueryTooLargeError
            As :meth:`GatherEngine.gather`.
        """
        try:
            if self._waits:
                self._move()
            for index in self._indexes:
                self._connection.execute(index)
            return self._session.answer(values, unix_ms)
        except Error as error:
            self._is_sound = False
            raise self._engine.named(error, self._plan) from cause(error)

    def close(self) -> None:
        """Give the database back, empty."""
        self._engine.give_back(self._plan, self._session, is_sound=self._is_sound)

    def _drop_indexes(self) -> None:
        for name, sql in rows(self._connection, _INDEXES):
            self._indexes.append(str(sql))
            self._connection.execute(f"DROP INDEX {quote(str(name))}")

    def _move(self) -> None:
        """Enter the rows that wait, in order; into tables without keys where their keys collide."""
        connection, plan = self._connection, self._plan
        if self._sent > _LARGE:
            self._drop_indexes()
        connection.execute("SAVEPOINT mktsim_keyed")
        try:
            self._enter()
        except ConstraintError:
            if self._session.relaxed or not plan.relaxed_tables:
                raise
            connection.execute("ROLLBACK TO mktsim_keyed")
            self._engine.collided(plan)
            self._is_sound = False  # Its tables have no keys from here on; the next one is made that way.
            for kind in ("view", "table"):
                listed = "SELECT name FROM sqlite_schema WHERE type = ? AND name NOT LIKE 'mktsim_wait_%'"
                for (name,) in rows(connection, f"{listed} AND name NOT LIKE 'sqlite_%'", (kind,)):
                    connection.execute(f"DROP {kind} IF EXISTS {quote(str(name))}")
            self._indexes = []
            for statement in plan.relaxed_tables:
                connection.execute(statement)
            self._enter()

    def _enter(self) -> None:
        for position, statement in enumerate(self._plan.scatter):
            columns = ", ".join(f"c{place}" for place in range(statement.width))
            head = statement.insert.rpartition(" VALUES ")[0]
            self._connection.execute(f"{head} SELECT {columns} FROM mktsim_wait_{position} ORDER BY place, rowid")
            self._connection.execute(f"DELETE FROM mktsim_wait_{position}")
