"""Inner nodes: an aggregator scatters to its scanners and hands up one partial in place of many.

Rules
-----
An aggregator is a scanner: the same request, the same partial, so that trees of any depth are made of one thing. What
it hands up merges to the same answer, bit for bit, as what its scanners handed it: segments keep their places, and
only a plan's combine step, which is made for that, puts several into one.

Theory of operation
-------------------
Each node calls from its own address through the network, so that no node has more than `width` calls to send and
answers to take in. A node stops waiting when a tenth of the time to its deadline is left: late leaves are then missing
by name, not the whole branch with them. Failures of leaves travel inside the
partial; retries and hedges of leaves are made by the node just above them, and so do not multiply from level to level.

Worked example, width 2, vendors a to e: root -> 2/0 (1/0 (a b), 1/1 (c d)), 2/1 (1/2 (e)).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mktsim.errors import InvalidArgumentError
from mktsim.fanout.messages import Partial, ScatterRequest
from mktsim.fanout.policy import ScatterPolicy
from mktsim.fanout.scanner import HAND_IN_SHARE, ScatterTarget, ShardScanner, combined
from mktsim.fanout.scatter import Node, Scatter, Target
from mktsim.fanout.station import Station
from mktsim.network import Network
from mktsim.sql import Segment
from mktsim.storage.replicas import Staleness
from mktsim.streams import Streams


class Aggregator:
    """A scanner made of scanners.

    Parameters
    ----------
    id : str
        Distinct among the scanners of one coordinator.
    scanners : sequence of ScatterTarget
        Its children, in the order of vendors.
    address : str, optional
        Where the network finds it; its id when absent.
    policy : ScatterPolicy, optional
        How it scatters where the query's own policy says nothing.
    network : Network, optional
        By which it reaches its children; the coordinator's when absent.
    replicas : mapping, optional
        Id of a child to the addresses of its replicas.
    streams : Streams, optional
        Randomness of its retries.

    Raises
    ------
    InvalidArgumentError
        It has no children, or two of the same id.

    Examples
    --------
    The answer is that of the leaves; the coordinator has called two nodes rather than three.

    >>> import asyncio
    >>> from mktsim.fanout import QueryCoordinator, Scanner
    >>> from mktsim.sql import Schema
    >>> acme, bolt, core = (Scanner(name, lambda sql, params: [(2,)]) for name in ("acme", "bolt", "core"))
    >>> europe = Aggregator("europe", [acme, bolt])
    >>> europe.width, europe.covers("core")
    (2, False)
    >>> schema = Schema(["CREATE TABLE products(name TEXT)"])
    >>> coordinator = QueryCoordinator([europe, core], schema=schema)
    >>> result = asyncio.run(coordinator.query("SELECT COUNT(*) FROM products"))
    >>> coordinator.close()
    >>> result.rows, result.stats.calls
    ([(6,)], 2)
    """

    is_inner = True

    def __init__(
        self,
        id: str,
        scanners: Sequence[ScatterTarget],
        *,
        address: str | None = None,
        policy: ScatterPolicy | None = None,
        network: Network | None = None,
        replicas: Mapping[str, Sequence[str]] | None = None,
        streams: Streams | None = None,
    ) -> None:
        self.id = id
        self.address = id if address is None else address
        self.scanners = tuple(scanners)
        if not self.scanners or len({scanner.id for scanner in self.scanners}) != len(self.scanners):
            raise InvalidArgumentError(f"aggregator {id!r:.80} needs scanners, and of different ids")
        self.policy = policy if policy is not None else ScatterPolicy()
        # Vendors of several shards lie between each other in the order of vendors; those of plain scanners do not.
        self._is_scattered = any(isinstance(scanner, ShardScanner) for scanner in leaves(self.scanners))
        self._replicas = replicas
        self._streams = streams
        self._node: Node | None = None
        if network is not None:
            self.attach(network)

    def __repr__(self) -> str:
        return f"Aggregator({self.id!r}, {len(self.scanners)} scanners)"

    @property
    def width(self) -> int:
        """How many vendors stand below it now."""
        return sum(scanner.width for scanner in self.scanners)

    @property
    def has_functions(self) -> bool:
        """Whether all below it have them."""
        return all(scanner.has_functions for scanner in self.scanners)

    def covers(self, vendor_id: str) -> bool:
        """Whether the vendor stands below it."""
        return any(scanner.covers(vendor_id) for scanner in self.scanners)

    def vendor_ids(self) -> list[str]:
        """Return the ids of the vendors below it, in their order; of shards, shard by shard."""
        return [vendor_id for leaf in leaves(self.scanners) for vendor_id in _ids(leaf)]

    def attach(
        self, network: Network, *, replicas: Mapping[str, Sequence[str]] | None = None, streams: Streams | None = None
    ) -> None:
        """Serve the children on a network and call them by it; what was given when it was made wins."""
        if self._node is not None:
            return
        mine = self._replicas if self._replicas is not None else replicas
        self._node = Node(network, self.address, replicas=mine, streams=self._streams or _child(streams, self.address))
        serve(self.scanners, network, replicas=replicas, streams=streams)

    def detach(self) -> None:
        """Leave the network, the children too."""
        if self._node is not None:
            node, self._node = self._node, None
            leave(self.scanners, node.network)

    def scan(self, request: ScatterRequest) -> Partial | asyncio.Future[Partial]:
        """Scatter to the children; see :class:`ScatterTarget`."""
        node = self._node
        if node is None:
            raise InvalidArgumentError(f"aggregator {self.id!r:.80} has no network: attach() it, or give it one")
        loop = asyncio.get_running_loop()
        deadline_s = request.deadline_s
        if deadline_s is not None:
            deadline_s -= HAND_IN_SHARE * max(0.0, deadline_s - loop.time())
        asked = request.replace(vendor_ids=None, tie=None, deadline_s=deadline_s)
        future: asyncio.Future[Partial] | None = None

        def hand_in() -> None:
            if future is not None and not future.done():
                try:
                    future.set_result(self._partial(scatter, request))
                except Exception as error:
                    future.set_exception(error)

        scatter = node.scatter(self._targets(request), asked, request.policy or self.policy, hand_in)
        if scatter.is_over:
            return self._partial(scatter, request)
        future = loop.create_future()
        future.add_done_callback(lambda done: scatter.cancel() if done.cancelled() else None)
        return future

    def _targets(self, request: ScatterRequest) -> list[Target]:
        if request.vendor_ids is None:
            return [(scanner, None) for scanner in self.scanners]
        targets: list[Target] = []
        for scanner in self.scanners:
            mine = tuple(each for each in request.vendor_ids if scanner.covers(each))
            if mine:
                targets.append((scanner, mine if is_group(scanner) else None))
        return targets

    def _partial(self, scatter: Scatter, request: ScatterRequest) -> Partial:
        partials = [scatter.partials[s.id] for s in self.scanners if s.id in scatter.partials]
        segments: list[Segment] = [segment for partial in partials for segment in partial.segments]
        rows = sum(partial.rows for partial in partials)
        useless = scatter.failures and not request.allow_partial
        if request.combine is not None and len(segments) > 1 and not useless:
            if self._is_scattered:
                segments.sort(key=lambda segment: segment[0])
            segments = combined(segments, request.combine)
            rows = sum(len(parts[0]) for _, parts in segments)
        stale = Staleness.worst(partial.stale for partial in partials)
        return Partial(segments, sum(partial.answered for partial in partials), rows, scatter.failures, stale=stale)


def tree(scanners: Sequence[ScatterTarget], width: int | None, *, prefix: str = "aggregator") -> list[ScatterTarget]:
    """Return the top of a tree over scanners, in which no node has more than `width` children.

    Parameters
    ----------
    scanners : sequence of ScatterTarget
        The leaves, in the order of vendors.
    width : int or None
        At least 2; None, or as many as there are scanners, means flat: the scanners themselves.
    prefix : str
        Aggregator i of level k (the lowest is 1) has the id and address ``prefix/k/i``.

    Raises
    ------
    InvalidArgumentError
        The width is no whole number of at least 2.

    Examples
    --------
    >>> from mktsim.fanout import Scanner
    >>> tree([Scanner(name, print) for name in "abcde"], 2)
    [Aggregator('aggregator/2/0', 2 scanners), Aggregator('aggregator/2/1', 1 scanners)]
    """
    if width is not None and (not isinstance(width, int) or isinstance(width, bool) or width < 2):
        raise InvalidArgumentError(f"a fan-out width must be a whole number of at least 2, not {width!r:.80}")
    level = list(scanners)
    depth = 0
    while width is not None and len(level) > width:
        depth += 1
        level = [
            Aggregator(f"{prefix}/{depth}/{index}", level[first : first + width])
            for index, first in enumerate(range(0, len(level), width))
        ]
    return level


def leaves(scanners: Sequence[ScatterTarget]) -> Iterator[ScatterTarget]:
    """Yield the scanners below all aggregators, in order."""
    for scanner in scanners:
        if isinstance(scanner, Aggregator):
            yield from leaves(scanner.scanners)
        else:
            yield scanner


def is_group(scanner: ScatterTarget) -> bool:
    """Whether several vendors may stand behind a scanner, so that it must be told which of them are meant."""
    return isinstance(scanner, ShardScanner | Aggregator)


def serve(
    scanners: Sequence[ScatterTarget],
    network: Network,
    *,
    replicas: Mapping[str, Sequence[str]] | None = None,
    streams: Streams | None = None,
) -> None:
    """Register scanners, and all below them, with a network."""
    for scanner in scanners:
        network.register(scanner.address, Station(scanner, network))
        if isinstance(scanner, Aggregator):
            scanner.attach(network, replicas=replicas, streams=streams)


def leave(scanners: Sequence[ScatterTarget], network: Network) -> None:
    """Take scanners, and all below them, off a network."""
    for scanner in scanners:
        network.unregister(scanner.address)
        if isinstance(scanner, Aggregator):
            scanner.detach()


def _ids(leaf: Any) -> list[str]:
    return leaf.vendor_ids() if hasattr(leaf, "vendor_ids") else [leaf.id]


def _child(streams: Streams | None, address: str) -> Streams | None:
    return None if streams is None else streams.child(address)
