"""Simulated time and a simulated network for the marketplace's own code, and the same world as arrays."""

from mktsim.sim.conditions import Background, ColdStart, Geography, Hiccups, RequestLimit, Route, Zone
from mktsim.sim.faults import Crash, Duplication, Fault, Loss, Partition, Reordering, SlowDisk, fault_from_dict
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
from mktsim.sim.simulation import Simulation
from mktsim.sim.trace import Step, Trace
from mktsim.sim.vectorised import Policy, vectorised_sojourn_times
from mktsim.sim.world import Preset, Source, World, load_preset, preset_names

__all__ = [
    "Background",
    "ColdStart",
    "Constant",
    "Crash",
    "Duplication",
    "Empirical",
    "Exponential",
    "Fault",
    "Gamma",
    "Geography",
    "Hiccups",
    "Latency",
    "LogNormal",
    "Loss",
    "Mixture",
    "Pareto",
    "Partition",
    "Policy",
    "Preset",
    "Reordering",
    "RequestLimit",
    "Route",
    "Shifted",
    "SimLoop",
    "SimNetwork",
    "Simulation",
    "SlowDisk",
    "Source",
    "Step",
    "Trace",
    "Uniform",
    "World",
    "Zone",
    "fault_from_dict",
    "latency_from_dict",
    "load_preset",
    "preset_names",
    "request_number",
    "sim_run",
    "vectorised_sojourn_times",
]
