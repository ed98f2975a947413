"""Studies: from a scenario to an answer with an interval and a provenance."""

from mktsim.study.replication import StudyResult, simulate
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import Interval
from mktsim.study.sweeps import sweep

__all__ = ["Interval", "Scenario", "StudyResult", "simulate", "sweep"]
