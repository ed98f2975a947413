"""Search over all vendors' products, page by page.

Theory of operation
-------------------
A page ends at a row, and the next one begins after it in the order of (what is sorted by, vendorId, id), which no two
products share: a page is the same whatever was added or sold in the pages before it. The token of a page is that row's
key, written in JSON; it names the search that it belongs to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from mktsim.errors import InvalidArgumentError

#: What can be sorted by: the expression, and whether downwards.
SORTS: Final[dict[str, tuple[str, bool]]] = {
    "rating": ("COALESCE(p.rating, -1.0)", True),
    "price": ("COALESCE(p.price, 1e300)", False),
    "-price": ("COALESCE(p.price, -1.0)", True),
    "name": ("COALESCE(p.name, '')", False),
    "newest": ("COALESCE(p.createdAt, '')", True),
}
_LARGEST_PAGE: Final = 1_000
_COLUMNS: Final = ("id", "vendorId", "sku", "name", "description", "category", "price", "rating", "stock", "createdAt")


@dataclass(frozen=True, slots=True)
class SearchPage:
    """One page of a search.

    Attributes
    ----------
    rows : list of dict
        Products, in order.
    next : str or None
        The token of the next page; None at the end.
    """

    rows: list[dict[str, Any]]
    next: str | None

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Any:
        return iter(self.rows)


async def search(
    query: Callable[[str, list[Any]], Awaitable[Any]],
    text: str,
    *,
    category: str | None,
    sort: str,
    page: str | None,
    page_size: int,
) -> SearchPage:
    """See :meth:`mktsim.market.Marketplace.search`; `query` runs a statement over all vendors."""
    if not isinstance(text, str) or len(text) > 1_000:
        raise InvalidArgumentError(f"a search is for a text of at most 1000 characters, not {text!r:.80}")
    if category is not None and not isinstance(category, str):
        raise InvalidArgumentError(f"a category is a text or None, not {category!r:.80}")
    if sort not in SORTS:
        raise InvalidArgumentError(f"sort is one of {', '.join(SORTS)}, not {sort!r:.80}")
    if isinstance(page_size, bool) or not isinstance(page_size, int) or not 1 <= page_size <= _LARGEST_PAGE:
        raise InvalidArgumentError(f"a page has 1 to {_LARGEST_PAGE} rows, not {page_size!r:.80}")
    expression, downwards = SORTS[sort]
    name = hashlib.sha256(json.dumps([text, category, sort]).encode()).hexdigest()[:16]
    where = ["v.status IS 'active'"]
    params: list[Any] = []
    if text:
        where.append("p.name LIKE ? ESCAPE '\\'")
        params.append("%" + "".join("\\" + each if each in "\\%_" else each for each in text) + "%")
    if category is not None:
        where.append("p.category = ?")
        params.append(category)
    if page is not None:
        key, vendor_id, product_id = _read(page, name)
        where.append(
            f"({expression} {'<' if downwards else '>'} ? "
            f"OR ({expression} = ? AND (p.vendorId > ? OR (p.vendorId = ? AND p.id > ?))))"
        )
        params += [key, key, vendor_id, vendor_id, product_id]
    columns = ", ".join(f"p.{column} AS {column}" for column in _COLUMNS)
    result = await query(
        f"SELECT {columns}, {expression} AS sort_key FROM products p JOIN vendors v ON v.id = p.vendorId "
        f"WHERE {' AND '.join(where)} ORDER BY sort_key {'DESC' if downwards else 'ASC'}, vendorId, id "
        f"LIMIT {page_size + 1}",
        params,
    )
    rows = [dict(zip((*_COLUMNS, "sort_key"), row, strict=True)) for row in result.rows]
    more = len(rows) > page_size
    rows = rows[:page_size]
    token = json.dumps([name, rows[-1]["sort_key"], rows[-1]["vendorId"], rows[-1]["id"]]) if more else None
    return SearchPage([{column: row[column] for column in _COLUMNS} for row in rows], token)


def _read(page: str, name: str) -> tuple[Any, str, str]:
    try:
        found, key, vendor_id, product_id = json.loads(page)
        fits = isinstance(key, str | float | int) and isinstance(vendor_id, str) and isinstance(product_id, str)
    except (TypeError, ValueError, RecursionError):
        fits, found = False, None
    if not fits or found != name:
        raise InvalidArgumentError(f"{page!r:.80} is no page of this search: pass the `next` of the page before")
    return key, vendor_id, product_id
