"""One statement over many databases: planning it and merging its partials. Pure: no clock, no network."""

from mktsim.sql.exact import register
from mktsim.sql.gather import Combiner, GatherEngine, GatherLimits, Segment
from mktsim.sql.lexer import Statement
from mktsim.sql.plan import Plan, ScatterStatement
from mktsim.sql.planner import Planner
from mktsim.sql.schema import SCHEMA_QUERY, Schema

__all__ = [
    "SCHEMA_QUERY",
    "Combiner",
    "GatherEngine",
    "GatherLimits",
    "Plan",
    "Planner",
    "ScatterStatement",
    "Schema",
    "Segment",
    "Statement",
    "register",
]
