"""The inbox: which keyed messages an object has applied, with their answers.

Rules
-----
A message with an idempotency key is applied at most once: the key, the answers and the effect are one transaction. A
copy that comes again is answered from here; one that comes after its sender has settled the event is refused.

Theory of operation
-------------------
Each key carries the lowest number that its sender has not settled. Keys below it cannot come again in the course of
things and are deleted, not at every message but once the number has risen by some; the number itself stays as the
sender's floor, so that a straggler below it is known for one.
"""

from __future__ import annotations

import json
from typing import Any, Final

from mktsim.errors import ObjectError
from mktsim.objects.calls import Key, Outcome
from mktsim.sqlite import Connection

#: The number under which the inbox keeps, per sender, below which number all events are settled.
_FLOOR: Final = -1
#: By how much a floor rises at a time.
_RISE: Final = 16


def recall(connection: Connection, key: Key) -> list[Outcome] | None:
    """Return the outcomes of a message that was applied before, and forget keys that will not come again.

    Raises
    ------
    ObjectError
        The event was settled long ago.
    """
    rows: list[tuple[Any, ...]] = connection.execute(
        "SELECT seq, part, answer FROM _inbox WHERE sender = ?1 AND seq IN (?2, ?3)", (key.sender, _FLOOR, key.seq)
    ).fetchall()
    known = {(seq, part): answer for seq, part, answer in rows}
    floor = int(known.get((_FLOOR, ""), 0))
    if key.seq < floor:
        raise ObjectError(f"event {key.seq} of {key.sender!r:.80} was settled long ago: this copy of it is dropped")
    answer = known.get((key.seq, key.part))
    if answer is not None:
        return [Outcome(value, None, capability) for value, capability in json.loads(answer)]
    if key.settled >= floor + _RISE:
        connection.execute("DELETE FROM _inbox WHERE sender = ? AND seq < ?", (key.sender, key.settled))
        connection.execute("INSERT INTO _inbox VALUES(?, ?, '', ?)", (key.sender, _FLOOR, key.settled))
    return None


def remember(connection: Connection, key: Key, outcomes: list[Outcome]) -> None:
    """Record a message as applied, with its answers."""
    try:
        answer = json.dumps([[outcome.value, outcome.capability] for outcome in outcomes])
    except (TypeError, ValueError) as error:
        raise ObjectError(f"what a call within a delivery returns is kept as JSON: {error}") from error
    connection.execute("INSERT INTO _inbox VALUES(?, ?, ?, ?)", (key.sender, key.seq, key.part, answer))
