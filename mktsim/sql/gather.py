"""The gather engine: an in-memory SQLite that merges, groups, sorts and limits what vendors sent.

A session holds one connection with a plan's tables, so that a repeated statement pays for neither DDL nor compilation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from mktsim.errors import EvaluationError
from mktsim.sql.exact import register
from mktsim.sql.lexer import PREFIX
from mktsim.sql.plan import Combine, Plan
from mktsim.sqlite import Connection, ConstraintError, Error, SQLError, Value, connect

Row = tuple[Any, ...]
#: What one vendor sent: its place in the order of vendors, and rows for each scatter statement.
Segment = tuple[Any, Sequence[list[Row]]]


def _open(tables: Iterable[str]) -> Connection:
    connection = connect()
    register(connection)
    for statement in tables:
        connection.execute(statement)
    return connection


class _Session:
    """A connection with one plan's tables; empty between uses."""

    def __init__(self, plan: Plan, *, relaxed: bool) -> None:
        self._plan = plan
        self._connection = _open(plan.relaxed_tables if relaxed else plan.tables)
        self.relaxed = relaxed

    def run(self, segments: Sequence[Segment], values: Sequence[Value]) -> list[Row]:
        connection, plan = self._connection, self._plan
        connection.execute("BEGIN")
        try:
            for position, statement in enumerate(plan.scatter):
                connection.executemany(statement.insert, [row for _, parts in segments for row in parts[position]])
            bindings = {f"{PREFIX}{number}": value for number, value in enumerate(values, 1)}
            return connection.execute(plan.gather, bindings).fetchall()
        finally:
            # Rolling back empties the tables without touching the rows one by one.
            connection.execute("ROLLBACK")

    def close(self) -> None:
        self._connection.close()


class GatherEngine:
    """Runs gathers; keeps a few idle sessions by plan.

    Parameters
    ----------
    sessions : int
        Idle sessions kept.
    """

    def __init__(self, *, sessions: int = 32) -> None:
        self._idle: OrderedDict[int, tuple[Plan, _Session]] = OrderedDict()
        self._collided: set[int] = set()
        self._sessions = sessions

    def gather(self, plan: Plan, segments: Sequence[Segment], values: Sequence[Value]) -> list[Row]:
        """Merge segments into the answer's rows.

        Parameters
        ----------
        plan : Plan
            A two-phase, collect or local plan.
        segments : sequence of Segment
            Sorted by vendor, ascending.
        values : sequence
            One value per parameter.

        Raises
        ------
        EvaluationError
            What SQLite itself raises while it computes the answer.
        """
        ordered = segments[::-1] if plan.backwards else segments
        entry = self._idle.pop(id(plan), None)
        relaxed = id(plan) in self._collided
        if entry is not None and entry[1].relaxed == relaxed:
            session = entry[1]
        else:
            session = _Session(plan, relaxed=relaxed)
        try:
            try:
                rows = session.run(ordered, values)
            except ConstraintError:
                if session.relaxed or not plan.relaxed_tables:
                    raise
                # Keys collide between vendors: one table with every row has no such key.
                session.close()
                session = _Session(plan, relaxed=True)
                self._collided.add(id(plan))
                rows = session.run(ordered, values)
        except Error as error:
            session.close()
            raise EvaluationError(str(error), sql=plan.statement.sql) from error
        self._keep(plan, session)
        return rows

    def _keep(self, plan: Plan, session: _Session) -> None:
        previous = self._idle.pop(id(plan), None)
        if previous is not None:
            previous[1].close()
        self._idle[id(plan)] = (plan, session)
        while len(self._idle) > self._sessions:
            key, (_, oldest) = self._idle.popitem(last=False)
            self._collided.discard(key)
            oldest.close()

    def close(self) -> None:
        """Close all sessions."""
        for _, session in self._idle.values():
            session.close()
        self._idle.clear()
        self._collided.clear()


class Combiner:
    """Maps segments to fewer, equivalent segments, at an inner node.

    Parameters
    ----------
    combine : Combine
        The plan's combine step.
    bindings : sequence
        Values of its placeholders.
    """

    def __init__(self, combine: Combine, bindings: Sequence[Value]) -> None:
        self._combine = combine
        self._bindings = tuple(bindings)
        self._connection = _open((combine.table,))

    def __call__(self, segments: Iterable[Segment]) -> list[Segment]:
        """Combine segments that are sorted by vendor; the result is sorted too."""
        listed = list(segments)
        connection, combine = self._connection, self._combine
        connection.execute("BEGIN")
        try:
            connection.executemany(
                combine.insert,
                [(ordinal, *row) for ordinal, (_, parts) in enumerate(listed) for row in parts[0]],
            )
            rows = connection.execute(combine.sql, self._bindings).fetchall()
        except SQLError as error:
            raise EvaluationError(str(error)) from error
        finally:
            connection.execute("ROLLBACK")
        grouped: dict[Any, list[Row]] = {}
        for ordinal, *row in rows:
            grouped.setdefault(ordinal, []).append(tuple(row))
        return [(listed[ordinal][0], (grouped[ordinal],)) for ordinal in sorted(grouped)]

    def close(self) -> None:
        """Close the working database."""
        self._connection.close()
