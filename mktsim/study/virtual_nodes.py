"""How many virtual nodes until placement stops costing tail latency? The fullest shard is the straggler.

Rules
-----
Every placement is the real one and places real ids; balance, movement, memory and times of look-ups are measured. The
tail is simulated by a model whose inputs are stated (`ShardModel`). A replication has ids of shards and vendors of its
own and draws keyed by (seed, replication): all placements, numbers of virtual nodes and of vendors of one replication
meet the same slow shards and messages, so that they are compared in pairs. Intervals are Student's over replications.

Theory of operation
-------------------
A query asks all shards at once. A shard scans its vendors with c workers, so its service time is vendors x time a
vendor / c, times lognormal noise of mean 1; the way there and back takes a lognormal time; the query waits for the last
shard. The cost of a placement is its p99 over the p99 with the very same noise and the vendors spread evenly.

What infinitely many virtual nodes would give is known: even shares, from which vendors deviate by chance alone. That is
jump hashing. So "the tail no longer improves" from the smallest number of virtual nodes on, above which the mean p99,
paired with jump's, stays within a tolerance of it. Its interval is made of Student's bounds, for the largest rings have
but three replications, of which a bootstrap would draw 10 different sets. The answer is too small only where the p99 of
the very last number that is not enough is taken for good: that one bound, at 97.5 %, is the upper end. It is too large
where any of those that are enough is taken for bad: the lower end is of bounds that hold for all of them at once
(Bonferroni).

What this does not do
---------------------
There is no queueing between queries here, and vendors are alike: hot vendors are the matter of `mktsim.placement.hot`.
Times of look-ups are this machine's, and of processes that run beside each other.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtri
from tqdm.auto import tqdm

from mktsim.errors import InvalidArgumentError
from mktsim.placement import (
    BoundedLoadHash,
    ConsistentHashRing,
    JumpHash,
    MaglevHash,
    MultiProbeHash,
    NodePlacement,
    RendezvousHash,
    TwoChoicesHash,
    hash_keys,
)
from mktsim.streams import Streams
from mktsim.study import analytic, charts
from mktsim.study.result import StudyResult
from mktsim.study.statistics import Interval, mean_interval, quantile_interval, samples_for_quantile

P99: Final = "p99"
P99_NOISY: Final = "p99 of noisy shards"
ENOUGH: Final = "enough virtual nodes"
ENOUGH_NOISY: Final = "enough virtual nodes, noisy shards"
_NOISIER: Final = 3  # times the noise, for the answer's sensitivity to it
QUESTION: Final = "How many virtual nodes until placement stops costing tail latency?"
_TABLES: Final = (65_537, 655_373, 1_000_003)  # Maglev's primes: the first with 100 entries a shard, else the last
_ASKED: Final = 500  # keys of one timed run of single look-ups
_BLOCK: Final = 1 << 18  # times computed in one step: they stay in the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardModel:
    """The simulated world of the study.

    Parameters
    ----------
    scan_us : float
        Of one vendor, microseconds; the packed store was measured at 8 to 14.
    workers : int
        Of a shard, which share its vendors evenly.
    scan_sigma : float
        Of the lognormal noise of a shard's service time; 0.1 is a p99 of 1.26 times the median.
    network_ms, network_sigma : float
        Median and sigma of the lognormal time of the way there and back; one zone takes 0.25 to 0.5 ms.
    """

    scan_us: float = 9.0
    workers: int = 1
    scan_sigma: float = 0.1
    network_ms: float = 0.4
    network_sigma: float = 0.5

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
                raise InvalidArgumentError(f"ShardModel.{name} must be finite and at least 0, not {value!r:.80}")
        if not self.scan_us or not self.workers or self.workers != int(self.workers):
            raise InvalidArgumentError(
                f"ShardModel needs scan_us above 0 and a whole number of workers, not {self.scan_us} and {self.workers}"
            )

    def p99_ms(self, loads: Sequence[NDArray[Any]], streams: Streams, requests: int) -> list[float]:
        """Simulate requests for each way in which vendors are spread over the same shards.

        Parameters
        ----------
        loads : sequence of ndarray, shape (shards,)
            Vendors on each shard.
        streams : Streams
            Noise is keyed by (request, shard): equal streams, equal noise.
        requests : int
            Independent; p99 needs some hundreds.

        Returns
        -------
        list of float
            p99 of the sojourn time in ms, one for each of `loads`.
        """
        shards = len(loads[0])
        slowest = np.empty((len(loads), requests))
        work = [load * (self.scan_us * 1e-3 / self.workers) for load in loads]
        step = max(1, _BLOCK // shards)
        for start in range(0, requests, step):
            block = range(start, min(requests, start + step))
            scan, network = (
                np.exp(sigma * ndtri(np.stack([streams.uniform(name, request, shards) for request in block])) + shift)
                for name, sigma, shift in (
                    ("scan", self.scan_sigma, -(self.scan_sigma**2) / 2),
                    ("network", self.network_sigma, math.log(self.network_ms) if self.network_ms else -math.inf),
                )
            )
            room = np.empty_like(scan)
            for row, service_ms in enumerate(work):
                np.multiply(scan, service_ms, out=room)
                np.add(room, network, out=room)
                room.max(axis=1, out=slowest[row, start : block.stop])
        return [float(p99) for p99 in np.quantile(slowest, 0.99, axis=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualNodesSize:
    """How much is measured.

    Attributes
    ----------
    shards, virtual_nodes, vendors : tuple of int
        What is varied; vendors in rising order.
    replications : int
        At least 10 for narrow intervals.
    large_replications : int
        Of rings of more than `large_tokens` tokens, and where rendezvous hashing races more than `large_races` times.
    requests : int
        Simulated in each replication.
    """

    shards: tuple[int, ...] = (2, 10, 100, 1_000, 10_000)
    virtual_nodes: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 150, 200, 500, 1_000, 2_000, 5_000, 10_000)
    vendors: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    replications: int = 10
    large_replications: int = 3
    large_tokens: int = 10_000_000
    large_races: int = 300_000_000
    requests: int = 1_000

    def __post_init__(self) -> None:
        for name in ("shards", "virtual_nodes", "vendors"):
            values = getattr(self, name)
            if not values or any(not isinstance(each, int) or each < 1 for each in values):
                raise InvalidArgumentError(f"{name} must be whole numbers from 1 on, not {values!r:.80}")
            if list(values) != sorted(set(values)):
                raise InvalidArgumentError(f"{name} must rise, not {values!r:.80}")
        if self.replications < 2 or self.large_replications < 2 or self.requests < 100:
            raise InvalidArgumentError("the study needs at least 2 replications and 100 requests")


FULL: Final = VirtualNodesSize()
QUICK: Final = VirtualNodesSize(
    shards=(10, 100), virtual_nodes=(1, 5, 20, 100, 500, 2_000), vendors=(10_000, 100_000), replications=6, requests=400
)
#: The series of the study beside the ring, and what makes them; a placement over `shards` nodes.
_Make = Callable[[Sequence[str]], NodePlacement]


def placements(shards: int) -> dict[str, _Make]:
    """Return what makes each placement that the study compares with the ring.

    Examples
    --------
    >>> list(placements(10))
    ['jump', 'rendezvous', 'multi-probe 21', 'Maglev', 'bounded 1.25', 'bounded 1.05', 'two choices']
    """
    table = next((size for size in _TABLES if size >= 100 * shards), _TABLES[-1])
    return {
        "jump": JumpHash,
        "rendezvous": RendezvousHash,
        "multi-probe 21": MultiProbeHash,
        "Maglev": lambda ids: MaglevHash(ids, table_size=table),
        "bounded 1.25": lambda ids: BoundedLoadHash(ids, epsilon=0.25),
        "bounded 1.05": lambda ids: BoundedLoadHash(ids, epsilon=0.05),
        "two choices": TwoChoicesHash,
    }


Row = tuple[
    str, int, int, float, int, str, float
]  # placement, shards, vendors, virtual nodes, replication, what, value


def replicate(size: VirtualNodesSize, model: ShardModel, shards: int, replication: int, seed: int) -> list[Row]:
    """Measure and simulate all placements over so many shards once.

    Returns
    -------
    list of (placement, shards, vendors, virtual nodes, replication, statistic, value)
        Virtual nodes are NaN where a placement has none.
    """
    names = [f"{seed}/{replication}/vendor-{number}" for number in range(size.vendors[-1])]
    hashes = hash_keys(names)
    ids = [f"{seed}/{replication}/shard-{number}" for number in range(shards)]
    gc.collect()  # What the last replication left is not collected while this one is timed.
    rows: list[Row] = []
    spread: list[tuple[str, int, float, NDArray[Any]]] = [
        ("even", vendors, math.nan, np.full(shards, vendors / shards)) for vendors in size.vendors
    ]
    for v in size.virtual_nodes:
        if shards * v > size.large_tokens and replication >= size.large_replications:
            continue

        def ring(names: Sequence[str], virtual_nodes: int = v) -> NodePlacement:
            return ConsistentHashRing(names, virtual_nodes=virtual_nodes)

        spread += _look("ring", ring, ids, names, hashes, size, float(v), replication, rows)
    for name, make in placements(shards).items():
        # Rendezvous hashing looks at every node for every key: it is given as many as it can do.
        few = size.large_races // shards if name == "rendezvous" else len(hashes)
        spread += _look(name, make, ids, names, hashes[:few], size, math.nan, replication, rows)
    streams = Streams(seed).child("virtual nodes").child(f"replication {replication}")
    for what, world in ((P99, model), (P99_NOISY, replace(model, scan_sigma=_NOISIER * model.scan_sigma))):
        some = spread if what == P99 else [each for each in spread if each[0] in ("even", "ring", "jump")]
        times = world.p99_ms([load for *_, load in some], streams, size.requests)
        even = dict(zip(size.vendors, times, strict=False))
        for (name, vendors, virtual, _), p99 in zip(some, times, strict=True):
            rows.append((name, shards, vendors, virtual, replication, what, p99))
            rows.append((name, shards, vendors, virtual, replication, f"{what} over even", p99 / even[vendors]))
    return rows


def _look(
    name: str, make: _Make, ids: Sequence[str], names: Sequence[str], hashes: NDArray[np.uint64],
    size: VirtualNodesSize, v: float, replication: int, rows: list[Row],
) -> list[tuple[str, int, float, NDArray[Any]]]:  # fmt: skip
    """Build one placement, measure it into `rows` and return how it spreads each number of vendors."""
    shards, spread = len(ids), []
    start = perf_counter()
    placed = make(ids)
    placed.assign_hashes(hashes[:1])
    built_s = perf_counter() - start

    def add(vendors: int, what: str, value: float) -> None:
        rows.append((name, shards, vendors, v, replication, what, value))

    counts = [vendors for vendors in size.vendors if vendors <= len(hashes)]
    owners = None
    for vendors in reversed(counts):
        fresh = placed if vendors == counts[-1] or name in _STATELESS else make(ids)
        if fresh is placed and owners is not None:
            some = owners[:vendors]
        else:
            start = perf_counter()
            some = fresh.assign_hashes(hashes[:vendors])
            if owners is None:
                owners = some
                add(vendors, "look-up", (perf_counter() - start) / vendors * 1e9)
        load = np.bincount(some, minlength=shards)
        add(vendors, "variation", float(load.std() * shards / vendors))
        add(vendors, "fullest over mean", float(load.max() * shards / vendors))
        spread.append((name, vendors, v, load))
    most = counts[-1]
    if isinstance(placed, ConsistentHashRing):
        shares = placed.shares() * shards
        add(0, "variation", float(shares.std()))
        add(0, "fullest over mean", float(shares.max()))
    asked = names[: min(most, _ASKED)]
    placed.get_node(asked[0])
    start = perf_counter()
    for key in asked:
        placed.get_node(key)
    add(most, "single look-up", (perf_counter() - start) / len(asked) * 1e6)
    add(most, "build", built_s * 1e3)
    add(most, "memory", placed.nbytes / 2**20)
    # Movement is judged by at most 100,000 vendors: its binomial error is then 1 % and less of the ideal at 1 in 10.
    few = hashes[: min(most, 100_000)]
    before = placed if name in _STATELESS else make(ids)
    owners = before.assign_hashes(few)
    before.add_node(f"{replication}/new")
    after = before.assign_hashes(few)
    add(most, "moved over ideal", float((owners != after).mean() * (shards + 1)))
    add(most, "moved between others", float(((owners != after) & (after != shards)).mean()))
    return spread


_STATELESS: Final = frozenset({"ring", "jump", "rendezvous", "multi-probe 21", "Maglev"})
_UNITS: Final = {
    P99: "ms", P99_NOISY: "ms", "look-up": "ns", "single look-up": "us", "build": "ms", "memory": "MiB",
    "moved between others": "share",
}  # fmt: skip
#: The law of the fullest shard is of its median; a mean of times would tell of whatever else the machine did.
_MEDIANS: Final = frozenset({"fullest over mean", "build", "look-up", "single look-up"})
_COLUMNS: Final = [
    "study", "series", "kind", "shards", "vendors", "axis", "x", "statistic", "unit", "estimate", "low", "high", "n",
    "seed",
]  # fmt: skip


def run_virtual_nodes(
    size: VirtualNodesSize = FULL,
    *,
    seed: int,
    model: ShardModel = ShardModel(),
    tolerance: float = 0.01,
    executor: Executor | None = None,
    progress: bool = False,
) -> StudyResult:
    """Answer how many virtual nodes a ring needs, with all placements side by side.

    Parameters
    ----------
    size : VirtualNodesSize
        How much is measured: ``FULL`` takes minutes, ``QUICK`` seconds.
    seed : int
        Decides every id and every draw; measured times are this machine's.
    model : ShardModel
        The simulated world of the tail.
    tolerance : float
        By how much, relative, a p99 may exceed that of even shares and count as no worse.
    executor : concurrent.futures.Executor, optional
        Runs replications; what is simulated does not depend on it.
    progress : bool
        Show a progress bar.

    Returns
    -------
    StudyResult
        Its frame has one row an estimate: ``series`` (placement), ``kind``, ``shards``, ``vendors`` (0 for the shares
        of the ring itself), ``x`` (virtual nodes), ``statistic``, ``unit``, ``estimate``, ``low``, ``high``, ``n``.
        The statistic ``enough virtual nodes`` is the answer for each number of shards and vendors.

    Raises
    ------
    InvalidArgumentError
        If the tolerance is not inside (0, 1).

    Examples
    --------
    >>> size = VirtualNodesSize(shards=(4,), virtual_nodes=(1, 64), vendors=(2_000,), replications=3, requests=100)
    >>> frame = run_virtual_nodes(size, seed=1).frame
    >>> frame.loc[frame["statistic"] == "variation", "series"].nunique()
    10
    """
    if not isinstance(tolerance, int | float) or not 0 < tolerance < 1:
        raise InvalidArgumentError(f"tolerance must be inside (0, 1), not {tolerance!r:.80}")
    seed = Streams(seed).seed
    # The largest first, so that no process is left with them at the end.
    jobs = [(size, model, n, r, seed) for n in sorted(size.shards, reverse=True) for r in range(size.replications)]
    columns = list(zip(*jobs, strict=True))
    made = executor.map(replicate, *columns) if executor is not None else map(replicate, *columns)
    rows: list[Row] = []
    for part in tqdm(made, total=len(jobs), desc="virtual nodes", unit=" replications", disable=not progress):
        rows += part
    raw = pd.DataFrame(rows, columns=["series", "shards", "vendors", "x", "replication", "statistic", "value"])
    raw = raw.sort_values(["shards", "vendors", "x", "replication"], kind="stable")
    table = [*_summary(raw, seed), *_laws(size, seed), *_enough(raw, tolerance, seed)]
    frame = pd.DataFrame(table, columns=_COLUMNS)
    caption = (
        f"n = {size.replications} replications a point ({size.large_replications} above {size.large_tokens:,} tokens); "
        f"simulated: {size.requests:,} requests each, {model.scan_us:g} us a vendor, {model.workers} worker a shard, "
        f"scan sigma {model.scan_sigma:g}, network {model.network_ms:g} ms sigma {model.network_sigma:g}; seed {seed}. "
        "Bars and bands are 95 % intervals"
    )
    parameters = {"size": asdict(size), "model": asdict(model), "tolerance": tolerance}
    return StudyResult(
        question=QUESTION, answer=_answer(frame, tolerance), frame=frame, parameters=parameters, seed=seed,
        caption=caption,
    )  # fmt: skip


def _row(
    seed: int, series: str, kind: str, shards: int, vendors: int, x: float, what: str, found: Interval
) -> list[Any]:
    unit = _UNITS.get(what, "ratio")
    return [
        "virtual-nodes", series, kind, shards, vendors, "virtual nodes", x, what, unit, found.estimate, found.low,
        found.high, found.n, seed,
    ]  # fmt: skip


def _summary(raw: pd.DataFrame, seed: int) -> list[list[Any]]:
    table = []
    shards: Any  # pandas knows the keys of a group as Hashable
    vendors: Any
    x: Any
    keys = ["series", "shards", "vendors", "x", "statistic"]
    for (series, shards, vendors, x, what), part in raw.groupby(keys, sort=False, dropna=False):
        kind = "simulated" if str(what).startswith("p99") else "measured"
        values = part["value"].to_numpy()
        if what == "variation":  # The law is of the mean square.
            square = mean_interval(values**2)
            low, high = math.sqrt(max(0.0, square.low)), math.sqrt(square.high)
            found = Interval(math.sqrt(square.estimate), low, high, square.n)
        elif what in _MEDIANS and len(values) >= samples_for_quantile(0.5):
            found = quantile_interval(values, 0.5)
        else:
            found = mean_interval(values)
            found = Interval(found.estimate, max(0.0, found.low), found.high, found.n)  # None of these is negative.
        table.append(_row(seed, str(series), kind, int(shards), int(vendors), float(x), str(what), found))
    return table


def _laws(size: VirtualNodesSize, seed: int) -> list[list[Any]]:
    """Return the exact laws: Beta for the shares of a ring, beta-binomial for the vendors on it."""
    table = []
    for n in size.shards:
        for v in size.virtual_nodes:
            beta = analytic.ring_load_variation(n, v)
            law = {"variation": beta, "fullest over mean": analytic.ring_max_over_mean(n, v)}
            for what, value in law.items():
                found = Interval(value, math.nan, math.nan, 0)
                table.append(_row(seed, "shares of the ring (Beta)", "analytic", n, 0, float(v), what, found))
            for m in size.vendors:
                # Var(beta-binomial)/mean^2, mean m/n: (n - 1)(n v + m)/(m (n v + 1)).
                value = math.sqrt((n - 1) * (n * v + m) / (m * (n * v + 1)))
                found = Interval(value, math.nan, math.nan, 0)
                table.append(_row(seed, "vendors (beta-binomial)", "analytic", n, m, float(v), "variation", found))
    return table


def smallest_enough(excess: Mapping[float, float], tolerance: float) -> float:
    """Return the smallest number of virtual nodes from which on no excess is above the tolerance; infinity if none is.

    Examples
    --------
    >>> smallest_enough({1: 0.5, 10: 0.005, 100: 0.02, 1000: 0.001}, 0.01)
    1000
    """
    enough = math.inf
    for v in sorted(excess, reverse=True):
        if not excess[v] <= tolerance:
            break
        enough = v
    return enough


def enough_interval(
    excess: Mapping[float, NDArray[np.float64]], tolerance: float, *, confidence: float = 0.95
) -> Interval:
    """Estimate the smallest number of virtual nodes from which on no mean excess is above the tolerance.

    Parameters
    ----------
    excess : mapping of float to ndarray
        Of each number of virtual nodes, the excess of each replication; at least 2 of each.
    tolerance : float
    confidence : float

    Returns
    -------
    Interval
        Ends lie on the grid or are infinite; ``n`` is the least number of replications behind the numbers from the
        lower end on, which decide.

    Examples
    --------
    >>> few, many = np.array([0.05, 0.07, 0.06]), np.array([0.001, 0.002, 0.0])
    >>> enough_interval({1: few, 10: many, 100: many}, 0.01)
    Interval(estimate=10, low=10, high=10, n=3, confidence=0.95)
    """
    means = {v: float(each.mean()) for v, each in excess.items()}
    error = 1 - confidence

    def bounds(sign: int, share: float) -> dict[float, float]:
        return {
            v: means[v] + sign * float(stats.t.isf(share, len(each) - 1) * each.std(ddof=1) / math.sqrt(len(each)))
            for v, each in excess.items()
        }

    low = smallest_enough(bounds(-1, error / 2 / len(excess)), tolerance)
    high = smallest_enough(bounds(1, error / 2), tolerance)
    deciding = [len(each) for v, each in excess.items() if v >= low] or [len(each) for each in excess.values()]
    return Interval(smallest_enough(means, tolerance), low, high, min(deciding), confidence)


def _enough(raw: pd.DataFrame, tolerance: float, seed: int) -> list[list[Any]]:
    """Answer for each number of shards and vendors, with its interval."""
    table = []
    shards: Any
    vendors: Any
    for what in (P99, P99_NOISY):
        times = raw[raw["statistic"] == what]
        for (shards, vendors), part in times.groupby(["shards", "vendors"], sort=False):
            jump = part[part["series"] == "jump"].set_index("replication")["value"]
            ring = part[part["series"] == "ring"].pivot(index="replication", columns="x", values="value")
            excess = {float(v): (ring[v] / jump - 1).dropna().to_numpy() for v in ring.columns.to_list()}
            interval = enough_interval(excess, tolerance)
            name = ENOUGH if what == P99 else ENOUGH_NOISY
            table.append(_row(seed, "ring", "simulated", int(shards), int(vendors), math.nan, name, interval))
    return table


def _answer(frame: pd.DataFrame, tolerance: float) -> str:
    answers = frame[frame["statistic"] == ENOUGH]
    most = answers["vendors"].max()
    top = _most(frame)

    def told(row: Any) -> str:
        low, high = (f"{value:,.0f}" if value < math.inf else f"above {top:,.0f}" for value in (row.low, row.high))
        first = f"{row.estimate:,.0f}" if row.estimate < math.inf else f"above {top:,.0f}"
        return f"{first} [{low}, {high}]"

    def listed(rows: pd.DataFrame) -> str:
        return ", ".join(f"{told(row)} for {row.shards:,} shards" for row in rows.sort_values("shards").itertuples())

    fewer = [f" With {m:,} vendors: {listed(part)}." for m, part in answers.groupby("vendors", sort=True) if m != most][
        ::-1
    ]
    noisy = frame[(frame["statistic"] == ENOUGH_NOISY) & (frame["vendors"] == most)]
    return (
        f"Simulated: with {most:,} vendors the p99 no longer improves, to {100 * tolerance:g} %, past this number of "
        f"virtual nodes a shard [95 % interval]: {listed(answers[answers['vendors'] == most])}.{''.join(fewer)} "
        f"Where shards are {_NOISIER} times as noisy, with {most:,} vendors: {listed(noisy)}."
    )


def _most(frame: pd.DataFrame) -> float:
    return float(frame.loc[frame["series"] == "ring", "x"].max())


# -- charts -------------------------------------------------------------------------------------------------------


def draw(result: StudyResult) -> dict[str, tuple[str, bytes]]:
    """Draw the study's charts.

    Returns
    -------
    dict
        File name to title and PNG.
    """
    frame, made = result.frame, {}
    vendors = int(frame["vendors"].max())
    ring = frame[(frame["series"] == "ring") | (frame["kind"] == "analytic")]
    shards = [n for n in sorted(ring["shards"].unique()) if n > 2][-4:]
    per_shard, where = "virtual nodes a shard", {"variation": "coefficient of variation", "fullest over mean": "ratio"}

    def named(part: pd.DataFrame) -> pd.DataFrame:
        return part.assign(series=[f"{n:,} shards" for n in part["shards"]])

    def keep(name: str, title: str, axes: Sequence[Any], text: str) -> None:
        charts.annotate(axes, title=title, caption=f"{text} {result.caption}.")
        made[f"virtual-nodes-{name}.png"] = (title, charts.png(axes[0]))

    # Shares of the ring follow the law; vendors have, beside, the scatter of their number.
    panels = charts.new_axes(2, height=5.2)
    chosen = ring[ring["shards"].isin(shards)]
    measured = named(chosen[(chosen["kind"] == "measured") & (chosen["vendors"] == vendors)])
    styles = charts.series_styles(measured)
    for ax, (what, label) in zip(panels, where.items(), strict=True):
        laws = chosen[(chosen["series"] == "shares of the ring (Beta)") & (chosen["statistic"] == what)]
        charts.line_chart(
            measured[measured["statistic"] == what], x_label=per_shard, y_label=f"load: {label}", title=what, ax=ax,
            styles=styles,
        )  # fmt: skip
        charts.law_lines(laws, ax=ax, by="shards", label="analytic: shares of the ring (Beta law)")
    keep("balance", f"Balance of {vendors:,} vendors", panels,
         "Vendors on shards; where lines leave the law, the number of vendors a shard is what scatters.")  # fmt: skip

    tails = ring[(ring["statistic"] == "p99 over even")]
    counts = [m for m in sorted(tails["vendors"].unique()) if m]
    counts = [counts[0], counts[-1]] if len(counts) > 1 else counts
    panels = charts.new_axes(len(counts), height=5.0)
    part = named(tails[tails["vendors"].isin(counts)])
    styles = charts.series_styles(part)
    for ax, m in zip(panels, counts, strict=True):
        charts.line_chart(
            part[part["vendors"] == m], x_label=per_shard, y_label="p99 / p99 with vendors spread evenly",
            title=f"{m:,} vendors", ax=ax, styles=styles,
        )  # fmt: skip
    charts.same_range(panels)
    keep("tail", "The fullest shard is the straggler: what placement costs the tail", panels,
         "Ring; the p99 of queries that ask all shards.")  # fmt: skip

    panels = charts.new_axes(3, height=5.0, width=6.0)
    costs = named(ring[ring["shards"].isin(shards)])
    styles = charts.series_styles(costs[costs["kind"] == "measured"])
    for ax, (what, label) in zip(
        panels,
        {"memory": "table, MiB", "build": "build, ms", "look-up": "look-up in bulk, ns a key"}.items(),
        strict=True,
    ):
        charts.line_chart(
            costs[costs["statistic"] == what], x_label=per_shard, y_label=label, title=what, ax=ax, styles=styles
        )
    keep("cost", "What virtual nodes cost", panels,
         f"Look-ups of {vendors:,} vendors whose hashes are known; this machine, two processes.")  # fmt: skip

    made |= _side_by_side(result, vendors)
    return made


def _side_by_side(result: StudyResult, vendors: int) -> dict[str, tuple[str, bytes]]:
    frame = result.frame
    counts = [n for n in (100, 1_000) if n in set(frame["shards"])] or [int(frame["shards"].max())]
    rings = [float(v) for v in (10, 150, 1_000) if v in set(frame["x"])] or [_most(frame)]
    chosen = frame[
        frame["shards"].isin(counts)
        & (frame["kind"] != "analytic")
        & ((frame["series"] != "ring") | frame["x"].isin(rings))
    ]
    chosen = chosen.assign(
        group=[
            f"ring x {x:,.0f}" if x == x else series for series, x in zip(chosen["series"], chosen["x"], strict=True)
        ],
        series=[f"{n:,} shards" for n in chosen["shards"]],
    )
    what = {
        "fullest over mean": "fullest shard / mean", "p99 over even": "p99 / p99 of even", "moved over ideal":
        "moved / (1/(n+1))", "look-up": "look-up in bulk, ns", "single look-up": "one look-up, us",
    }  # fmt: skip
    panels = charts.new_axes(len(what), height=5.6, width=4.2)
    order = [*(f"ring x {v:,.0f}" for v in rings), *placements(2)]
    for place, (ax, (statistic, label)) in enumerate(zip(panels, what.items(), strict=True)):
        part = chosen[(chosen["statistic"] == statistic) & (chosen["group"].isin(order))]
        if statistic in ("fullest over mean", "p99 over even"):  # Which say nothing across numbers of vendors.
            part = part[part["vendors"] == vendors]
        charts.dot_chart(part, x_label=label, groups=order, named=not place, ax=ax)
    title = "Placements side by side"
    text = (
        f"{vendors:,} vendors; where rendezvous hashing would race more than 300 million times it has fewer, and only "
        "its costs are shown. Measured but for the p99, which is simulated; look-ups in bulk of bounded loads and two "
        "choices include placing."
    )
    charts.annotate(panels, title=title, caption=f"{text} {result.caption}.")
    return {"virtual-nodes-placements.png": (title, charts.png(panels[0]))}


def answer_question(
    *, quick: bool, seed: int, executor: Executor | None, progress: bool
) -> tuple[StudyResult, dict[str, tuple[str, bytes]]]:
    """Run the study and draw it: what ``python -m mktsim study virtual-nodes`` does."""
    result = run_virtual_nodes(QUICK if quick else FULL, seed=seed, executor=executor, progress=progress)
    return result, draw(result)
