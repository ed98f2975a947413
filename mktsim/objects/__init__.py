"""Durable objects: nouns, things, events and pipelined stubs."""

from mktsim.objects.calls import exposed
from mktsim.objects.context import deadline
from mktsim.objects.durable import DurableObject
from mktsim.objects.events import Event, Subscriptions
from mktsim.objects.host import ObjectHost
from mktsim.objects.noun import Noun, noun, object_schema
from mktsim.objects.outbox import RetryPolicy
from mktsim.objects.sql import Limits
from mktsim.objects.stub import Caller, Stub
from mktsim.objects.things import Things

__all__ = [
    "Caller",
    "DurableObject",
    "Event",
    "Limits",
    "Noun",
    "ObjectHost",
    "RetryPolicy",
    "Stub",
    "Subscriptions",
    "Things",
    "deadline",
    "exposed",
    "noun",
    "object_schema",
]
