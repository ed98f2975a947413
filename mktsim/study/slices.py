"""Long questions in slices: called, they return their answer; asked slice by slice, they tell how far they are.

An explorer runs the slices beside the kernel's thread, shows the progress and can stop between two of them; a notebook
and the code that an explorer hands out call the same function and wait.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a question is: `done` of `total` (0 where nobody knows), of what, and what can be shown already."""

    done: int
    total: int
    what: str = ""
    partial: Any = None


class Sliced(Protocol[P, T_co]):
    """A function that can be called, and asked slice by slice; see :func:`sliced`."""

    __name__: str
    __module__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co:
        """Do all slices and return the answer."""

    def slices(self, *args: P.args, **kwargs: P.kwargs) -> Generator[Progress, None, T_co]:
        """Return the slices, which yield their progress and return the answer."""


def sliced(slices: Callable[P, Generator[Progress, None, T]]) -> Sliced[P, T]:
    """Make of a generator of slices a function that returns its answer, and that has it as its `slices`.

    Examples
    --------
    >>> @sliced
    ... def count(n: int):
    ...     for k in range(n):
    ...         yield Progress(k + 1, n)
    ...     return n
    >>> count(3), [step.done for step in count.slices(3)]
    (3, [1, 2, 3])
    """

    @wraps(slices)
    def answer(*args: P.args, **kwargs: P.kwargs) -> T:
        asked = slices(*args, **kwargs)
        while True:
            try:
                next(asked)
            except StopIteration as end:
                return cast(T, end.value)

    answer.slices = slices  # type: ignore[attr-defined]
    return cast("Sliced[P, T]", answer)
