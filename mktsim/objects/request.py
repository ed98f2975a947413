"""One request of one object, inside its transaction: the steps of a message, each undone alone if it fails.

Rules
-----
See `mktsim.objects.calls` for what a step may touch. A step that fails, or in which the object wrote a row that bears
another's id, is undone together with the events it sent. Where a step is all there is, or the message carries an
idempotency key, the whole request is undone instead.
"""

from __future__ import annotations

import inspect
from typing import Any

from mktsim.errors import IsolationError, QueryTooLargeError, StorageError
from mktsim.objects.calls import SELF, CallMessage, Outcome, Ref, apply, travelling
from mktsim.objects.durable import DurableObject
from mktsim.objects.inbox import recall, remember
from mktsim.sqlite import Connection


class UndoneError(Exception):
    """Rolls a request back and carries its outcomes past the transaction."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        self.outcomes = outcomes


async def answer(target: DurableObject, connection: Connection, message: CallMessage) -> list[Outcome]:
    """Apply a message, or recall what it answered before.

    Raises
    ------
    UndoneError
        The whole request must be rolled back.
    """
    key = message.key
    if key is not None:
        known = recall(connection, key)
        if known is not None:
            return known
    with target.sql.bound(connection):
        outcomes = await _run(target, connection, message)
    if key is not None:
        failed = next((outcome.error for outcome in outcomes if outcome.error is not None), None)
        if failed is not None:
            raise UndoneError([Outcome(error=failed)] * len(outcomes))
        remember(connection, key, outcomes)
    return outcomes


async def _run(target: DurableObject, connection: Connection, message: CallMessage) -> list[Outcome]:
    results: list[Any] = []
    outcomes: list[Outcome] = []
    # One step, or a message that is atomic as a whole, needs no savepoints.
    separate = len(message.steps) > 1 and message.key is None

    def resolved(value: Any) -> Any:
        if isinstance(value, str):
            return value
        if isinstance(value, Ref):
            return earlier(value.step)
        if isinstance(value, list | tuple):
            return type(value)(resolved(each) for each in value)
        if isinstance(value, dict):
            return {name: resolved(each) for name, each in value.items()}
        return value

    def earlier(number: int) -> Any:
        error = outcomes[number].error
        if error is not None:
            raise error
        return results[number]

    for step in message.steps:
        sent = len(target._sent)
        guarded = separate and step.kind == "call"
        if guarded:
            target.sql.platform("SAVEPOINT step")
        result: Any = None
        try:
            on = target if step.target == SELF else earlier(step.target)
            result = apply(step, on, resolved(step.args), resolved(step.kwargs))
            if inspect.isawaitable(result):
                result = await result
            violation = target.sql.take_violation()
            if violation:
                raise IsolationError(violation)
            outcome = travelling(result, step)
        except Exception as error:
            if connection.get_autocommit():  # SQLite rolled back by itself: the disk is full, or it was interrupted
                if isinstance(error, QueryTooLargeError):
                    raise UndoneError([Outcome(error=error)] * len(message.steps)) from error
                raise StorageError(f"SQLite gave the whole request of {target.id!r:.80} up: {error}") from error
            outcome = Outcome(error=error)
            target.sql.take_violation()
        if outcome.error is not None and not guarded and step.kind == "call":
            raise UndoneError([*outcomes, outcome, *[outcome] * (len(message.steps) - len(outcomes) - 1)])
        if guarded:
            if outcome.error is not None:
                target.sql.platform("ROLLBACK TO step")
                del target._sent[sent:]
            target.sql.platform("RELEASE step")
        results.append(result)
        outcomes.append(outcome)
    return outcomes
