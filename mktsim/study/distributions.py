"""Distributions of a service time by name, for those who choose one from a list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from mktsim.sim.latency import Constant, Exponential, Latency, LogNormal, Pareto

#: Each is made of its mean in ms, so that another name changes the shape alone.
SERVICES: Final[Mapping[str, Callable[[float], Latency]]] = {
    "constant": Constant,
    "exponential": Exponential,
    "log-normal, sigma 1": lambda mean_ms: LogNormal.from_mean_sigma(mean_ms, 1.0),
    "Pareto, alpha 2.1": lambda mean_ms: Pareto(mean_ms * 1.1 / 2.1, 2.1),
}
