"""Top-k by a sum of non-negative values in three rounds, in place of every group of every vendor.

Rules
-----
What comes out stands where a plain scatter's partials would: the gather makes the same answer of it. A group is left
out only if its total at all vendors is certain to be below the k-th; see `mktsim.sql.threshold` for what is certified.

Theory of operation
-------------------
1. Every vendor sends its c largest groups, c being 64 or 4 k, whichever is more. Most vendors have no more groups than
   that: they are done, and a fleet of such vendors needs this one round. Let m vendors have more, and t be the k-th
   largest total of what is known.
2. The m vendors send every group of at least t / m. A group that nobody has sent is below t in total. Of each other
   group the total is now known to lie between what was sent and that plus t / m for each vendor that did not send it.
   Let u, which is at least t, be the k-th largest of the lower ends: groups whose upper end is below u are out.
3. The m vendors send what is missing of the groups that are in.

Where the bounds say little (values are alike everywhere) the third round fetches whatever is left, and no more than
twice the groups travel. It never pays where inner nodes combine partials, which does the same work in one round; there
it is not used.

Worked example, k = 1, c = 2: a has x 9, y 8, z 1, w 1; b has y 8, z 3, x 1, w 1. The first round sends x 9, y 8 and
y 8, z 3: t = 16, of y. The second asks for at least 8, which is what was sent. x may reach 9 + 8 and may count, z not
more than 3 + 8, w less than 16. The third asks b for x, and gets 1. Neither z 1 nor w was sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import nlargest
from math import fsum, inf
from typing import Any, Final

from mktsim.fanout.aggregator import is_group
from mktsim.fanout.messages import Partial, ScatterRequest
from mktsim.fanout.policy import ScatterPolicy
from mktsim.fanout.scatter import Node, Target
from mktsim.sql import Segment
from mktsim.sql.exact import ExactSum, fingerprint
from mktsim.sql.threshold import Query, Rounds
from mktsim.sqlite import Connection, Value
from mktsim.storage.replicas import Staleness

Row = tuple[Any, ...]
#: A query, what its bound is bound to, and the values of conditions appended to it.
_Asked = tuple[Query, Value, tuple[Value, ...]]

#: Groups that a vendor sends in the first round, at least; past as many groups asked for, one round is best.
WHOLE: int = 64
#: And so many for each group asked for.
FACTOR: int = 4
_MOST: Final = 10_000
#: Keys that are named in a statement; SQLite takes 32,766 values.
_NAMED: Final = 8_192
#: How much bounds are widened, relatively.
_SLACK: Final = 1e-6
_LEAST, _LARGEST = 1e-280, 1e280


@dataclass(slots=True)
class Outcome:
    """What the rounds brought, in the form of one scatter's results.

    Attributes
    ----------
    partials, failures, calls
        As in :class:`~mktsim.fanout.scatter.Scatter`; `rows` of the partials count every round.
    rounds : int
        How many rounds it took.
    """

    partials: dict[str, Partial] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)
    calls: int = 0
    rounds: int = 0


class _Failed(Exception):
    """A vendor did not answer a round."""


def may_pay(targets: Iterable[Target]) -> bool:
    """Return whether partials would travel as they are: no aggregator and no worker process combines them."""
    return not any(getattr(scanner, "is_inner", False) or getattr(scanner, "_executor", None) for scanner, _ in targets)


async def scatter_in_rounds(
    node: Node,
    targets: Sequence[Target],
    request: ScatterRequest,
    policy: ScatterPolicy,
    rounds: Rounds,
    values: Sequence[Value],
    scratch: Connection,
) -> Outcome:
    """Find the groups that may be among the first.

    Parameters
    ----------
    node, targets, policy
        Who asks whom, and how.
    request : ScatterRequest
        The plain scatter: asked where rounds do not pay, and where a vendor fails and a partial answer is of use.
    rounds : Rounds
        What is asked instead.
    values : sequence
        The statement's parameters.
    scratch : Connection
        Evaluates LIMIT and OFFSET.
    """
    reach = rounds.limit.reach(scratch, values)
    search = _Search(node, targets, request, policy, rounds, values, reach)
    if not 0 < reach <= _MOST or not may_pay(targets):
        return await search.plain()
    try:
        await search.run()
    except _Failed:
        if request.allow_partial:
            search.outcome.failures = {}
            return await search.plain()
    return search.outcome


class _Search:
    """One statement's rounds."""

    def __init__(
        self,
        node: Node,
        targets: Sequence[Target],
        request: ScatterRequest,
        policy: ScatterPolicy,
        rounds: Rounds,
        values: Sequence[Value],
        reach: int,
    ) -> None:
        self.node = node
        self.targets = targets
        self.request = request
        self.policy = policy
        self.rounds = rounds
        self.values = values
        self.reach = reach
        self.outcome = Outcome()
        # By scanner, by place: the rows of vendors that have sent what they had to, and of those that have not.
        self.done: dict[str, dict[Any, list[Row]]] = {}
        self.open: dict[str, dict[Any, list[Row]]] = {}
        self.most = 0
        self.shipped: dict[str, int] = {}
        self.answered: dict[str, int] = {}
        self.stale: dict[str, Staleness | None] = {}

    async def plain(self) -> Outcome:
        """Scatter the statement as if there were no rounds."""
        scatter = self.node.scatter(self.targets, self.request, self.policy)
        await scatter.wait()
        outcome = self.outcome
        outcome.partials, outcome.failures = scatter.partials, scatter.failures
        outcome.calls += scatter.calls
        outcome.rounds += 1
        return outcome

    async def run(self) -> None:
        """Go through the rounds, and leave in `outcome` what they brought."""
        self.most = max(WHOLE, FACTOR * self.reach)
        for id_, partial in (await self._ask(self.targets, (self.rounds.first, self.most + 1, ()))).items():
            self.answered[id_] = partial.answered
            for place, (rows,) in partial.segments:
                (self.open if len(rows) > self.most else self.done).setdefault(id_, {})[place] = rows
        if self.open and not await self._narrow():
            await self._ship_the_rest()
        for id_, answered in self.answered.items():
            segments: list[Segment] = [
                (place, ([row[:-1] for row in rows],)) for place, rows in sorted(self.done.get(id_, {}).items())
            ]
            self.outcome.partials[id_] = Partial(segments, answered, self.shipped[id_], stale=self.stale[id_])

    async def _narrow(self) -> bool:
        """Run the second and third round; return whether all groups that may count are known."""
        vendors = {place: rows for by_place in self.open.values() for place, rows in by_place.items()}
        known = self._totals(rows for by_place in self.done.values() for rows in by_place.values())
        bar = _kth(self._totals(vendors.values(), known), self.reach)
        threshold = bar / len(vendors) * (1.0 - 4.0 * _SLACK)
        if not _LEAST < threshold < _LARGEST:
            return False
        sent = {place: {self._key(row): row for row in rows} for place, rows in vendors.items()}
        second, certificates = await self._certified((self.rounds.above, threshold, ()))
        for place, certificate in certificates.items():
            if certificate[1] or certificate[4] != fingerprint(vendors[place]):
                return False  # A value is no non-negative number, or somebody wrote since the first round.
            sent[place].update((self._key(row), row) for row in second[place])
        if not sum(row[3] for row in certificates.values()) + self._magnitude() < 2.0**62:
            return False  # A sum of a group that is left out might overflow, which would be an error.
        wanted = self._wanted(sent, known, {place: min(threshold, rows[-1][-1]) for place, rows in vendors.items()})
        if wanted is None:
            return False
        if wanted:
            left = sum(certificates[place][0] - len(rows) for place, rows in sent.items())
            third, again = await self._certified(self._below(threshold, wanted, left))
            for place, certificate in again.items():
                if certificate[2] != certificates[place][2]:
                    return False  # Somebody wrote since the second round.
                sent[place].update((self._key(row), row) for row in third[place])
        self._close(
            {id_: {place: list(sent[place].values()) for place in by_place} for id_, by_place in self.open.items()}
        )
        return True

    def _wanted(
        self, sent: Mapping[Any, Mapping[Any, Row]], known: Mapping[Any, float], bounds: Mapping[Any, float]
    ) -> dict[Any, int] | None:
        """Return the groups that may be among the first, with the number of vendors that have not sent them.

        `bounds` holds, by vendor, what a group that it has not sent can be worth there. None: one that nobody has sent
        may be among the first.
        """
        totals = self._totals((rows.values() for rows in sent.values()), known)
        bar = _kth(totals, self.reach) * (1.0 - _SLACK)
        most = fsum(bounds.values())
        if not most * (1.0 + _SLACK) < bar < _LARGEST:
            return None
        bounded: dict[Any, float] = {}
        senders: Counter[Any] = Counter()
        for place, rows in sent.items():
            senders.update(rows.keys())
            for key in rows:
                bounded[key] = bounded.get(key, 0.0) + bounds[place]
        return {
            key: len(sent) - senders[key]
            for key, total in totals.items()
            if senders[key] < len(sent)
            and (total + max(0.0, most - bounded.get(key, 0.0))) * (1.0 + _SLACK) + most * _SLACK >= bar
        }

    async def _ship_the_rest(self) -> None:
        """Take every group of the vendors that are open, in one snapshot of each."""
        everything: dict[str, dict[Any, list[Row]]] = {id_: {} for id_ in self.open}
        for id_, partial in (await self._ask(self._still_open(), (self.rounds.first, -1, ()))).items():
            everything[id_] = {place: rows for place, (rows,) in partial.segments}
        self._close(everything)

    def _close(self, found: Mapping[str, Mapping[Any, list[Row]]]) -> None:
        for id_, by_place in found.items():
            self.done.setdefault(id_, {}).update(by_place)
        self.open = {}

    # -- one round ------------------------------------------------------------------------------------------------

    async def _ask(self, targets: Sequence[Target], *asked: _Asked) -> dict[str, Partial]:
        outcome = self.outcome
        widths = (self.rounds.width + 1, 5)[: len(asked)]
        request = self.request.replace(
            statements=tuple((query.sql, self._bind(query, bound, keys)) for query, bound, keys in asked),
            combine=None,
            folding=None,
            top=None,
            widths=widths,
        )
        scatter = self.node.scatter(targets, request, self.policy)
        await scatter.wait()
        outcome.calls += scatter.calls
        outcome.rounds += 1
        for id_, partial in scatter.partials.items():
            self.shipped[id_] = self.shipped.get(id_, 0) + partial.rows
            stale = Staleness.worst((self.stale.get(id_), partial.stale))
            if stale is not None:  # The same vendors answer round after round.
                stale = replace(stale, vendors=min(stale.vendors, self.answered.get(id_, partial.answered)))
            self.stale[id_] = stale
        if scatter.failures:
            outcome.partials, outcome.failures = scatter.partials, scatter.failures
            raise _Failed
        return scatter.partials

    async def _certified(self, asked: _Asked) -> tuple[dict[Any, list[Row]], dict[Any, Row]]:
        """Ask the vendors that are open; return by place their rows and their certificates."""
        found: dict[Any, list[Row]] = {}
        certificates: dict[Any, Row] = {}
        answers = await self._ask(self._still_open(), asked, (self.rounds.certificate, self.most + 1, ()))
        for partial in answers.values():
            for place, (rows, (certificate,)) in partial.segments:
                found[place], certificates[place] = rows, certificate
        return found, certificates

    def _still_open(self) -> list[Target]:
        return [
            (scanner, tuple(sorted(self.open[scanner.id])) if is_group(scanner) else only)
            for scanner, only in self.targets
            if scanner.id in self.open
        ]

    def _bind(self, query: Query, bound: Value, keys: Sequence[Value] = ()) -> tuple[Value, ...]:
        bound_ = (self.values[binder - 1] if isinstance(binder, int) else bound for binder in query.binders)
        return (*bound_, *keys)

    def _below(self, threshold: float, wanted: Mapping[Any, int], left: int) -> _Asked:
        """Return what the third round asks: groups below the threshold, of these keys unless they are most of them."""
        below, names = self.rounds.below, self.rounds.names
        if sum(wanted.values()) >= left or len(wanted) * len(names) > _NAMED:
            return below, threshold, ()
        conditions: list[str] = []
        keys: list[Value] = []
        for place, name in enumerate(names):
            listed = list(dict.fromkeys(key[place] for key in wanted))
            listed += [listed[0]] * (_power_of_two(len(listed)) - len(listed))  # Few texts, for few to be compiled.
            or_null = f" OR {name} IS NULL" if None in listed else ""
            conditions.append(f" AND ({name} IN ({', '.join('?' * len(listed))}){or_null})")
            keys += listed
        return Query(below.sql + "".join(conditions), below.binders), threshold, tuple(keys)

    # -- totals ---------------------------------------------------------------------------------------------------

    def _key(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[place] for place in self.rounds.keys)

    def _totals(self, found: Iterable[Iterable[Row]], known: Mapping[Any, float] | None = None) -> dict[Any, float]:
        totals: dict[Any, float] = dict(known or {})
        for rows in found:
            for row in rows:
                key = self._key(row)
                totals[key] = totals.get(key, 0.0) + row[-1]
        return totals

    def _magnitude(self) -> float:
        """Return the magnitude of the other sums of the vendors that have sent everything; infinite if not known."""
        whole = 0.0
        for place in self.rounds.sums:
            for row in (row for by_place in self.done.values() for rows in by_place.values() for row in rows):
                part = ExactSum()
                part.merge([row[place]])
                total = part.total() if part.count else 0.0
                whole += abs(total) if total is not None else inf
        return whole


def _kth(totals: Mapping[Any, float], k: int) -> float:
    """Return the k-th largest total; 0 where there are fewer."""
    return nlargest(k, totals.values())[-1] if len(totals) >= k else 0.0


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
