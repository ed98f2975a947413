"""Measure contenders in interleaved rounds."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import eq
from time import perf_counter
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured: the parameters that a report carries.

    Attributes
    ----------
    vendors : tuple of int
        Fleets that a query fans out over, of `products` products a vendor.
    threads : int
        Of the thread pool.
    nodes, virtual_nodes, keys : int
        The ring, and the keys that it places.
    leaves, event_leaves, array_leaves : int
        Fan-out width with SQL executed, with timing alone, and in arrays.
    rows : int
        Of the column that is summed.
    objects : tuple of int
        Durable Objects in the platform's own runtime.
    cluster_vendors : int
        Scanned by the workers of a Dask cluster.
    large_vendors : int
        Of the market that is pruned.
    orders : int
        Placed, each durable before it is acknowledged.
    growth : tuple of int
        Markets whose times show how they grow with the number of vendors.
    rounds : int
        At most; a subject ends before where they take longer than `subject_s` seconds, though not before its least.
    """

    vendors: tuple[int, ...] = (1_000, 10_000)
    products: int = 10
    threads: int = 8
    nodes: int = 1_000
    virtual_nodes: int = 150
    keys: int = 1_000_000
    leaves: int = 1_000
    event_leaves: int = 10_000
    array_leaves: int = 100_000
    rows: int = 1_000_000
    objects: tuple[int, ...] = (10, 30, 100, 300, 1_000)
    cluster_vendors: int = 100_000
    large_vendors: int = 1_000_000
    orders: int = 2_000
    growth: tuple[int, ...] = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
    rounds: int = 15
    subject_s: float = 20.0


QUICK = Sizes(
    vendors=(1_000,),
    keys=100_000,
    array_leaves=20_000,
    rows=100_000,
    objects=(100,),
    cluster_vendors=5_000,
    large_vendors=5_000,
    orders=300,
    growth=(10, 100, 1_000, 3_000),
    rounds=7,
    subject_s=3.0,
)


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to the answer.

    Attributes
    ----------
    name : str
        What it is.
    run : callable
        What is timed.
    answer : callable
        Makes of its result what is compared; not timed.
    at_most : float, optional
        The bar: our time divided by this contender's.
    before : callable
        What is called before each run, and not timed.
    """

    name: str
    run: Callable[[], Any]
    answer: Callable[[Any], Any] = lambda result: result
    at_most: float | None = None
    before: Callable[[], object] = lambda: None


@dataclass(frozen=True, slots=True)
class Subject:
    """One question, our way to its answer, and the peers'.

    Attributes
    ----------
    name, unit : str
        The question, and what one run does `count` of.
    equal : callable
        Whether a peer's answer is ours.
    note : str
        What a reader of the figures should know.
    least_rounds : int
        Rounds that are run however long they take.
    at_most_s : float, optional
        A bar for our time itself, seconds.
    """

    name: str
    unit: str
    count: int
    ours: Contender
    peers: tuple[Contender, ...]
    equal: Callable[[Any, Any], bool] = eq
    note: str = ""
    least_rounds: int = 3
    at_most_s: float | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured ratio: our time divided by the peer's; below 1 we are faster.

    Attributes
    ----------
    ratio, low, high : float
        Median and quartiles of the ratios within a round.
    ours_s, peer_s : float
        Median times of one run, seconds.
    rounds : int
        How many.
    at_most, at_most_s : float, optional
        Bars for the ratio and for our time.
    """

    subject: str
    peer: str
    unit: str
    count: int
    ratio: float
    low: float
    high: float
    ours_s: float
    peer_s: float
    rounds: int
    at_most: float | None = None
    note: str = field(default="")
    at_most_s: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether all bars are met, None where there is none."""
        bars = ((self.ratio, self.at_most), (self.ours_s, self.at_most_s))
        held = [value <= bar for value, bar in bars if bar is not None]
        return all(held) if held else None


class DifferentAnswerError(AssertionError):
    """A peer answers something else than we do: its time would mean nothing."""


def compare(subject: Subject) -> None:
    """Run every contender once, which warms it, and compare the answers.

    Raises
    ------
    DifferentAnswerError
        If one differs.
    """
    subject.ours.before()
    ours = subject.ours.answer(subject.ours.run())
    for peer in subject.peers:
        peer.before()
        theirs = peer.answer(peer.run())
        if not subject.equal(ours, theirs):
            raise DifferentAnswerError(
                f"{subject.name}: {peer.name} answers {theirs!r:.300}, {subject.ours.name} {ours!r:.300}"
            )


def measure(subject: Subject, *, rounds: int, subject_s: float) -> list[Figure]:
    """Compare the answers, then time all contenders in interleaved rounds.

    Parameters
    ----------
    subject : Subject
        What is measured.
    rounds : int
        At most.
    subject_s : float
        No round begins after so many seconds of timing, the subject's least excepted.

    Returns
    -------
    list of Figure
        One a peer.
    """
    compare(subject)
    contenders = (subject.ours, *subject.peers)
    times: list[list[float]] = []
    spent_s = 0.0
    while len(times) < rounds and (len(times) < subject.least_rounds or spent_s < subject_s):
        row = [0.0] * len(contenders)
        for step in range(len(contenders)):
            place = (step + len(times)) % len(contenders)
            contenders[place].before()
            gc.collect()  # What one contender leaves behind is not collected in another's time.
            start = perf_counter()
            result = contenders[place].run()
            row[place] = perf_counter() - start
            del result
        times.append(row)
        spent_s += sum(row)
    matrix = np.array(times)
    figures = []
    for column, peer in enumerate(subject.peers, 1):
        low, ratio, high = np.quantile(matrix[:, 0] / matrix[:, column], (0.25, 0.5, 0.75)).tolist()
        ours_s, peer_s = float(np.median(matrix[:, 0])), float(np.median(matrix[:, column]))
        figures.append(
            Figure(
                subject.name,
                peer.name,
                subject.unit,
                subject.count,
                ratio=ratio,
                low=low,
                high=high,
                ours_s=ours_s,
                peer_s=peer_s,
                rounds=len(times),
                at_most=peer.at_most,
                note=subject.note,
                at_most_s=subject.at_most_s,
            )
        )
    return figures
