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
from mktsim.sql.ungrouped import Folding
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

    Examples
    --------
    Each copy carries the key of both and the address of the other.

    >>> first, second = Tie(("q1", 7), "replica/acme"), Tie(("q1", 7), "vendor/acme")
    >>> first.key == second.key, first.twin
    (True, 'replica/acme')
    """

    key: tuple[Any, ...]
    twin: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Withdraw the tied request of this key if it has not been started: sent from one copy's host to the other's.

    Attributes
    ----------
    key : tuple
        That of the :class:`Tie` of both copies.

    Examples
    --------
    >>> tie = Tie(("q1", 7), "replica/acme")
    >>> Cancel(tie.key)
    Cancel(key=('q1', 7))
    """

    key: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Answer a tied request that was withdrawn: its twin runs, and answers.

    Examples
    --------
    A copy that comes after its twin was started is not scanned at all.

    >>> from mktsim.fanout import Scanner
    >>> from mktsim.fanout.station import Station
    >>> from mktsim.network import InProcessNetwork
    >>> station = Station(Scanner("acme", lambda sql, params: [(1,)]), InProcessNetwork())
    >>> station("vendor/acme", Cancel(("q1", 7)))
    >>> station("vendor/acme", ScatterRequest((("SELECT 1", ()),), tie=Tie(("q1", 7), "replica/acme")))
    Withdrawn()
    """


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
    folding : Folding or None
        How a scan of many vendors merges the rows of the one statement as they come; None where they must travel as
        they are. Whoever asks other statements asks without.
    as_of : int or None
        The epoch at which the query began, by which it finds vendors that move; see `mktsim.storage.moves`.
    here : bool
        Whether it asks for so little that a scanner should not send it to another process.
    keep : int
        How many bytes of partials by blocks of vendors the sender would keep; none where 0.

    Examples
    --------
    >>> from mktsim.fanout import Scanner
    >>> acme = Scanner("acme", lambda sql, params: [(3,)])
    >>> request = ScatterRequest((("SELECT COUNT(*) FROM products", ()),), widths=(1,))
    >>> acme.scan(request).segments
    [('acme', [[(3,)]])]
    >>> request.replace(deadline_s=12.5).deadline_s
    12.5
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
    folding: Folding | None = None
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

    Examples
    --------
    One vendor answered, with two rows for the one statement it was asked; the other did not.

    >>> partial = Partial([("acme", ([("mouse",), ("lamp",)],))], 1, 2, {"bolt": ConnectionError("no route to host")})
    >>> [row for place, parts in partial.segments for row in parts[0]], list(partial.failures)
    ([('mouse',), ('lamp',)], ['bolt'])
    """

    segments: list[Segment]
    answered: int
    rows: int
    failures: Mapping[str, Exception] = field(default_factory=lambda: _NOBODY)
    blocks: Blocks | None = None
    stale: Staleness | None = None
    busy_s: float = 0.0
