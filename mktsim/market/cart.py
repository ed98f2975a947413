"""Carts: what a customer wants, checked whole before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mktsim.errors import InvalidArgumentError

_MAX_ITEMS: Final = 10_000
_MAX_QUANTITY: Final = 1_000_000
_KEYS: Final = frozenset({"vendorId", "productId", "sku", "quantity"})


@dataclass(frozen=True, slots=True)
class Cart:
    """What a customer wants to buy, from any number of vendors.

    Parameters
    ----------
    customer : str
        Who buys.
    items : iterable of mappings
        Each with `vendorId`, one of `productId` and `sku`, and `quantity` (1 when absent).
    key : str, optional
        Your own name for this purchase: a cart that is placed again under the same key places nothing twice.

    Raises
    ------
    InvalidArgumentError
        If there is no item, or an item is not of that form.

    Examples
    --------
    >>> Cart("zoe", [{"vendorId": "acme", "sku": "SKU-123"}]).items
    ({'vendorId': 'acme', 'sku': 'SKU-123', 'quantity': 1},)
    """

    customer: str
    items: tuple[dict[str, Any], ...] = field(default=())
    key: str | None = None

    def __init__(self, customer: str, items: Iterable[Mapping[str, Any]], key: str | None = None) -> None:
        _check_text("customer", customer)
        if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
            raise InvalidArgumentError(f"the items of a cart are a list of mappings, not {type(items).__name__}")
        checked = tuple(_item(number, item) for number, item in enumerate(items))
        if not 0 < len(checked) <= _MAX_ITEMS:
            raise InvalidArgumentError(f"a cart holds 1 to {_MAX_ITEMS} items, not {len(checked)}")
        if key is not None:
            _check_text("key", key)
        object.__setattr__(self, "customer", customer)
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "items", checked)

    def by_vendor(self) -> dict[str, list[dict[str, Any]]]:
        """Return the items of each vendor, without `vendorId`, vendors in the order in which they first appear."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for item in self.items:
            groups.setdefault(item["vendorId"], []).append({k: v for k, v in item.items() if k != "vendorId"})
        return groups


def _item(number: int, item: Any) -> dict[str, Any]:
    where = f"item {number} of the cart"
    if not isinstance(item, Mapping):
        raise InvalidArgumentError(f"{where} must be a mapping, not {type(item).__name__}")
    unknown = [str(key)[:40] for key in item if key not in _KEYS]
    if unknown:
        raise InvalidArgumentError(f"{where} has {', '.join(unknown[:10])}; it may have {', '.join(sorted(_KEYS))}")
    if (item.get("productId") is None) == (item.get("sku") is None):
        raise InvalidArgumentError(f"{where} needs exactly one of productId and sku")
    named = "sku" if item.get("productId") is None else "productId"
    return {
        "vendorId": _check_text(f"vendorId of {where}", item.get("vendorId")),
        named: _check_text(f"{named} of {where}", item[named]),
        "quantity": check_quantity(where, item.get("quantity", 1)),
    }


def check_quantity(where: str, quantity: Any) -> int:
    """Return a quantity, a whole number from 1, or raise :class:`InvalidArgumentError`."""
    if isinstance(quantity, bool) or not isinstance(quantity, int) or not 1 <= quantity <= _MAX_QUANTITY:
        raise InvalidArgumentError(
            f"{where}: a quantity is a whole number from 1 to {_MAX_QUANTITY}, not {quantity!r:.40}"
        )
    return quantity


def _check_text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 10_000 or "\0" in value:
        raise InvalidArgumentError(f"{where} must be a text of 1 to 10000 characters without NUL, not {value!r:.40}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{where} is not valid Unicode: {error}") from None
    return value
