"""Leave out the vendors that summaries prove irrelevant, and answer from summaries what they decide.

Rules
-----
What is not proven is visited: a vendor without a summary, with text among its numbers, with more groups than are kept.
While any vendor is on the move between shards, all are scanned.

Theory of operation
-------------------
`mktsim.sql.bounds` says what a statement asks of summarised columns; here it is asked of the arrays of every shard
(`mktsim.storage.summaries`), a few million numbers in some milliseconds. Each record of a summary, over all rows of a
vendor or those of one group, turns out to pass WHERE with no row, with all, or with some. Then, by statement:

*decided* (COUNT, MIN, MAX of what is summarised): records with all rows are added up to partials, which go to the
gather as if a vendor had sent them; vendors with a record of some rows are visited.

*first k* (ORDER BY a summarised column … LIMIT): vendors are visited best bound first, some at a time, until the k-th
best row found comes before whatever the others may have. Worked example, ``ORDER BY price DESC LIMIT 2``, bounds acme
9, bolt 7, core 7, dyne 5: acme and bolt send 9, 8 and 7, so that the second is 8: core and dyne cannot matter. Had
acme sent 9 and 7 only, the second would be its own 7, and bolt's 7 would come after it, for acme precedes bolt.

*others*: vendors with no row that passes WHERE are left out.

Equal numbers have one spelling in a column of numeric affinity: SQLite stores -0.0 there as 0.0, 2.0 as the integer 2
where it is INTEGER, and gives floats back where it is REAL. So the vendor that an extreme comes from does not matter.

What this does not do
---------------------
It takes summaries as they are when the query begins; a vendor written after that is answered for as it was then, or
as it is when it is visited.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import UnknownVendorError
from mktsim.fanout.costs import Costs
from mktsim.fanout.messages import Partial, ScatterRequest
from mktsim.fanout.policy import ScatterPolicy
from mktsim.fanout.scanner import ShardScanner
from mktsim.fanout.scatter import Node, Target
from mktsim.fanout.threshold import Outcome
from mktsim.sql import Plan, Planner
from mktsim.sql.bounds import GROUP, Bounds, Leading, Source
from mktsim.sql.threshold import LONGEST_PATTERN
from mktsim.sqlite import Value
from mktsim.storage.replicas import Staleness
from mktsim.storage.summaries import NULL, OTHER, Records, ShardSummaries

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Conditions = list[tuple[int, Any, Any]]

#: The place of partials from summaries: before every vendor.
_NOWHERE: Final = ""
#: Vendors of the first wave of a search, and by how much each wave is larger than the one before.
_FIRST_WAVE: Final = 64
_GROWTH: Final = 4
#: Past so many rows asked for, a search would visit much and hold much.
_MOST_ROWS: Final = 1_000


@dataclass
class Pruned:
    """Which vendors a query visits, and what is known without.

    Attributes
    ----------
    targets : list of (scanner, vendors)
        Whom to visit; for a search, everybody that may matter.
    known : list of (place, (rows,))
        Partials made of summaries.
    vendors : int
        How many vendors there are.
    search : Search or None
        How to visit them, where few of them will be.
    why : str
        What `explain` says.
    costs : Costs
        By which it was chosen.
    """

    targets: list[Target]
    known: list[Any]
    vendors: int
    why: str
    costs: Costs
    search: Search | None = None

    @property
    def visits(self) -> int:
        """How many vendors are visited; of a search, how many have been."""
        return sum(len(only or ()) for _, only in self.targets) if self.search is None else self.search.visited

    #: Whether anything is spared.
    spares = True

    @property
    def candidates(self) -> int:
        """How many vendors may be visited."""
        return self.visits if self.search is None else self.search.left

    @property
    def has_scanned(self) -> bool:
        """Whether all vendors have been scanned after all."""
        return self.search is not None and self.search.gave_up

    async def run(self, node: Node, request: ScatterRequest, policy: ScatterPolicy) -> Outcome | None:
        """Visit them; return None where one of them was deleted meanwhile: let all be scanned."""
        outcome = Outcome()
        if self.search is not None:
            outcome = await self.search.run(node, request, policy)
        elif self.targets:
            here = self.costs.stays_here(self.visits, len(self.targets))
            await scatter_into(outcome, node, self.targets, request.replace(here=here), policy)
        if any(isinstance(error, UnknownVendorError) for error in outcome.failures.values()):
            return None
        if self.known:
            rows = sum(len(parts[0]) for _, parts in self.known)
            outcome.partials[_NOWHERE] = Partial(self.known, 0, rows)
        return outcome


async def scatter_into(
    outcome: Outcome, node: Node, targets: Sequence[Target], request: ScatterRequest, policy: ScatterPolicy
) -> list[Partial]:
    """Scatter once more, add what comes to an outcome, and return it."""
    scatter = node.scatter(targets, request, policy)
    await scatter.wait()
    outcome.rounds += 1
    outcome.calls += scatter.calls
    outcome.failures.update(scatter.failures)
    for id_, partial in scatter.partials.items():
        before = outcome.partials.get(id_)
        if before is not None:
            partial = Partial(
                before.segments + partial.segments,
                before.answered + partial.answered,
                before.rows + partial.rows,
                {**before.failures, **partial.failures},
                stale=Staleness.worst((before.stale, partial.stale)),
            )
        outcome.partials[id_] = partial
    return list(scatter.partials.values())


@dataclass(slots=True)
class _Shard:
    """One shard's summaries, and which of its vendors may matter.

    `vendors` are those of the instant at which the query was planned: `chosen` and `score` go by their places, and
    another query may renew the summaries while this one waits for its visits.
    """

    scanner: ShardScanner
    summaries: ShardSummaries
    chosen: Mask = field(default_factory=lambda: np.empty(0, bool))
    score: Floats = field(default_factory=lambda: np.empty(0))
    vendors: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.vendors = self.summaries.ids  # Renewed summaries have another list.

    def ids(self, places: Any) -> tuple[str, ...]:
        vendors = self.vendors
        return tuple([vendors[place] for place in places.tolist()])

    def target(self) -> list[Target]:
        """Return what to ask of it, if anything."""
        only = self.ids(np.flatnonzero(self.chosen))
        return [(self.scanner, only)] if only else []


def read_summaries(leaves: Sequence[Any]) -> list[tuple[ShardScanner, ShardSummaries]] | None:
    """Return the summaries of all vendors as they are now, or None where there are none to be used."""
    found: list[tuple[ShardScanner, ShardSummaries]] = []
    for leaf in leaves:
        summaries = leaf.summaries() if isinstance(leaf, ShardScanner) else None
        if summaries is None or not summaries.settled:
            return None
        found.append((leaf, summaries))
    return found


def prune(
    planner: Planner,
    plan: Plan,
    values: tuple[Value, ...],
    reach: int,
    summaries: Sequence[tuple[ShardScanner, ShardSummaries]],
    costs: Costs,
) -> Pruned | None:
    """Return which vendors to visit, or None where all are to be scanned.

    Parameters
    ----------
    planner, plan, values
        The statement and its parameters.
    reach : int
        LIMIT + OFFSET, or -1.
    summaries : sequence
        From :func:`read_summaries`.
    costs : Costs
        By which it is told whether visits pay.
    """
    bounds = plan.bounds
    if bounds is None or any(isinstance(value, str | bytes) and len(value) > LONGEST_PATTERN for value in values):
        return None
    conditions, exact = bounds.bind(planner.catalog.vendor, values)
    shards = [_Shard(*each) for each in summaries]
    vendors = sum(len(shard.summaries.ids) for shard in shards)
    if bounds.sources is not None and exact:
        return _decided(bounds, bounds.sources, conditions, shards, vendors, costs)
    by_group = any(column == GROUP for column, _, _ in conditions)
    leading = bounds.leading if 0 < reach <= _MOST_ROWS else None
    if not conditions and leading is None:
        return None
    for shard in shards:
        records = shard.summaries.tables[bounds.table][by_group]
        may, _ = _passing(records, shard.summaries.labels, conditions)
        shard.chosen = ~shard.summaries.known
        shard.chosen[records.vendor[may]] = True
        if leading is not None:
            shard.score = _scores(records, may, leading, conditions, len(shard.chosen))
    candidates = sum(int(np.count_nonzero(shard.chosen)) for shard in shards)
    excluded = f"{vendors - candidates:,} of {vendors:,} vendors have no row that passes WHERE"
    if leading is not None:
        name = planner.schema.summarised[bounds.table].columns[leading.column]
        order = f"vendors in the order of their {'largest' if leading.descending else 'smallest'} {name}, best first"
        search = Search(shards, leading, reach, vendors, costs)
        if conditions:
            order += f"; {excluded}"
        return Pruned([], [], vendors, f"{order}; stops when row {reach:,} comes before all bounds left", costs, search)
    if not costs.prefers_visits(candidates, vendors):
        return None
    return Pruned([target for shard in shards for target in shard.target()], [], vendors, excluded, costs)


# -- what records say of WHERE --------------------------------------------------------------------------------------


def _passing(records: Records, labels: dict[str, int], conditions: Conditions) -> tuple[Mask, Mask]:
    """Return which records may have a row that passes all conditions, and in which every row does."""
    may = records.rows > 0
    every = may.copy()
    for column, operator, values in conditions:
        if column == GROUP:
            some, all_ = _in_group(records.code, labels, operator, values)
        else:
            some, all_ = _in_range(records, column, operator, values)
        may &= some
        every &= all_
    return may, every


def _in_group(code: Any, labels: dict[str, int], operator: str, values: list[str]) -> tuple[Mask, Mask]:
    if operator == "null":
        null = code == NULL
        return null, null
    if operator == "not null":
        rest = code != NULL
        return rest, rest
    named = np.isin(code, [labels[value] for value in values if value in labels])
    return named | (code == OTHER), named


def _in_range(records: Records, column: int, operator: str, values: list[float]) -> tuple[Mask, Mask]:
    """Compare bounds: NaN compares as false, so that `some` asks whether a record is certain to be out."""
    present = records.present[column]
    if operator == "null":
        return present < records.rows, present == 0
    full = present == records.rows
    if operator == "not null":
        return present > 0, full
    low, high = records.low[column], records.high[column]
    some, every = np.zeros(len(low), bool), np.zeros(len(low), bool)
    for value in values:
        if operator == ">":
            out, within = high <= value, low > value
        elif operator == ">=":
            out, within = high < value, low >= value
        elif operator == "<":
            out, within = low >= value, high < value
        elif operator == "<=":
            out, within = low > value, high <= value
        else:
            out, within = (low > value) | (high < value), (low == value) & (high == value)
        some |= ~out
        every |= within
    return some, every & full


# -- answers from summaries -----------------------------------------------------------------------------------------


def _decided(
    bounds: Bounds,
    sources: tuple[Source, ...],
    conditions: Conditions,
    shards: list[_Shard],
    vendors: int,
    costs: Costs,
) -> Pruned | None:
    by_group = bounds.grouped or any(column == GROUP for column, _, _ in conditions)
    totals: dict[Any, dict[Source, Any]] = {}
    visits = 0
    for shard in shards:
        summaries = shard.summaries
        records = summaries.tables[bounds.table][by_group]
        may, every = _passing(records, summaries.labels, conditions)
        if bounds.grouped:
            every &= records.code != OTHER
        for kind, column in sources:
            if kind in ("low", "high"):
                every &= ~np.isnan(records.low[column])
        shard.chosen = ~summaries.known
        shard.chosen[records.vendor[may & ~every]] = True
        visits += int(np.count_nonzero(shard.chosen))
        every &= ~shard.chosen[records.vendor]
        _add_up(totals, shard, records, every, sources, bounds)
    if not costs.prefers_visits(visits, vendors):
        return None
    rows = [
        tuple(group if source[0] == "group" else total.get(source) for source in sources)
        for group, total in totals.items()
    ]
    segments = [(_NOWHERE, (rows,))] if rows else []
    why = f"summaries answer for {vendors - visits:,} of {vendors:,} vendors"
    return Pruned([target for shard in shards for target in shard.target()], segments, vendors, why, costs)


def _add_up(
    totals: dict[Any, dict[Source, Any]],
    shard: _Shard,
    records: Records,
    chosen: Mask,
    sources: tuple[Source, ...],
    bounds: Bounds,
) -> None:
    """Add the chosen records of a shard to the totals, by group."""
    names = {code: label for label, code in shard.summaries.labels.items()} | {NULL: None}
    code = records.code if bounds.grouped else np.zeros_like(records.code)
    if not chosen.all():
        places: Any = np.flatnonzero(chosen)
        code = code[places]
    else:
        places = slice(None)
    size = int(code.max(initial=0)) + 1
    rows = np.bincount(code, records.rows[places], size)
    groups = np.flatnonzero(rows).tolist()
    integral = shard.summaries.summariser.integral[bounds.table]
    for group in groups:
        totals.setdefault(names[group] if bounds.grouped else None, {}).setdefault(("rows", GROUP), 0)
    for source in dict.fromkeys((*sources, ("rows", GROUP))):
        kind, column = source
        if kind in ("rows", "present"):
            counts = rows if kind == "rows" else np.bincount(code, records.present[column][places], size)
            for group in groups:
                total = totals[names[group] if bounds.grouped else None]
                total[source] = total.get(source, 0) + int(counts[group])
        elif kind in ("low", "high"):
            values = records.low[column][places] if kind == "low" else records.high[column][places]
            found = np.full(size, inf if kind == "low" else -inf)
            (np.minimum if kind == "low" else np.maximum).at(found, code, values)
            present = np.bincount(code, records.present[column][places], size)
            for group in groups:
                if present[group]:
                    total = totals[names[group] if bounds.grouped else None]
                    extreme = _spelt(float(found[group]), integral[column])
                    before = total.get(source, extreme)
                    total[source] = min(before, extreme) if kind == "low" else max(before, extreme)


def _spelt(value: float, is_integer: bool) -> int | float:
    """Return a bound as SQLite has it in a column of its affinity."""
    return int(value) if is_integer and value.is_integer() and abs(value) <= 2**53 else value


# -- the first k ----------------------------------------------------------------------------------------------------


def _scores(records: Records, may: Mask, leading: Leading, conditions: Conditions, vendors: int) -> Floats:
    """Return for each vendor how good its best row may be: smaller is better, of unknown vendors it is best of all."""
    column = leading.column
    bound = -records.high[column][may] if leading.descending else records.low[column][may]
    present, rows = records.present[column][may], records.rows[may]
    bound[present == 0] = inf
    if leading.nulls_first:
        bound[present < rows] = -inf
    bound[np.isnan(bound)] = -inf
    score = np.full(vendors, -inf)
    score[records.vendor[may]] = inf
    np.minimum.at(score, records.vendor[may], bound)
    # What passes a condition on the key itself is a number within it; ascending, also text, which comes after it.
    better = ("<", "<=", "=") if leading.descending else (">", ">=", "=")
    for place, operator, values in conditions:
        if place == column and operator in better:
            np.maximum(score, -values[0] if leading.descending else values[0], out=score)
    return score


class Search:
    """Visits vendors best bound first, until no other can matter.

    Parameters
    ----------
    shards : list
        Which vendors may matter, and their scores.
    leading : Leading
        The term that is searched by.
    reach : int
        How many rows matter.
    vendors : int
        How many there are.
    costs : Costs
        By which it gives up, and has everybody scanned.
    """

    def __init__(self, shards: list[_Shard], leading: Leading, reach: int, vendors: int, costs: Costs) -> None:
        self._shards = shards
        self._leading = leading
        self._reach = reach
        self._vendors = vendors
        self._costs = costs
        self._best: list[tuple[Any, str]] = []  # the keys of the first rows found, and whose they are
        self.visited = 0
        self.gave_up = False

    @property
    def left(self) -> int:
        """How many vendors may matter that have not been visited."""
        return sum(int(np.count_nonzero(shard.chosen)) for shard in self._shards)

    async def run(self, node: Node, request: ScatterRequest, policy: ScatterPolicy) -> Outcome:
        """Search."""
        outcome = Outcome()
        size = max(_FIRST_WAVE, _GROWTH * self._reach)
        while True:
            left = self.left
            if not left or (outcome.failures and not request.allow_partial):
                return outcome
            if not self._costs.prefers_visits(self.visited + min(left, size), self._vendors):
                break
            targets = self._wave(min(left, size))
            self.visited += min(left, size)
            asked = request.replace(here=self._costs.stays_here(min(left, size), len(targets)))
            for partial in await scatter_into(outcome, node, targets, asked, policy):
                self._learn(partial)
            self._narrow()
            size *= _GROWTH
        self.gave_up = True
        self.visited = self._vendors
        whole = Outcome(calls=outcome.calls, rounds=outcome.rounds)
        await scatter_into(whole, node, [(shard.scanner, None) for shard in self._shards], request, policy)
        return whole

    def _wave(self, size: int) -> list[Target]:
        """Take the best vendors out of those that are left; of equal bounds those that come first."""
        shards = self._shards
        scores = np.concatenate([shard.score[shard.chosen] for shard in shards])
        last = float(np.partition(scores, size - 1)[size - 1])
        taken = [np.flatnonzero(shard.chosen & (shard.score < last)) for shard in shards]
        room = size - sum(map(len, taken))
        equal = [np.flatnonzero(shard.chosen & (shard.score == last))[:room] for shard in shards]
        listed = sorted(
            (vendor_id, number, place)
            for number, (shard, places) in enumerate(zip(shards, equal, strict=True))
            for vendor_id, place in zip(shard.ids(places), places.tolist(), strict=True)
        )[:room]
        targets: list[Target] = []
        for number, shard in enumerate(shards):
            late = [place for _, owner, place in listed if owner == number]
            places = np.sort(np.concatenate([taken[number], np.array(late, np.int64)]))
            shard.chosen[places] = False
            if len(places):
                targets.append((shard.scanner, shard.ids(places)))
        return targets

    def _learn(self, partial: Partial) -> None:
        leading = self._leading
        for vendor_id, parts in partial.segments:
            for row in parts[0]:
                value = row[leading.place]
                if value is None:
                    key: Any = -inf if leading.nulls_first else inf
                elif isinstance(value, int | float):
                    key = -value if leading.descending else value
                else:  # Text and blobs come after all numbers.
                    key = -inf if leading.descending else inf
                insort(self._best, (key, vendor_id))
                if len(self._best) > self._reach:
                    self._best.pop()

    def _narrow(self) -> None:
        """Leave out whom the last of the first rows found comes before."""
        if len(self._best) < self._reach:
            return
        key, vendor_id = self._best[-1]
        at_most = float(max(min(key, 2.0**1000), -(2.0**1000))) if isinstance(key, int) else key
        if at_most < key:  # an integer between two floats
            at_most = float(np.nextafter(at_most, inf))
        ends_ties = self._leading.by_vendor and isfinite(at_most) and at_most == key
        for shard in self._shards:
            left = shard.score <= at_most
            if ends_ties:  # Who comes after the vendor of that row, and can but equal its key, is too late.
                after = bisect_right(shard.vendors, vendor_id)
                left[after:] &= shard.score[after:] < at_most
            shard.chosen &= left
