"""What travels between a coordinator, its aggregators and their scanners: plain frozen data that pickles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mktsim.fanout.partials import Blocks
from mktsim.fanout.policy import ScatterPolicy
from mktsim.sql import Segment
from mktsim.sql.plan import Combine
from mktsim.sql.topk import TopKRequest
from mktsim.sql.ungrouped import UngroupedRequest
from mktsim.sqlite import Value
from mktsim.storage.replicas import Staleness


@dataclass(frozen=True, slots=True)
class Tie:
    """What binds two copies of one request: whichever is started first withdraws the other.

    Attributes
    ----------
    key : tuple
        The same for both copies, and for no other request.
    twin : str
        The address of the other copy.
    """

    key: tuple[Any, ...]
    twin: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Withdraws the tied request of this key if it has not been started; sent from one copy's host to the other's."""

    key: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The answer of a tied request that was withdrawn: its twin runs."""


@dataclass(frozen=True, slots=True)
class ScatterRequest:
    """What a coordinator asks of a scanner.

    Attributes
    ----------
    statements : tuple of (str, parameters)
        All are run in one snapshot of each vendor's database.
    vendor_ids : tuple of str or None
        Only these vendors; None for all that the scanner has.
    combine : (Combine, bindings) or None
        What an inner node may do with the partials it holds.
    deadline_s : float or None
        Absolute, on the running loop's clock; no work is of use after it.
    allow_partial : bool
        Whether an answer without some vendors is of use. A node of several vendors then stops before the deadline, in
        time to hand in what it has.
    policy : ScatterPolicy or None
        How an inner node scatters further; None for its own policy.
    tie : Tie or None
        The twin of this copy.
    budget_s : float or None
        The deadline as seconds from now, for a process with a clock of its own.
    widths : tuple of int
        Values per row of each statement, by which answers of unknown origin are checked; empty where not known.
    top : TopKRequest or None
        How a scan of many vendors may find what the one statement asks for with less work.
    ungrouped : UngroupedRequest or None
        How a scan that merges partials as they come may group the rows of many vendors at once instead.
    as_of : int or None
        The epoch at which the query began, by which it finds vendors that move; see `mktsim.storage.moves`.
    here : bool
        Whether it asks for so little that a scanner should not send it to another process.
    keep : int
        How many bytes of partials by blocks of vendors the sender would keep; none where 0.
    """

    statements: tuple[tuple[str, Any], ...]
    vendor_ids: tuple[str, ...] | None = None
    combine: tuple[Combine, tuple[Value, ...]] | None = None
    deadline_s: float | None = None
    allow_partial: bool = False
    policy: ScatterPolicy | None = None
    tie: Tie | None = None
    budget_s: float | None = None
    widths: tuple[int, ...] = ()
    top: TopKRequest | None = None
    ungrouped: UngroupedRequest | None = None
    as_of: int | None = None
    here: bool = False
    keep: int = 0

    def replace(self, **changes: Any) -> ScatterRequest:
        """Return a copy with some values changed."""
        return replace(self, **changes)


_NOBODY: Mapping[str, Exception] = {}


@dataclass(frozen=True, slots=True)
class Partial:
    """What a scanner answers.

    Attributes
    ----------
    segments : list of (place, rows per statement)
        Sorted by place; vendors without rows are left out.
    answered : int
        Vendors that answered.
    rows : int
        Rows in the segments.
    failures : mapping of str to Exception
        Who of those behind the scanner did not answer, and why.
    blocks : Blocks or None
        The same by blocks of vendors, where it was asked for and is not too much.
    stale : Staleness or None
        How far behind the replicas were that it came from; None where it is what the vendors themselves say.
    busy_s : float
        How long a worker process was at it, seconds; 0 where none was.
    """

    segments: list[Segment]
    answered: int
    rows: int
    failures: Mapping[str, Exception] = field(default_factory=lambda: _NOBODY)
    blocks: Blocks | None = None
    stale: Staleness | None = None
    busy_s: float = 0.0
