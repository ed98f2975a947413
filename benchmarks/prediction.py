"""The platform's own runtime predicted: fitted on small numbers of Durable Objects, simulated at a large one, measured.

All runtimes, small and large, stand at once and are asked in turn, so that what slows the machine for a while slows all
of them; nothing of the large one goes into the fit. The time is that of one request over loopback, of which the
coordinating worker asks every object and sorts. The model is `mktsim.study.live`'s: a cost once and a cost an object,
times noise, with all objects in one process. Its prediction is of the p50 and the p99 of one run of so many requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from time import perf_counter
from typing import Any

import pandas as pd

from benchmarks.fanout import TOP_TEN
from benchmarks.peers import DurableObjectRuntime
from mktsim.market.catalogue import COLUMNS, catalogue
from mktsim.study.live import Calibration, fit_calibration
from mktsim.study.measuring import Statement, frozen_collector
from mktsim.study.points import Point, tidy
from mktsim.study.prediction import compared, predict

#: The runtime does not keep answers, so that the parameter may stay the same: the name is for the table.
STATEMENT = Statement("top-k", TOP_TEN.naive, 0, 1)
#: What `--quick` does.
QUICK: dict[str, Any] = {"fitted": (5, 10, 20, 40), "predicted": 100, "rounds": 40}
#: Rounds in which a runtime loads its code, compiles it and opens its files.
_WARM = 10


def measure_runtimes(objects: Sequence[int], *, products: int, rounds: int, seed: int) -> pd.DataFrame:
    """Time one statement over several runtimes in interleaved rounds.

    Returns
    -------
    DataFrame
        As of :func:`mktsim.study.measuring.measure_services`, the whole time in ``scatter_ms``.

    Raises
    ------
    PeerMissingError
        Without node, npm or the package.
    """
    table = []
    with ExitStack() as stack:
        runtimes = {}
        for count in objects:
            made = catalogue(vendors=count, products=products, seed=seed, skew=0)
            vendors = sorted((vendor_id, tables["products"]) for vendor_id, tables in made)
            runtimes[count] = stack.enter_context(DurableObjectRuntime(COLUMNS["products"], vendors))
        places = list(runtimes)
        with frozen_collector():
            for turn in range(-_WARM, rounds):
                for step in range(len(places)):
                    count = places[(step + turn) % len(places)]
                    start = perf_counter()
                    rows = runtimes[count].top(TOP_TEN.naive, TOP_TEN.params, key=4, limit=10)
                    total_ms = 1e3 * (perf_counter() - start)
                    if turn >= 0:
                        table.append((STATEMENT.name, count, 1, turn, len(rows), total_ms, 0.0, 0.0, total_ms))
    names = ["statement", "vendors", "shards", "round", "rows", "scatter_ms", "gather_ms", "rest_ms", "total_ms"]
    return pd.DataFrame(table, columns=names)


def predict_runtime(
    fitted: Sequence[int] = (10, 30, 100, 300),
    predicted: int = 1_000,
    *,
    products: int = 10,
    rounds: int = 300,
    tolerance: float = 0.25,
    seed: int = 20261122,
) -> tuple[pd.DataFrame, Calibration]:
    """Fit the runtime on small numbers of objects, simulate the large one, and say how wrong that is.

    Returns
    -------
    DataFrame
        As of :func:`mktsim.study.prediction.compared`: p50 and p99, measured and simulated, and their errors in %, with
        intervals.
    Calibration

    Raises
    ------
    PeerMissingError
        Without node, npm or the package.
    CalibrationError
        If the small ones do not follow the model.
    """
    measured = measure_runtimes([*fitted, predicted], products=products, rounds=rounds, seed=seed)
    small = measured[measured["vendors"] != predicted]
    calibration = fit_calibration(small, statements=[STATEMENT], tolerance=tolerance, seed=seed)
    foretold = predict(calibration, vendors=predicted, statement=STATEMENT.name, requests=rounds, seed=seed)
    times_ms = measured.loc[measured["vendors"] == predicted, "total_ms"].to_numpy(float)
    points: list[Point] = compared(foretold, times_ms, study="runtime")
    return tidy(points), calibration
