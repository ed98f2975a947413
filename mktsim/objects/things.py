"""Things: the rows of an object's nouns, dicts in and dicts out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from mktsim.errors import DuplicateError, InvalidArgumentError
from mktsim.objects.noun import Noun
from mktsim.sqlite import Value, quote

if TYPE_CHECKING:
    from mktsim.objects.durable import DurableObject

#: A row.
Thing = dict[str, Value]
_Things = list[Thing]

_MAX_TEXT_CHARACTERS: Final = 100_000
_PYTHON_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "TEXT": (str,), "INTEGER": (int,), "REAL": (int, float), "BLOB": (bytes,),
}  # fmt: skip


class Things:
    """What a durable object keeps; made by its object and reached as ``self.things``.

    Parameters
    ----------
    owner : DurableObject
        Whose database it is.

    Examples
    --------
    >>> import asyncio
    >>> from mktsim import Marketplace, VendorObject
    >>> class Shop(VendorObject):
    ...     def stocktaking(self):
    ...         made = self.things.create("Product", name="Lamp", category="lighting", stock=3)
    ...         self.things.update("Product", made["id"], stock=2)
    ...         return [(each["name"], each["stock"]) for each in self.things.find("Product", category="lighting")]
    >>> async def story():
    ...     async with Marketplace.open(vendor_class=Shop) as market:
    ...         await market.vendor("acme").initialize()
    ...         return await market.vendor("acme").stocktaking()
    >>> asyncio.run(story())
    [('Lamp', 2)]
    """

    __slots__ = ("_by_name", "_owner")

    def __init__(self, owner: DurableObject) -> None:
        self._owner = owner
        self._by_name = {each.name: each for each in owner.nouns}

    def create(self, noun: Noun | str, data: Mapping[str, Any] | None = None, **fields: Any) -> Thing:
        """Add a thing and return it whole.

        `id` is made if absent, `vendorId` is the owner's, `createdAt` is now where the noun has it.

        Raises
        ------
        InvalidArgumentError
            An unknown noun or column, or a value that does not fit; nothing is added.
        DuplicateError
            The id is taken.
        """
        kind = self._noun(noun)
        owner = self._owner
        row = self._row(kind, data, fields)
        if row.setdefault("vendorId", owner.id) != owner.id:
            raise InvalidArgumentError(f"vendorId of a {kind.name} is its owner's, {owner.id!r:.80}: leave it out")
        if row.get("id") is None:
            row["id"] = kind.new_id(owner.next_serial())
        if "createdAt" in kind.affinity and row.get("createdAt") is None:
            row["createdAt"] = owner.now()
        made = owner.sql.execute(_insert(kind.table, tuple(row)), list(row.values()))
        if not made:
            raise DuplicateError(f"a {kind.name} {row['id']!r:.80} exists already at {owner.id!r:.80}")
        return _dict(kind, made[0])

    def create_many(self, noun: Noun | str, items: Sequence[Mapping[str, Any]]) -> _Things:
        """Add things with the same columns in one statement, all or none, and return them whole; their ids are made.

        Raises
        ------
        InvalidArgumentError
            As for :meth:`create`; or they differ in their columns, or bring ids.
        """
        kind = self._noun(noun)
        owner = self._owner
        rows = [self._row(kind, each, {}) for each in items]
        if any(row.keys() != rows[0].keys() for row in rows) or any("id" in row or "vendorId" in row for row in rows):
            raise InvalidArgumentError(f"each {kind.name} made at once has the same columns, without id and vendorId")
        for row in rows:
            row["id"] = kind.new_id(owner.next_serial())
            row["vendorId"] = owner.id
            if "createdAt" in kind.affinity:
                row["createdAt"] = row.get("createdAt") or owner.now()
        if not rows:
            return []
        statement = _insert_many(kind.table, tuple(rows[0]), len(rows))
        made = owner.sql.execute(statement, [value for row in rows for value in row.values()])
        return [_dict(kind, each) for each in made]

    def get(self, noun: Noun | str, id: str) -> Thing | None:
        """Return the thing of that id, or None."""
        found = self.find(noun, id=id)
        return found[0] if found else None

    def update(self, noun: Noun | str, id: str, data: Mapping[str, Any] | None = None, **fields: Any) -> Thing:
        """Change columns of a thing and return it whole.

        Raises
        ------
        InvalidArgumentError
            There is no such thing, an unknown column, a value that does not fit, or `id` or `vendorId` is among them.
        """
        kind = self._noun(noun)
        row = self._row(kind, data, fields)
        if not row or "id" in row or "vendorId" in row:
            raise InvalidArgumentError(f"name the columns of the {kind.name} to change; id and vendorId never do")
        statement = _update(kind.table, tuple(row))
        changed = self._owner.sql.execute(statement, [*row.values(), _text("id", id)])
        if not changed:
            raise InvalidArgumentError(f"{self._owner.id!r:.80} has no {kind.name} {id!r:.80}")
        return _dict(kind, changed[0])

    def delete(self, noun: Noun | str, id: str) -> bool:
        """Remove a thing, and return whether there was one."""
        statement = f"DELETE FROM {quote(self._noun(noun).table)} WHERE id = ? RETURNING id"
        return bool(self._owner.sql.execute(statement, [_text("id", id)]))

    def list(self, noun: Noun | str) -> _Things:
        """Return all things of a noun in the order in which they were added; of a compact noun, in order of id."""
        return self.find(noun)

    def find(self, noun: Noun | str, **equal: Any) -> _Things:
        """Return the things whose columns equal the values given; None finds NULL."""
        kind = self._noun(noun)
        row = self._row(kind, None, equal)
        statement = _select(kind.table, tuple(row), kind.order)
        return [_dict(kind, each) for each in self._owner.sql.execute(statement, list(row.values()))]

    def _noun(self, noun: Noun | str) -> Noun:
        name = noun.name if isinstance(noun, Noun) else noun
        known = self._by_name.get(name) if isinstance(name, str) else None
        if known is None or (isinstance(noun, Noun) and noun != known):
            raise InvalidArgumentError(f"no noun {name!r:.80} here: there are {', '.join(self._by_name) or 'none'}")
        return known

    def _row(self, kind: Noun, data: Mapping[str, Any] | None, fields: Mapping[str, Any]) -> Thing:
        """Return the named columns, all checked."""
        if data is not None and not isinstance(data, Mapping):
            raise InvalidArgumentError(f"the data of a {kind.name} must be a mapping, not {type(data).__name__}")
        given = {**(data or {}), **fields}
        affinity = kind.affinity
        unknown = [str(name)[:80] for name in given if name not in affinity]
        if unknown:
            raise InvalidArgumentError(f"a {kind.name} has no {', '.join(unknown[:10])}: it has {', '.join(affinity)}")
        return {name: _checked(kind, name, value) for name, value in given.items()}


@lru_cache(maxsize=1_000)
def _insert(table: str, names: tuple[str, ...]) -> str:
    """Return the statement that adds a row and returns it, or returns nothing where its id is taken."""
    columns, marks = ", ".join(map(quote, names)), ", ".join("?" * len(names))
    return f"INSERT INTO {quote(table)}({columns}) VALUES({marks}) ON CONFLICT(id) DO NOTHING RETURNING *"


@lru_cache(maxsize=1_000)
def _insert_many(table: str, names: tuple[str, ...], rows: int) -> str:
    columns, marks = ", ".join(map(quote, names)), f"({', '.join('?' * len(names))})"
    return f"INSERT INTO {quote(table)}({columns}) VALUES{', '.join([marks] * rows)} RETURNING *"


@lru_cache(maxsize=1_000)
def _update(table: str, names: tuple[str, ...]) -> str:
    changes = ", ".join(f"{quote(name)} = ?" for name in names)
    return f"UPDATE {quote(table)} SET {changes} WHERE id = ? RETURNING *"


@lru_cache(maxsize=1_000)
def _select(table: str, names: tuple[str, ...], order: str) -> str:
    where = " AND ".join(f"{quote(name)} IS ?" for name in names)
    return f"SELECT * FROM {quote(table)}{' WHERE ' + where if where else ''} ORDER BY {order}"


def _dict(kind: Noun, row: tuple[Value, ...]) -> Thing:
    return dict(zip(kind.names, row, strict=True))


def _checked(kind: Noun, name: str, value: Any) -> Value:
    """Return a value as its column's declared type keeps it, or say why it does not fit."""
    affinity = kind.affinity[name]
    if value is None or (affinity == "TEXT" and type(value) is str and _is_plain(value)):
        return value
    where = f"{kind.name}.{name}"
    fits = isinstance(value, _PYTHON_TYPES[affinity]) and not isinstance(value, bool)
    if not fits:
        raise InvalidArgumentError(f"{where} is {affinity}: {value!r:.80} ({type(value).__name__}) does not fit")
    if isinstance(value, str):
        return _text(where, value)
    if isinstance(value, float) and math.isnan(value):
        raise InvalidArgumentError(f"{where} is NaN: pass None for a missing value")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidArgumentError(f"{where} does not fit 64 bits")
    if affinity == "REAL":
        return float(value)
    checked: Value = value
    return checked


def _is_plain(text: str) -> bool:
    """Whether a text holds nothing that needs a closer look."""
    return text.isascii() and len(text) <= _MAX_TEXT_CHARACTERS and "\0" not in text


def _text(where: str, value: Any) -> str:
    if type(value) is str and _is_plain(value):
        return value
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{where} must be a string, not {value!r:.80}")
    if len(value) > _MAX_TEXT_CHARACTERS:
        raise InvalidArgumentError(f"{where} may have {_MAX_TEXT_CHARACTERS} characters, not {len(value)}")
    if "\0" in value:
        raise InvalidArgumentError(f"{where} holds a NUL character, at which SQLite's text functions stop")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{where} is not valid Unicode: {error}") from None
    return value
