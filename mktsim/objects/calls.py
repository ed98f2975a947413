"""What a stub sends and what its receiver does with it: steps, outcomes, and the list of what may be called.

Rules
-----
A message is a list of steps; each is applied to the object itself or to what an earlier step returned, and its
arguments may be the answers of earlier steps. One message is one request: one transaction of the receiver.

*Open to callers* are, on a durable object, the public methods that its classes below `DurableObject` declare, and
whatever is marked :func:`exposed`; on any other object what is marked `exposed`; on plain data its items; on a
dataclass its fields. Everything else, and every name that starts with an underscore, is refused.

Each step is atomic: one that fails is undone alone and takes with it the steps that build on it; the others stand. A
message that carries an idempotency key is atomic as a whole instead, for it is sent again until all of it succeeded.

What this does not do
---------------------
An object of the receiver (an inventory, say) never travels: only plain data does. Call its methods in the same
expression, which costs no round trip.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import lru_cache
from typing import Any, ClassVar, Final, Literal, TypeVar

from mktsim.errors import InvalidArgumentError, NotCallableError, ObjectError

F = TypeVar("F", bound=Callable[..., Any])

#: A step's target when it is the object that the message is for.
SELF: Final = -1


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for the answer of an earlier step among a step's arguments."""

    step: int


@dataclass(frozen=True, slots=True)
class Step:
    """One step: ``target.name(*args, **kwargs)``, ``target.name`` or ``target[name]``.

    Attributes
    ----------
    kind : str
        ``"call"``, ``"get"`` or ``"item"``.
    target : int
        The number of an earlier step, or :data:`SELF`.
    name : str or int
        Method, attribute or key.
    wanted : bool
        Whether the caller can still ask for the answer; if not, only an error is sent back.
    """

    kind: Literal["call", "get", "item"]
    target: int
    name: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    wanted: bool = True


@dataclass(frozen=True, slots=True)
class Key:
    """The idempotency key of a message: a part of what the delivery of one event does.

    Attributes
    ----------
    sender : str
        The address that sent the event.
    seq : int
        The event's number at its sender.
    part : str
        Which of the calls that its delivery makes.
    settled : int
        The sender will never again send an event of a lower number: its keys may be forgotten.
    """

    sender: str
    seq: int
    part: str
    settled: int


@dataclass(frozen=True, slots=True)
class CallMessage:
    """Calls for one object, in the order in which they were made.

    Attributes
    ----------
    chain : tuple of str
        The addresses whose requests wait for this one.
    deadline_s : float or None
        When the answer is of no use any more, in the loop's seconds.
    """

    steps: tuple[Step, ...]
    chain: tuple[str, ...] = ()
    key: Key | None = None
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one step.

    Attributes
    ----------
    value : Any
        The answer, where it is plain data and was wanted.
    error : Exception or None
        What the step raised.
    capability : bool
        Whether the answer is an object that stays with the receiver.
    """

    value: Any = None
    error: Exception | None = None
    capability: bool = False


def exposed(member: F) -> F:
    """Open a method or the function of a property to callers from outside.

    Parameters
    ----------
    member : callable
        The method, or the function below ``@property``.

    Returns
    -------
    callable
        The same.

    Examples
    --------
    >>> class Counter:
    ...     @exposed
    ...     def up(self) -> int: ...
    ...     def reset(self) -> None: ...
    >>> is_open(Counter(), "up"), is_open(Counter(), "reset")
    (True, False)
    """
    member.__mktsim_exposed__ = True  # type: ignore[attr-defined]
    return member


class Receiver:
    """Base of `DurableObject`, whose subclasses' public functions are open to callers.

    Attributes
    ----------
    reserved : frozenset of str
        The names that are the platform's own and never open, even where a subclass overrides them.
    """

    reserved: ClassVar[frozenset[str]] = frozenset()


def is_open(target: object, name: str) -> bool:
    """Whether `name` of `target` may be used from outside."""
    return _open_member(target, name) is not None


def is_capability(value: object) -> bool:
    """Whether a value is an object of its receiver rather than data: it has something open to callers."""
    kind: type = type(value)
    return _capability_class(kind)


def apply(step: Step, target: object, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Apply one step to its target and return the result, which may be an awaitable.

    Raises
    ------
    NotCallableError
        The member does not exist or is not open.
    InvalidArgumentError
        The arguments do not fit the method, or there is no such item.
    """
    if step.kind == "item":
        return _item(target, step.name)
    name = step.name
    found = _open_member(target, name) if isinstance(name, str) else None
    if found is None:
        raise NotCallableError(
            f"{name!r:.80} of {type(target).__name__} does not exist or is not open to callers: declare a public "
            "method on the object's class, or mark it @exposed"
        )
    is_method = inspect.isfunction(found)
    if step.kind == "get":
        if is_method:
            raise NotCallableError(f"{name!r} of {type(target).__name__} is a method: call it")
        return getattr(target, name)
    if not is_method:
        raise NotCallableError(f"{name!r} of {type(target).__name__} is no method: read it without calling it")
    method = getattr(target, name)
    least, most = _arity(found)
    if kwargs or not least <= len(args) + 1 <= most:
        try:
            inspect.signature(found).bind(target, *args, **kwargs)
        except TypeError as error:
            raise InvalidArgumentError(f"{type(target).__name__}.{name}: {error}") from None
    return method(*args, **kwargs)


def travelling(value: Any, step: Step) -> Outcome:
    """Return the outcome that carries an answer back, or says why it cannot travel."""
    if value is not None and not isinstance(value, _PLAIN) and is_capability(value):
        return Outcome(capability=True)
    if not step.wanted:
        return Outcome()
    if value is None or isinstance(value, _PLAIN) or is_dataclass(value):
        return Outcome(value)
    message = f"{step.name!r:.80} returned a {type(value).__name__}, which cannot travel: return plain data"
    return Outcome(error=ObjectError(message))


_PLAIN: Final = (bool, int, float, str, bytes, list, tuple, dict, set, frozenset)


def _item(target: object, key: Any) -> Any:
    if not isinstance(target, list | tuple | dict | str) or not isinstance(key, int | str):
        raise NotCallableError(f"{type(target).__name__} has no items for callers")
    try:
        return target[key]  # type: ignore[index]
    except (LookupError, TypeError) as error:
        raise InvalidArgumentError(f"the answer has no item {key!r:.80}: {error}") from None


def _open_member(target: object, name: str) -> Any:
    """Return the class's member of that name if it is open, else None."""
    if name.startswith("_"):
        return None
    if isinstance(target, Receiver):
        if name in target.reserved:
            return None
    elif is_dataclass(target) and any(name == each.name for each in fields(target)):
        return name
    for owner in type(target).__mro__:
        member = owner.__dict__.get(name)
        if member is not None:
            declared = issubclass(owner, Receiver) and inspect.isfunction(member)
            return member if declared or _is_exposed(member) else None
    return None


def _is_exposed(member: object) -> bool:
    return bool(getattr(getattr(member, "fget", member), "__mktsim_exposed__", False))


@lru_cache(maxsize=1_000)
def _arity(function: Callable[..., Any]) -> tuple[int, int]:
    """Return how few and how many positional arguments alone certainly fit."""
    parameters = inspect.signature(function).parameters.values()
    plain = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    needs_names = any(each.kind == each.KEYWORD_ONLY and each.default is each.empty for each in parameters)
    return (1, 0) if needs_names else (sum(each.default is each.empty for each in plain), len(plain))


@lru_cache(maxsize=1_000)
def _capability_class(kind: type) -> bool:
    return issubclass(kind, Receiver) or any(
        _is_exposed(member)
        for owner in kind.__mro__
        if owner.__module__ != "builtins"
        for member in owner.__dict__.values()
    )
