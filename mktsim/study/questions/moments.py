"""What happens in a simulation, one moment after the other?"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

import pandas as pd

from mktsim.sim import World
from mktsim.sim.simulation import Program, Simulation
from mktsim.streams import Streams
from mktsim.study.captions import counted
from mktsim.study.slices import Progress, sliced

_MOMENTS_A_SLICE: Final = 500


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """A simulation up to some moment.

    Attributes
    ----------
    log : DataFrame
        See :meth:`mktsim.sim.trace.Trace.to_pandas`.
    moments : int
        Instants at which something was recorded, up to here.
    now_ms : float
        Simulated.
    done : bool
        Whether the program has ended and nothing is under way.
    """

    log: pd.DataFrame
    moments: int
    now_ms: float
    done: bool

    def in_words(self) -> str:
        """Say how far it is, and how often each step was recorded."""
        counts = ", ".join(f"{count:,} {what}" for what, count in self.log["what"].value_counts(sort=False).items())
        return (
            f"{self.now_ms:.3f} ms, {'the end' if self.done else 'under way'}: {counted(self.moments, 'moment')}, "
            f"{counted(len(self.log), 'step')} ({counts or 'none yet'})"
        )

    def last(self, n: int) -> pd.DataFrame:
        """Return the last steps of the log, times to the microsecond."""
        recent = self.log.tail(n)[["time_ms", "what", "request", "attempt", "source", "target"]]
        return recent.assign(time_ms=recent["time_ms"].map("{:.3f}".format))


@sliced
def replay(program: Program, world: World, *, moments: int | None, seed: int) -> Generator[Progress, None, Replay]:
    """Run a simulation from its begin for so many moments, or to its end: the same moments each time.

    Parameters
    ----------
    program : callable
        See :class:`mktsim.sim.simulation.Simulation`.
    world : World
        What it runs in.
    moments : int, optional
        To the end when absent.
    seed : int
        Decides every draw.

    Returns
    -------
    Replay

    Examples
    --------
    >>> from functools import partial
    >>> from mktsim.sim.events import scatters
    >>> replay(partial(scatters, leaves=3, requests=range(1)), World(), moments=None, seed=1).done
    True
    """
    passed, over = 0, False
    with Simulation(program, world, Streams(seed)) as simulation:
        while moments is None or passed < moments:
            if not simulation.step():
                over = True
                break
            passed += 1
            if passed % _MOMENTS_A_SLICE == 0:
                now_ms = simulation.now_s * 1e3
                so_far = None if moments is not None else Replay(simulation.trace.to_pandas(), passed, now_ms, False)
                yield Progress(passed, moments or 0, "moments", so_far)
        now_ms = simulation.now_s * 1e3
        if over and simulation.done:
            _ = simulation.result  # Raises what the program raised.
        return Replay(simulation.trace.to_pandas(), passed, now_ms, over)
