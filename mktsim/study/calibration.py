"""From measurements to a world: latencies fitted by scipy.stats, and the preset of the machine that this runs on.

Rules
-----
A fit says how good it is: its distance from the data stands beside it, and families are ranked, not chosen silently. A
calibrated value carries the machine and the day as its source.

What this does not do
---------------------
It does not tell what happens beyond the largest sample: families that fit alike differ there without bound.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Final, Literal, cast

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from mktsim.errors import InvalidArgumentError
from mktsim.fanout import QueryCoordinator, Scanner
from mktsim.sim import plain
from mktsim.sim.latency import Constant, Exponential, Gamma, Latency, LogNormal, Pareto
from mktsim.sim.world import Preset, Source, World, load_preset
from mktsim.streams import Streams
from mktsim.study.coordinated import SCHEMA, fleet, vendor_ids
from mktsim.study.scenario import Scenario

_LEAST: Final = 30


def _lognormal(shape: float, _loc: float, scale: float) -> Latency:
    return LogNormal(scale, scale * float(np.exp(shape * stats.norm.ppf(0.99))))


#: Family to its law in scipy.stats, the parameters held, and what a Latency is made of.
_FAMILIES: Final[Mapping[str, tuple[Any, Callable[..., Latency]]]] = {
    "lognormal": (stats.lognorm, _lognormal),
    "gamma": (stats.gamma, lambda shape, _loc, scale: Gamma(shape, shape * scale)),
    "exponential": (stats.expon, lambda _loc, scale: Exponential(scale)),
    "pareto": (stats.pareto, lambda alpha, _loc, scale: Pareto(scale, alpha)),
}


@dataclass(frozen=True, slots=True)
class Fit:
    """One family fitted to measurements by maximum likelihood.

    Attributes
    ----------
    family : str
    latency : Latency
        With the parameters found.
    distance : float
        Largest difference of the two distribution functions (Kolmogorov and Smirnov's), from 0 to 1.
    criterion : float
        Akaike's: twice the number of parameters less twice the log likelihood; the smaller, the better.
    n : int
        Measurements.
    """

    family: str
    latency: Latency
    distance: float
    criterion: float
    n: int


def fit_latency(values_ms: ArrayLike, *, families: Sequence[str] = tuple(_FAMILIES)) -> list[Fit]:
    """Fit families of distributions to measured durations; the best first.

    Parameters
    ----------
    values_ms : array of float
        At least 30, positive, in ms.
    families : sequence of {"lognormal", "gamma", "exponential", "pareto"}

    Raises
    ------
    InvalidArgumentError
        If there are too few values, one is not positive and finite or all are equal, or a family is unknown.

    Examples
    --------
    >>> u = Streams(1).uniform("u", 0, 5000)
    >>> best, *_ = fit_latency(LogNormal(9.0, 40.0).sample(u))
    >>> best.family, round(best.latency.quantile(0.5)), round(best.latency.quantile(0.99))
    ('lognormal', 9, 41)
    """
    values = np.asarray(values_ms, float)
    if values.ndim != 1 or len(values) < _LEAST or not np.isfinite(values).all() or not (values > 0).all():
        raise InvalidArgumentError(f"a fit needs at least {_LEAST} positive, finite durations, not {values_ms!r:.80}")
    if values.min() == values.max():
        raise InvalidArgumentError(f"all {len(values)} durations are {values[0]:g} ms: that is Constant({values[0]:g})")
    unknown = sorted(set(families) - _FAMILIES.keys())
    if unknown or not families or isinstance(families, str):
        raise InvalidArgumentError(f"families are some of {', '.join(_FAMILIES)}, not {families!r:.80}")
    fits = []
    for family in dict.fromkeys(families):
        law, make = _FAMILIES[family]
        held = {"floc": 0.0} | ({"fscale": float(values.min())} if family == "pareto" else {})
        parameters = law.fit(values, **held)
        free = (
            len(parameters) - 1
        )  # The location is held at 0; Pareto's minimum counts, for it was taken from the data.
        likelihood = float(np.sum(law.logpdf(values, *parameters)))
        latency = make(*map(float, parameters))
        distance = float(stats.kstest(values, cast(Any, latency.cdf)).statistic)
        fits.append(Fit(family, latency, distance, 2 * free - 2 * likelihood, len(values)))
    return sorted(fits, key=lambda fit: fit.criterion)


def calibrate_this_machine(
    *, vendors: int = 1000, rounds: int = 7, where: Literal["own hosts", "one process"] = "own hosts"
) -> Preset:
    """Measure this program on this machine and return the preset ``this-machine``.

    It runs an event loop of its own: in a notebook, ``await asyncio.to_thread(calibrate_this_machine, ...)``.

    Parameters
    ----------
    vendors : int
        Databases in memory, of 10 products each, that are queried.
    rounds : int
        Queries, of which medians are taken.
    where : "own hosts" or "one process"
        Whether vendors stand on hosts as fast as this one, in one zone, their service times drawn from the fit; or all
        in this process, which does one thing at a time: a vendor's work is then part of sending to it.

    Returns
    -------
    Preset
        :func:`preset_toml` writes it, and a scenario takes the file's path.

    Raises
    ------
    InvalidArgumentError
        If a number is out of range.
    """
    for name, value, least in (("vendors", vendors, _LEAST), ("rounds", rounds, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidArgumentError(f"{name} must be a whole number of at least {least}, not {value!r:.80}")
    if where not in ("own hosts", "one process"):
        raise InvalidArgumentError(f"where must be 'own hosts' or 'one process', not {where!r:.80}")
    scenario = Scenario(vendors=vendors)
    with ExitStack() as stack:
        databases = fleet(scenario, Streams(1))
        for database in databases.values():
            stack.callback(database.close)
        scanners = [Scanner.from_connection(vendor_id, database) for vendor_id, database in databases.items()]
        silent = [Scanner(vendor_id, lambda _sql, _params: []) for vendor_id in vendor_ids(vendors)]
        services_ms: list[float] = []
        for turn in range(2):  # The first reads schemas and compiles.
            for database in databases.values():
                start = perf_counter()
                database.execute(scenario.statement, scenario.params).fetchall()
                if turn:
                    services_ms.append(1e3 * (perf_counter() - start))
        base_ms = _query_ms(scenario, silent[:1], rounds)
        silent_ms = (_query_ms(scenario, silent, rounds) - base_ms) / vendors
        whole_ms = (_query_ms(scenario, scanners, rounds) - base_ms) / vendors
    service = fit_latency(services_ms)[0]
    fan_out_ms = max(silent_ms / 2, 0.0)
    merge_ms = max(whole_ms - silent_ms / 2 - service.latency.mean_ms, 0.0)
    today = dt.datetime.now(dt.UTC).date().isoformat()
    text = f"calibrate_this_machine() on {this_machine()}: {vendors} vendors, {rounds} rounds"
    measured = Source(text, today, "measured")
    values: dict[str, Any] = {"base": Constant(base_ms), "fan_in_ms": merge_ms}
    if where == "one process":
        values["fan_out_ms"] = fan_out_ms + service.latency.mean_ms
        sources = dict.fromkeys(values, measured)
    else:
        values |= {"service": service.latency, "fan_out_ms": fan_out_ms}
        sources = dict.fromkeys(values, measured)
        near = load_preset("same-zone")
        for link in ("link_out", "link_back"):
            values[link], sources[link] = getattr(near.world, link), near.sources[link]
    description = (
        f"This program on this machine, vendors in {where}; service {service.family}, {service.distance:.2f} off."
    )
    return Preset("this-machine", today, description, World(**values), sources)


def this_machine() -> str:
    """Name the machine that this runs on, as far as times depend on it."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _query_ms(scenario: Scenario, scanners: Sequence[Scanner], rounds: int) -> float:
    """Return the median time of one live query over some scanners."""
    coordinator = QueryCoordinator(scanners, schema=SCHEMA)

    async def run() -> list[float]:
        walls = []
        for _ in range(rounds + 1):
            start = perf_counter()
            await coordinator.query(scenario.statement, scenario.params)
            walls.append(1e3 * (perf_counter() - start))
        return walls[1:]  # The first one plans.

    with asyncio.Runner() as runner:
        walls = runner.run(run())
    coordinator.close()
    return float(median(walls))


def preset_toml(preset: Preset) -> str:
    """Write a preset as the text of a preset file, which :func:`mktsim.sim.world.load_preset` reads by its path.

    Examples
    --------
    >>> print(preset_toml(load_preset("cloudflare-2026")).splitlines()[3])
    [values.base]
    """
    lines = [f"date = {preset.date}", f"description = {plain.to_toml(preset.description)}"]
    for name, value in preset.world.to_dict().items():
        source = preset.sources[name]
        entry = {"value": value, "source": source.text, "date": source.date, "kind": source.kind}
        lines += ["", f"[values.{name}]", *(f"{key} = {plain.to_toml(each)}" for key, each in entry.items())]
    return "\n".join(lines) + "\n"
