"""Simulated time and a simulated network for the marketplace's own code, and the same world as arrays."""

from mktsim.sim.latency import (
    Constant,
    Empirical,
    Exponential,
    Gamma,
    Latency,
    LogNormal,
    Mixture,
    Pareto,
    Shifted,
    Uniform,
    latency_from_dict,
)
from mktsim.sim.loop import SimLoop, sim_run
from mktsim.sim.network import SimNetwork, request_number
from mktsim.sim.vectorised import vectorised_sojourn_times
from mktsim.sim.world import Preset, Source, World, load_preset, preset_names

__all__ = [
    "Constant",
    "Empirical",
    "Exponential",
    "Gamma",
    "Latency",
    "LogNormal",
    "Mixture",
    "Pareto",
    "Preset",
    "Shifted",
    "SimLoop",
    "SimNetwork",
    "Source",
    "Uniform",
    "World",
    "latency_from_dict",
    "load_preset",
    "preset_names",
    "request_number",
    "sim_run",
    "vectorised_sojourn_times",
]
