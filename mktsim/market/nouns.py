"""The nouns of a marketplace, with the brief's field names, and the schema that they make."""

from __future__ import annotations

from typing import Final

from mktsim.objects import noun, object_schema
from mktsim.sql.schema import Schema

#: One row: the vendor itself.
Vendor: Final = noun(
    "Vendor",
    {"name": "TEXT", "country": "TEXT", "rating": "REAL", "status": "TEXT", "createdAt": "TEXT"},
)

#: What a vendor sells; `price` in major units of money, always a whole number of minor units.
Product: Final = noun(
    "Product",
    {
        "sku": "TEXT",
        "name": "TEXT",
        "description": "TEXT",
        "category": "TEXT",
        "price": "REAL",
        "rating": "REAL",
        "stock": "INTEGER",
        "createdAt": "TEXT",
    },
    summarised=("price", "rating", "stock"),
    grouped_by="category",
)

#: What a customer says about a product; `stars` from 1 to 5.
Review: Final = noun(
    "Review",
    {"productId": "TEXT", "customer": "TEXT", "stars": "INTEGER", "body": "TEXT", "createdAt": "TEXT"},
)

#: What a customer ordered from this vendor; `items` is a JSON list, `totalMinor` in minor units of money.
Order: Final = noun(
    "Order",
    {
        "orderId": "TEXT",
        "customer": "TEXT",
        "items": "TEXT",
        "totalMinor": "INTEGER",
        "status": "TEXT",
        "createdAt": "TEXT",
    },
)

#: The vendor's journal: what happened beside the rows above, by `kind`. `subject` is the order or product it is about,
#: `account` the side of the ledger (money only) and `amount` minor units of money or units of stock, by kind.
Entry: Final = noun(
    "Entry",
    {
        "kind": "TEXT",
        "subject": "TEXT",
        "account": "TEXT",
        "amount": "INTEGER",
        "detail": "TEXT",
        "createdAt": "TEXT",
    },
    table="entries",
    compact=True,
)

#: The nouns of every vendor; a vendor class may have more, after these.
NOUNS: Final = (Vendor, Product, Review, Order, Entry)

#: What every vendor database is created from. No secondary indexes: a vendor's tables are small, and each costs a page.
SCHEMA: Final[Schema] = object_schema(*NOUNS)
