"""Answer a repeated aggregate from kept partials and the vendors that were written since.

Theory of operation
-------------------
The first time, shards hand up their partials in blocks (`mktsim.fanout.partials`) beside the one that they always hand
up. From then on the changes that summaries have seen say which blocks are stale. Where so many are that a scan costs
less, or where anything at all fails, the statement is scanned as if nothing had been kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mktsim.fanout import partials
from mktsim.fanout.costs import Costs
from mktsim.fanout.messages import Partial, ScatterRequest
from mktsim.fanout.partials import Blocks, Kept, PartialCache, Unmergeable
from mktsim.fanout.policy import ScatterPolicy
from mktsim.fanout.prune import scatter_into
from mktsim.fanout.scanner import ShardScanner
from mktsim.fanout.scatter import Node, Target
from mktsim.fanout.threshold import Outcome
from mktsim.sql import Plan, Segment
from mktsim.sqlite import Value
from mktsim.storage.summaries import ShardSummaries

Summaries = Sequence[tuple[ShardScanner, ShardSummaries]]


@dataclass(slots=True)
class Repeat:
    """One statement, on its way to or from kept partials.

    Attributes
    ----------
    cache : PartialCache
    key : tuple
        The statement and its values.
    merges : tuple of str
        How its partials merge.
    seen : dict of str to (object, int)
        By shard, the identity of its summaries, and the last change that they had seen when the query began.
    kept : Kept or None
        What was kept, taken out of the cache.
    stale : dict of str to dict of int to sequence of str
        By shard and block, the vendors to visit.
    vendors : int
        How many there are.
    scanners : dict of str to ShardScanner
    costs : Costs
    """

    cache: PartialCache
    key: Any
    merges: tuple[str, ...]
    seen: dict[str, tuple[object, int]]
    kept: Kept | None
    stale: dict[str, dict[int, Sequence[str]]]
    vendors: int
    scanners: dict[str, ShardScanner]
    costs: Costs

    @classmethod
    def of(
        cls,
        cache: PartialCache,
        plan: Plan,
        values: tuple[Value, ...],
        summaries: Summaries,
        costs: Costs,
        *,
        look: bool = False,
    ) -> Repeat | None:
        """Return what can be repeated of a statement, or None; with `look` nothing is taken out of the cache."""
        merges = plan.combine.merges if plan.combine is not None else ()
        key = cache.key(plan.statement.sql, values)
        if not merges or plan.backwards or not cache.fits(key):
            return None
        seen = {scanner.id: (each.identity, each.seq) for scanner, each in summaries}
        vendors = sum(len(each.ids) for _, each in summaries)
        scanners = {scanner.id: scanner for scanner, _ in summaries}
        made = cls(cache, key, merges, seen, cache.take(key), {}, vendors, scanners, costs)
        kept = made.kept
        if kept is not None and not made._find_stale(kept, summaries):
            made.kept = None
        if look and kept is not None:
            cache.give(key, kept)
        return made

    def _find_stale(self, kept: Kept, summaries: Summaries) -> bool:
        if kept.shards.keys() != self.seen.keys():
            return False
        for scanner, each in summaries:
            identity, seq, blocks = kept.shards[scanner.id]
            changed = each.changed_since(seq) if identity is each.identity else None
            if changed is None:
                return False
            stale = {blocks.block_of(vendor_id) for vendor_id in changed}
            self.stale[scanner.id] = {block: blocks.vendors(block, each.ids) for block in sorted(stale)}
        return not self.visits or self.costs.prefers_visits(self.visits, self.vendors)

    @property
    def visits(self) -> int:
        """How many vendors are visited."""
        return sum(len(ids) for blocks in self.stale.values() for ids in blocks.values())

    @property
    def spares(self) -> bool:
        """Whether partials were kept that are still of use."""
        return self.kept is not None

    @property
    def candidates(self) -> int:
        """How many vendors are visited."""
        return self.visits

    @property
    def why(self) -> str:
        """What `explain` says."""
        return f"partials kept of {self.vendors - self.visits:,} of {self.vendors:,} vendors, unchanged since"

    @property
    def most_bytes(self) -> int:
        """How much one shard may hand up to be kept."""
        return self.cache.most_bytes // max(1, len(self.seen))

    def kept_by(self, request: ScatterRequest) -> ScatterRequest:
        """Return the request of a scan whose partials are to be kept, by blocks: of one that may take its time."""
        if request.deadline_s is not None or request.allow_partial:
            return request
        folding = None if request.folding is None else replace(request.folding, every=partials.BLOCK)
        return request.replace(keep=self.most_bytes, folding=folding)

    async def run(self, node: Node, request: ScatterRequest, policy: ScatterPolicy) -> Outcome | None:
        """Visit what is stale and merge; return None where all must be scanned."""
        kept, self.kept = self.kept, None
        if kept is None:
            return None
        targets: list[Target] = [
            (self.scanners[id_], tuple(vendor_id for ids in blocks.values() for vendor_id in ids))
            for id_, blocks in self.stale.items()
            if any(blocks.values())
        ]
        outcome = Outcome()
        if targets:
            ends = {ids[-1] for blocks in self.stale.values() for ids in blocks.values() if ids}
            folding = None if request.folding is None else replace(request.folding, ends=tuple(sorted(ends)))
            here = self.costs.stays_here(self.visits, len(targets))
            visit = request.replace(here=here, combine=None, keep=0, folding=folding)
            await scatter_into(outcome, node, targets, visit, policy)
        if outcome.failures or any(partial.failures for partial in outcome.partials.values()):
            self.cache.give(self.key, kept)  # It is as it was.
            return None
        try:
            for id_, stale in self.stale.items():
                blocks = kept.shards[id_][2]
                fresh: dict[int, list[Segment]] = {block: [] for block in stale}
                for segment in sorted(outcome.partials[id_].segments) if id_ in outcome.partials else ():
                    fresh[blocks.block_of(segment[0])].append(segment)
                blocks.replace(fresh)
                kept.shards[id_] = *self.seen[id_], blocks
        except Unmergeable:
            return None
        totals = {id_: blocks.total() for id_, (_, _, blocks) in kept.shards.items()}
        self.cache.give(self.key, kept)
        for id_, rows in totals.items():
            visited = outcome.partials.get(id_)
            segments: list[Segment] = [(id_, (rows,))] if rows else []
            outcome.partials[id_] = Partial(segments, visited.answered if visited is not None else 0, len(rows))
        return outcome

    def keep(self, partials: Mapping[str, Partial]) -> None:
        """Keep what shards have handed up, if all have."""
        handed: dict[str, Blocks | None] = {id_: partial.blocks for id_, partial in partials.items()}
        if handed.keys() != self.seen.keys():
            return
        if any(blocks is None for blocks in handed.values()):
            self.cache.is_unfit(self.key)
            return
        self.cache.give(
            self.key, Kept({id_: (*self.seen[id_], blocks) for id_, blocks in handed.items() if blocks is not None})
        )
