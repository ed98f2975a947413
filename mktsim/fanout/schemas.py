"""The schema that the scanners of a generic coordinator have in common, read from them.

Rules
-----
All vendors must have one schema. Where a table has a column ``vendorId``, each scanner is asked whether it holds the
scanner's own id in every row; only then is it the shard column, and a condition on it leaves vendors out. The check is
made once: pass a schema to the coordinator where rows may later break that contract.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from mktsim.errors import EmptyFleetError, IncompleteAnswerError, InvalidArgumentError, SchemaMismatchError
from mktsim.fanout.scanner import ScatterTarget, as_tuple
from mktsim.sql import SCHEMA_QUERY, Planner, Schema
from mktsim.sqlite import quote


async def read_planner(scanners: Sequence[ScatterTarget]) -> Planner:
    """Read the schema and make its planner.

    Raises
    ------
    EmptyFleetError
        There is no scanner to read it from.
    InvalidArgumentError
        A scanner cannot run statements of this kind, or does not answer with rows.
    IncompleteAnswerError
        None of them answered.
    SchemaMismatchError
        Two vendors have different schemas.
    """
    return await _settle(scanners, [await _settled(step) for step in _schema_steps(scanners)])


def read_planner_now(scanners: Sequence[ScatterTarget]) -> Planner:
    """Read the schema without waiting; errors are those of :func:`read_planner`, and for scanners that need to wait."""
    answers = _schema_steps(scanners)
    if any(inspect.isawaitable(answer) for answer in answers):
        for answer in answers:
            if inspect.iscoroutine(answer):
                answer.close()
        raise InvalidArgumentError("these scanners answer asynchronously: await coordinator.prepare() first")
    routine = _settle(scanners, answers)
    try:
        routine.send(None)
    except StopIteration as stop:
        planner: Planner = stop.value
        return planner
    raise AssertionError("reading the schema from plain callables never waits")


def _schema_steps(scanners: Sequence[ScatterTarget]) -> list[Any]:
    if not scanners:
        raise EmptyFleetError("there are no vendors, and no schema was given: pass schema= to answer as if empty")
    steps: list[Any] = []
    for scanner in scanners:
        execute = getattr(scanner, "execute", None)
        if execute is None:
            raise InvalidArgumentError(f"pass schema=: it cannot be read from {scanner!r}")
        steps.append(_attempt(execute, SCHEMA_QUERY, ()))
    return steps


async def _settle(scanners: Sequence[ScatterTarget], answers: list[Any]) -> Planner:
    schemas: list[tuple[Any, Schema]] = []
    failure: Exception | None = None
    for scanner, answer in zip(scanners, answers, strict=True):
        if isinstance(answer, Exception):
            failure = answer  # A vendor that is down now will be missing from the query's coverage.
        else:
            schemas.append((scanner, _schema_of(scanner, answer)))
    if not schemas:
        raise IncompleteAnswerError(
            f"no vendor could be asked for its schema: {failure}", answered=0, missing=[s.id for s in scanners]
        ) from failure
    first, schema = schemas[0]
    for scanner, other in schemas:
        if other.digest != schema.digest:
            raise SchemaMismatchError(f"vendors {first.id!r} and {scanner.id!r} have different schemas")
    functions = all(scanner.has_functions for scanner in scanners)
    if not functions:
        tried = [await _settled(_attempt(scanner.execute, "SELECT mktsim_sum(1)", ())) for scanner, _ in schemas]
        functions = not any(isinstance(answer, Exception) for answer in tried)
    column = await _verified_shard_column(scanners, schema)
    return Planner(Schema(schema.statements, shard_column=column), functions=functions)


def _schema_of(scanner: Any, answer: Any) -> Schema:
    try:
        return Schema.from_rows(list(map(as_tuple, answer)))
    except (InvalidArgumentError, TypeError):
        raise InvalidArgumentError(
            f"execute of vendor {scanner.id!r:.80} must return rows, here of (type, name, sql) from sqlite_schema, not "
            f"{answer!r:.80}; or pass schema="
        ) from None


async def _verified_shard_column(scanners: Sequence[Any], schema: Schema) -> str | None:
    tables = [table for table in Planner(schema).catalog.tables.values() if table.kind == "table"]
    sharded = [table for table in tables if table.column("vendorId") is not None]
    if not sharded:
        return None
    for scanner in scanners:
        for table in sharded:
            sql = f"SELECT 1 FROM {quote(table.name)} WHERE vendorId IS NOT ? LIMIT 1"
            answer = await _settled(_attempt(scanner.execute, sql, (scanner.id,)))
            if isinstance(answer, Exception) or not isinstance(answer, Iterable) or list(answer):
                return None
    return "vendorId"


def _attempt(execute: Any, sql: str, params: Any) -> Any:
    try:
        return execute(sql, params)
    except Exception as error:
        return error


async def _settled(answer: Any) -> Any:
    if not inspect.isawaitable(answer):
        return answer
    try:
        return await answer
    except Exception as error:
        return error
