"""What a vendor costs to read in each way there is, as measured so far; by this a coordinator chooses.

Theory of operation
-------------------
A vendor is *scanned* in the order of a shard file, or *visited*, looked up by its id, which costs more each and spares
all others. Visits are cheap enough to be made in the coordinator's process until they outweigh the *call* of a worker
process. A scan is *handed out* to worker processes at first, who say how long they were busy; where that takes longer
than a scan in the coordinator's process would, the next one stays here. Each cost is a running mean (a quarter of the
newest measurement), from a prior that is right to a factor of two or so on the machine it was looked at. Measurements
of fewer than `_LEAST` vendors say more about overheads and are left out.

Under simulation nothing is measured, so that a run does not depend on the machine: the priors stand.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

_LEAST: Final = 64
_SHARE: Final = 0.25
#: Costs never leave a decade around their priors: one stalled query must not decide for all after it.
_MOST: Final = 10.0


@dataclass(slots=True)
class Costs:
    """Running estimates.

    Attributes
    ----------
    scan_us, visit_us : float
        A vendor read in a scan, and one looked up by its id, microseconds.
    call_us : float
        A request to a worker process and back, microseconds; not measured.
    hand_out_us : float or None
        A scan by worker processes beyond its even share of their work, microseconds; None before one was measured. The
        first is none: it may have had to wait for processes to start and to open their files.
    has_handed_out : bool
        Whether there was a first.

    Examples
    --------
    >>> costs = Costs()
    >>> costs.prefers_visits(100, 1_000), costs.prefers_visits(900, 1_000)
    (True, False)
    >>> costs.learn("scan", 1_000, 0.012)
    >>> costs.scan_us
    9.0
    >>> costs.scans_here(1_000, workers=2)
    False
    >>> costs.learn_handed_out(1_000, busy_s=0.009, wall_s=1.2, workers=2)  # Processes were started.
    >>> costs.learn_handed_out(1_000, busy_s=0.009, wall_s=0.0095, workers=2)
    >>> costs.hand_out_us, costs.scans_here(1_000, workers=2), costs.scans_here(10_000, workers=2)
    (5000.0, True, False)
    """

    scan_us: float = 8.0
    visit_us: float = 20.0
    call_us: float = 1_000.0
    hand_out_us: float | None = None
    has_handed_out: bool = False

    def prefers_visits(self, visits: int, vendors: int) -> bool:
        """Whether to visit so many vendors costs less than to scan all."""
        return visits * self.visit_us < vendors * self.scan_us

    def stays_here(self, visits: int, calls: int) -> bool:
        """Whether so many visits are not worth so many calls of worker processes."""
        return visits * self.visit_us <= calls * self.call_us

    def scans_here(self, vendors: int, workers: int) -> bool:
        """Whether a scan of so many vendors is known to take longer where so many workers share it."""
        if self.hand_out_us is None:
            return False
        alone_us = vendors * self.scan_us
        return alone_us <= alone_us / workers + self.hand_out_us

    def learn(self, way: str, vendors: int, wall_s: float) -> None:
        """Take in that so many vendors were read one way (``scan`` or ``visit``) in so many seconds."""
        if vendors < _LEAST:
            return
        name = f"{way}_us"
        prior = getattr(_PRIOR, name)
        seen = min(max(1e6 * wall_s / vendors, prior / _MOST), prior * _MOST)
        setattr(self, name, (1 - _SHARE) * getattr(self, name) + _SHARE * seen)

    def learn_handed_out(self, vendors: int, *, busy_s: float, wall_s: float, workers: int) -> None:
        """Take in that workers were busy for so many seconds, added up, in a scan that took so many."""
        if vendors < _LEAST:
            return
        if not self.has_handed_out:
            self.has_handed_out = True
            return
        self.learn("scan", vendors, busy_s)
        seen = min(max(1e6 * (wall_s - busy_s / workers), 0.0), _PRIOR.call_us * _MOST)
        before = seen if self.hand_out_us is None else self.hand_out_us
        self.hand_out_us = (1 - _SHARE) * before + _SHARE * seen

    def __str__(self) -> str:
        return f"{self.scan_us:.1f} us a vendor scanned, {self.visit_us:.1f} us visited"


_PRIOR: Final = Costs()
_PLANS: Final = 512


class CostsByPlan:
    """The costs of each plan, by its text; those of the plans used last are remembered.

    Examples
    --------
    >>> known = CostsByPlan()
    >>> known["SELECT 1"].learn("visit", 100, 0.004)
    >>> known["SELECT 1"].visit_us, known["SELECT 2"].visit_us
    (25.0, 20.0)
    """

    def __init__(self) -> None:
        self._costs: OrderedDict[str, Costs] = OrderedDict()

    def __getitem__(self, sql: str) -> Costs:
        costs = self._costs.setdefault(sql, Costs())
        self._costs.move_to_end(sql)
        while len(self._costs) > _PLANS:
            self._costs.popitem(last=False)
        return costs
