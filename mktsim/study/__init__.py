"""Studies: from a scenario to an answer with an interval and a provenance."""

from mktsim.study.comparison import Comparison, compare
from mktsim.study.live import Calibration, calibrate
from mktsim.study.optimisation import Optimum, optimise
from mktsim.study.prediction import Prediction, predict
from mktsim.study.provenance import running_digest as _running_digest
from mktsim.study.replication import SimulationResult, simulate
from mktsim.study.replications import Replications, replicate
from mktsim.study.result import StudyResult
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import Interval
from mktsim.study.sweeps import sweep
from mktsim.study.validation import Validation, validate

__all__ = [
    "Calibration",
    "Comparison",
    "Interval",
    "Optimum",
    "Prediction",
    "Replications",
    "Scenario",
    "SimulationResult",
    "StudyResult",
    "Validation",
    "calibrate",
    "compare",
    "optimise",
    "predict",
    "replicate",
    "simulate",
    "sweep",
    "validate",
]

_running_digest()  # Nearly all that decides samples is loaded by now; what comes later is noticed from here on.
