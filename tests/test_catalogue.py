"""The catalogue generator: the same rows whoever asks, and the traits that queries are tried on."""

from __future__ import annotations

import csv
import datetime
import hashlib
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mktsim.errors import InvalidArgumentError
from mktsim.market.catalogue import _BLOCK, COLUMNS, SAMPLE_SEED, _pick, _ratings, _sizes, catalogue, sample

DATA = Path(__file__).parents[1] / "data"
FLEET = list(catalogue(vendors=3000, products=10, seed=7))
PRODUCTS = [dict(zip(COLUMNS["products"], row, strict=True)) for _, rows in FLEET for row in rows["products"]]
REVIEWS = [dict(zip(COLUMNS["reviews"], row, strict=True)) for _, rows in FLEET for row in rows["reviews"]]


def digest(fleet: Any) -> str:
    """Return a short digest of all rows, types included."""
    return hashlib.sha256(repr(list(fleet)).encode()).hexdigest()[:16]


def test_a_seed_means_the_same_rows_in_every_later_version() -> None:
    """The golden digest covers all tables, two blocks and a batch border."""
    assert digest(catalogue(vendors=40, products=25, seed=7, first=980)) == "bb5fd1565d5cde3b"


def test_another_process_with_another_hash_seed_makes_the_same() -> None:
    """Workers may each generate a range."""
    code = (
        "import hashlib; from mktsim.market.catalogue import catalogue;"
        "print(hashlib.sha256(repr(list(catalogue(vendors=40, products=5, seed=7))).encode()).hexdigest()[:16])"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-X", "utf8", "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert seen == {digest(catalogue(vendors=40, products=5, seed=7))}


@settings(max_examples=25)
@given(st.integers(0, 2500), st.integers(0, 120), st.sampled_from([0.0, 1.0, 1.7]), st.sampled_from([0.0, 0.5, 6.0]))
@example(first=970, vendors=60, skew=1.0, reviews=0.5)
@example(first=1450, vendors=120, skew=1.0, reviews=6.0)
def test_a_range_equals_that_part_of_the_whole(first: int, vendors: int, skew: float, reviews: float) -> None:
    """Vendor v's rows do not depend on where a range starts or ends, across blocks and batches."""
    shape: dict[str, Any] = {"products": 40, "seed": 3, "skew": skew, "reviews": reviews}
    middle = vendors // 2
    parts = [
        *catalogue(vendors=middle, first=first, **shape),
        *catalogue(vendors=vendors - middle, first=first + middle, **shape),
    ]
    assert parts == list(catalogue(vendors=vendors, first=first, **shape))
    start = max(0, first - 37)
    assert parts == list(
        islice(catalogue(vendors=vendors + 80, first=start, **shape), first - start, first - start + vendors)
    )


def test_another_seed_makes_other_rows() -> None:
    """Names, prices and sizes all change."""
    one, two = (list(catalogue(vendors=200, products=5, seed=seed)) for seed in (1, 2))
    assert [id for id, _ in one] == [id for id, _ in two]
    assert [len(rows["products"]) for _, rows in one] != [len(rows["products"]) for _, rows in two]
    assert sum(a == b for (_, a), (_, b) in zip(one, two, strict=True)) == 0


@pytest.mark.parametrize("products", [0, 1, 7, 10, 1000])
@pytest.mark.parametrize("skew", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_sizes_follow_zipf_and_add_up_exactly(products: int, skew: float) -> None:
    """In a whole block the sum is 1,000 times the mean, and rank r has its share of r ** -skew but for rounding."""
    sizes = _sizes(products, skew)
    ranks = np.arange(1, _BLOCK + 1, dtype=float)
    ideal = ranks**-skew / (ranks**-skew).sum() * products * _BLOCK
    assert sizes.sum() == products * _BLOCK
    assert np.abs(sizes - ideal).max() <= 1
    assert np.abs(np.cumsum(sizes - ideal)).max() <= 0.5 + 1e-6 * products


def test_vendor_sizes_are_those_of_the_ranks_in_another_order_in_each_block() -> None:
    """Every block holds each rank once."""
    sizes = [len(rows["products"]) for _, rows in FLEET]
    blocks = [sizes[start : start + _BLOCK] for start in range(0, 3000, _BLOCK)]
    assert all(sorted(block, reverse=True) == sorted(_sizes(10, 1.0).tolist(), reverse=True) for block in blocks)
    assert blocks[0] != blocks[1]
    assert max(sizes) > 100 * float(np.median(sizes))


def test_without_skew_every_vendor_has_exactly_the_mean() -> None:
    """skew=0 is a fleet of equals; products=0 one of empty vendors."""
    assert {len(rows["products"]) for _, rows in catalogue(vendors=1100, products=13, seed=1, skew=0)} == {13}
    for _, rows in catalogue(vendors=5, products=0, seed=1):
        assert (len(rows["vendors"]), rows["products"], rows["reviews"]) == (1, [], [])
    assert any(not rows["products"] for _, rows in catalogue(vendors=100, products=1, seed=1))
    assert list(catalogue(vendors=0, products=10, seed=1)) == []


def test_rows_have_the_declared_columns_and_types() -> None:
    """Every value has the type its column declares, or is NULL where that may be."""
    types: dict[str, dict[str, tuple[type, ...]]] = {
        "vendors": {"rating": (float, type(None))},
        "products": {
            "description": (str, type(None)),
            "category": (str, type(None)),
            "price": (float,),
            "rating": (float, type(None)),
            "stock": (int,),
        },
        "reviews": {"stars": (int,), "body": (str, type(None))},
    }
    for id, rows in FLEET[:300]:
        assert list(rows) == list(COLUMNS)
        for table, columns in COLUMNS.items():
            for row in rows[table]:
                assert len(row) == len(columns)
                assert row[1] == id
                for column, value in zip(columns, row, strict=True):
                    assert type(value) in types[table].get(column, (str,)), (table, column, value)


def test_ids_are_numbered_within_the_vendor_and_collide_between_vendors() -> None:
    """A primary key holds within one database and in no larger one."""
    assert [id for id, _ in FLEET[:2]] == ["vendor-0000000", "vendor-0000001"]
    assert next(catalogue(vendors=1, products=1, seed=1, first=9_999_999))[0] == "vendor-9999999"
    for id, rows in FLEET[:200]:
        assert rows["vendors"][0][:2] == (id, id)
        assert [row[0] for row in rows["products"]] == [f"p-{k}" for k in range(len(rows["products"]))]
        assert [row[2] for row in rows["products"]] == [f"SKU-{100 + k}" for k in range(len(rows["products"]))]
        assert [row[0] for row in rows["reviews"]] == [f"r-{k}" for k in range(len(rows["reviews"]))]
        assert {row[2] for row in rows["reviews"]} <= {row[0] for row in rows["products"]}


def test_the_traits_that_queries_are_tried_on_are_there() -> None:
    """NULLs, ties, unicode, quotes, wildcards, the word wireless, 24 categories and more, electronics among them."""
    categories = Counter(product["category"] for product in PRODUCTS)
    assert len(categories) >= 25
    assert categories["electronics"] > 300
    share_null = categories[None] / len(PRODUCTS)
    assert abs(share_null - 0.02) < 4.5 * np.sqrt(0.02 * 0.98 / len(PRODUCTS))
    ratings = Counter(product["rating"] for product in PRODUCTS)
    assert 0.03 < ratings[None] / len(PRODUCTS) < 0.07
    assert {rating for rating in ratings if rating is not None} == {tenths / 10 for tenths in range(10, 51)}
    assert ratings[5.0] > 100
    names = {product["name"] for product in PRODUCTS}
    assert 200 < sum("wireless" in product["name"].lower() for product in PRODUCTS) < 3000
    assert len(names) > 3000
    assert any(not name.isascii() for name in names)
    vendor_names = {rows["vendors"][0][2] for _, rows in FLEET}
    assert any("'" in name for name in vendor_names)
    assert any("%" in (product["description"] or "") for product in PRODUCTS)
    assert {rows["vendors"][0][5] for _, rows in FLEET} == {"active", "suspended"}
    assert {None, ""} <= {product["description"] for product in PRODUCTS}
    assert any(product["stock"] == 0 for product in PRODUCTS)
    assert None in {review["body"] for review in REVIEWS}


def test_prices_have_two_decimals_and_dates_follow_one_another() -> None:
    """A price is the float nearest to its hundredths; a vendor joins, then lists a product, then it is reviewed."""
    assert all(product["price"] == round(product["price"] * 100) / 100 > 0 for product in PRODUCTS)
    for _, rows in FLEET[:300]:
        joined = rows["vendors"][0][-1]
        created = {row[0]: row[-1] for row in rows["products"]}
        assert all(joined <= day <= "2026-08-28" for day in created.values())
        assert all(created[row[2]] <= row[-1] for row in rows["reviews"])
        assert all(datetime.date.fromisoformat(day).isoformat() == day for day in {joined, *created.values()})


@pytest.mark.parametrize("mean", [0.0, 0.5, 3.0])
def test_reviews_are_geometric_with_the_mean_asked_for(mean: float) -> None:
    """The mean is within 4.5 standard errors; stars run from 1 to 5 and a product's reviews differ."""
    fleet = list(catalogue(vendors=2000, products=10, seed=5, skew=0, reviews=mean))
    total = sum(len(rows["reviews"]) for _, rows in fleet)
    assert abs(total / 20_000 - mean) <= 4.5 * np.sqrt(mean * (1 + mean) / 20_000)
    if mean:
        stars = Counter(row[4] for _, rows in fleet for row in rows["reviews"])
        assert set(stars) == {1, 2, 3, 4, 5}
        assert len({row[3] for _, rows in fleet for row in rows["reviews"]}) > 5000


def test_most_vendors_keep_mainly_to_one_category() -> None:
    """Seven products in ten and a bit are of the vendor's own category, so pruning by group has something to do."""
    own = total = 0
    for _, rows in FLEET:
        counts = Counter(row[5] for row in rows["products"])
        if len(rows["products"]) >= 20:
            own, total = own + max(counts.values()), total + len(rows["products"])
    assert 0.65 < own / total < 0.75


def test_draws_at_the_upper_end_stay_in_their_tables() -> None:
    """Numbers rounded up to 1 take the last entry, not the one past it."""
    assert _pick(np.array([0.0, 1 - 2.0**-53, 1.0]), 41).tolist() == [0, 40, 40]
    assert _ratings(np.array([2.0**-53, 0.05, 1 - 2.0**-53]), 0.05) == [None, 1.0, 5.0]


def test_the_committed_sample_equals_a_fresh_one(tmp_path: Path) -> None:
    """data/sample_products.csv is what its seed makes: 25 sellers, about 300 products."""
    fresh = tmp_path / "fresh.csv"
    count = sample(fresh, seed=SAMPLE_SEED)
    assert fresh.read_bytes() == (DATA / "sample_products.csv").read_bytes()
    with fresh.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == count
    assert 250 <= count <= 350
    assert list(rows[0]) == ["seller_id", "sku", "name", "category", "price", "rating", "stock"]
    sellers = Counter(row["seller_id"] for row in rows)
    assert len(sellers) == 25
    assert {"acme", "widgets", "gadgets"} <= set(sellers)
    assert any(row["category"] == "" for row in rows)
    assert any(row["rating"] == "" for row in rows)
    assert any("wireless" in row["name"].lower() for row in rows)
    assert any(row["category"] == "electronics" for row in rows)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vendors": -1}, "vendors"),
        ({"vendors": 1.5}, "vendors"),
        ({"vendors": 10_000_001}, "vendors"),
        ({"first": -1}, "first"),
        ({"first": 9_999_999, "vendors": 2}, "first . vendors"),
        ({"products": -1}, "products"),
        ({"products": float("nan")}, "products"),
        ({"products": 10**6000}, "products"),
        ({"products": -(10**6000)}, "products"),
        ({"seed": -1}, "seed"),
        ({"seed": "x" * 1_000_000}, "seed"),
        ({"skew": float("nan")}, "skew"),
        ({"skew": -0.1}, "skew"),
        ({"skew": 5}, "skew"),
        ({"skew": 10**6000}, "skew"),
        ({"skew": "1"}, "skew"),
        ({"reviews": float("inf")}, "reviews"),
        ({"reviews": None}, "reviews"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_are_refused_at_once_by_name(wrong: dict[str, Any], message: str) -> None:
    """The call itself raises, before anything is iterated, and the message is short."""
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        catalogue(**{"vendors": 1, "products": 1, "seed": 1, **wrong})
    assert len(str(caught.value)) < 300
