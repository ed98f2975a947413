"""A catalogue to try the marketplace on: vendors, products and reviews, the same for the same seed.

Rules
-----
Vendor number v's rows depend on (seed, v) and the shape options alone: not on how many vendors are generated, nor on
where the range starts. So processes may each take a range and together make what one would have made.

Theory of operation
-------------------
Vendors come in blocks of 1,000. Within a block each vendor has another rank r of 1 to 1,000, in an order drawn for the
block, and its number of products is proportional to r ** -skew (Zipf), rounded so that a whole block has exactly
1,000 times the mean. Every column is one keyed draw (`mktsim.streams`) over the products of the block, so that any
part of it can be drawn alone; texts are taken from tables. No step rounds differently from one platform to another.

On purpose: ids of products and reviews are numbered within the vendor, so they collide between vendors; ratings have
one decimal, so they tie; categories, ratings and texts are sometimes NULL; names hold letters of several scripts,
quotes and the word *wireless*; with few products in the mean, some vendors have none.

What this does not do
---------------------
It writes no database: `mktsim.market` has the nouns whose tables take these rows.
"""

from __future__ import annotations

import csv
import datetime
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import product
from operator import index as as_integer
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError
from mktsim.streams import Streams

#: The columns of each table, in the order of the values in the rows.
COLUMNS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "vendors": ("id", "vendorId", "name", "country", "rating", "status", "createdAt"),
        "products": (
            *("id", "vendorId", "sku", "name", "description"),
            *("category", "price", "rating", "stock", "createdAt"),
        ),
        "reviews": ("id", "vendorId", "productId", "customer", "stars", "body", "createdAt"),
    }
)
SAMPLE_SEED: Final = 20261122  # of data/sample_products.csv

_BLOCK: Final = 1000
_BATCH_ROWS: Final = 20_000  # products held at a time, one vendor's at least
_GOLDEN: Final = 0.6180339887498949
_Row = tuple[Any, ...]
_Numbers = NDArray[np.float64]


def _texts(values: Iterable[str | None]) -> NDArray[np.object_]:
    """Make a table of texts, from which an array of positions takes its texts at once."""
    return np.array(list(values), dtype=object)


def _words(text: str, separator: str = ", ") -> tuple[str, ...]:
    return tuple(text.split(separator))


# Category: mean price in hundredths, then what is sold there.
_CATEGORIES: Final[dict[str, tuple[int, str]]] = {
    "electronics": (12900, "headphones, speaker, keyboard, charger, webcam, microphone, router, e-reader"),
    "computers": (59900, "laptop, monitor, mouse, docking station, SSD, graphics card, mini PC, trackball"),
    "phones": (39900, "smartphone, phone case, screen protector, power bank, selfie stick, SIM adapter, 手机支架"),
    "audio": (17900, "turntable, amplifier, earbuds, soundbar, subwoofer, DAC, Plattenspieler, mixing desk"),
    "photography": (44900, "camera, tripod, lens, light meter, flash, darkroom kit, camera bag, カメラストラップ"),
    "gaming": (6900, "controller, headset, console, joystick, arcade stick, racing wheel, dice set, card sleeves"),
    "home": (4900, "lamp, cushion, curtain, mirror, vase, rug, clock, décor set"),
    "kitchen": (3900, "kettle, frying pan, chef's knife, crème brûlée torch, teapot, whisk, wok 炒锅, moka pot"),
    "furniture": (24900, "desk, office chair, bookshelf, armchair, bed frame, stool, wardrobe, Küchentisch"),
    "garden": (3400, "spade, watering can, hedge trimmer, bird feeder, plant pot, rain barrel, lawn mower, jardinière"),
    "tools": (7900, 'drill, hammer, saw, spirit level, wrench set, soldering iron, workbench, 3/8" socket'),
    "automotive": (5900, "jump starter, roof box, dash cam, floor mats, tyre gauge, seat cover, motor oil, bike rack"),
    "sports": (4500, "yoga mat, dumbbell, kettlebell, skipping rope, tennis racket, football, šachy, climbing chalk"),
    "outdoors": (9900, "tent, sleeping bag, head torch, rucksack, camp stove, hammock, compass, Feldflasche"),
    "cycling": (8900, "helmet, bicycle pump, saddle, pannier, bike light, chain lube, pedal, vélo d'appartement"),
    "fashion": (5400, "jacket, scarf, belt, sweater, shirt, dress, beret, кошуля"),
    "shoes": (8400, "sneakers, boots, sandals, loafers, running shoes, slippers, clogs, espadrilles"),
    "jewellery": (15900, "necklace, ring, bracelet, earrings, brooch, watch, cufflinks, Ohrstecker"),
    "beauty": (2400, "shampoo, face cream, lip balm, perfume, nail polish, hair dryer, soap, crème de jour"),
    "health": (2900, "thermometer, blood pressure monitor, massage gun, scale, heat pad, vitamin C, plasters, 按摩器"),
    "toys": (2700, "puzzle, building blocks, doll, kite, train set, plush bear, marbles, матрёшка"),
    "baby": (3700, "pram, cot mobile, bottle warmer, baby monitor, bib set, high chair, sling, Spieluhr"),
    "books": (1800, "novel, atlas, cookbook, dictionary, comic, poetry book, travel guide, 詩集"),
    "music": (13900, "guitar, ukulele, violin, keyboard stand, metronome, harmonica, cajón, drum sticks"),
    "stationery": (1400, "notebook, fountain pen, ink, pencil case, stapler, calendar, washi tape, 折り紙"),
    "grocery": (900, "coffee beans, olive oil, green tea, honey, dark chocolate, jalapeño sauce, miso, pâté"),
    "pets": (2600, "cat tree, dog lead, aquarium, bird cage, scratching post, hamster wheel, pet bed, Näpfe"),
    "art": (3300, "easel, oil paint, sketchbook, brush set, canvas, clay, charcoal, acuarelas"),
}
_STYLES: Final = _words(
    "Wireless, Classic, Compact, Deluxe, Eco, Foldable, Heavy-duty, Industrial, Lightweight, Magnetic, Mini, Modern, "
    "Portable, Premium, Quiet, Rechargeable, Recycled, Retro, Rugged, Silent, Slim, Smart, Solar, Stainless, Ultra, "
    "Vintage, Waterproof, Handmade, Größenverstellbar, Élégant, 高级, Экономный"
)
_OPENINGS: Final = _words(
    "Acme, Blue Harbour, Café, Châtelain, Dvořák, El Niño, Fjord, Göteborg, Hansa, Ísafold, Jun, Kōbō, Łódź, Müller, "
    "Northwind, O'Neill, Óbidos, Quay, Señor, São Jorge, Taïga, Über, Βόλος, Волга, 北京, 東京, 서울, دمشق, Zürich"
)
_ENDINGS: Final = _words(
    "& Co., & Söhne, Bazaar, Direct, Emporium, Goods, Market, Outlet, Supply, Trading, Works, 商店"
)
_COUNTRIES: Final = _texts(
    _words("AU, BR, CA, CN, CZ, DE, DK, ES, FI, FR, GB, GR, IN, IT, JP, KR, MX, NL, NO, PL, PT, SE, US, ZA")
)
_DESCRIPTIONS: Final = _texts(
    [
        None,
        None,
        None,
        "",
        *_words(
            "Ships within two days. | New, in its box. | Last season's model. | Battery included. | 环保材料。 | "
            "Refurbished; 12 months' warranty. | 50% lighter than before. | Fabriqué à la main.",
            " | ",
        ),
    ]
)
_BODIES: Final = _texts(
    [
        None,
        None,
        *_words(
            "Great. | Works as described. | Too small for me. | Arrived late; otherwise fine. | Wireless? Yes! | "
            'Would buy again 👍 | Broke after a week. | Très bien. | It\'s "okay". | 質量很好',
            " | ",
        ),
    ]
)
_GOODS: Final = [(category, noun) for category, (_, nouns) in _CATEGORIES.items() for noun in _words(nouns)]
_GOOD_CATEGORY: Final = np.array([list(_CATEGORIES).index(category) for category, _ in _GOODS])
_GOODS_FIRST: Final = np.searchsorted(_GOOD_CATEGORY, np.arange(len(_CATEGORIES) + 1))
_PRODUCT_NAMES: Final = _texts([f"{style} {noun}" for (_, noun), style in product(_GOODS, _STYLES)])
_VENDOR_NAMES: Final = _texts([f"{opening} {ending}" for opening, ending in product(_OPENINGS, _ENDINGS)])
_CATEGORY_NAMES: Final = _texts([*_CATEGORIES, None])
_MEAN_PRICES: Final = np.array([price for price, _ in _CATEGORIES.values()])
_DATES: Final = _texts([str(datetime.date(2022, 1, 1) + datetime.timedelta(days=day)) for day in range(1700)])
_RATINGS: Final = np.array([None, *(tenths / 10 for tenths in range(10, 51))], dtype=object)
_STARS: Final = np.array([1, 2, 3, 3, 4, 4, 4, 5, 5, 5])
_CUSTOMERS: Final = _texts([f"customer-{number:05d}" for number in range(10_000)])


def catalogue(
    *, vendors: int, products: int, seed: int, first: int = 0, skew: float = 1.0, reviews: float = 0.5
) -> Iterator[tuple[str, dict[str, list[_Row]]]]:
    """Generate vendors number `first` to ``first + vendors - 1``, in this order.

    Parameters
    ----------
    vendors : int
        How many.
    products : int
        Mean number of products of a vendor, exact over every whole block of 1,000 vendors; at most 100,000.
    seed : int
        From 0 to 2**128 - 1.
    first : int
        Number of the first vendor; ``first + vendors`` is at most ten million.
    skew : float
        Exponent of Zipf's law of vendor sizes, from 0 (all have exactly `products`) to 4. At 1 the largest of 1,000
        vendors has about 500 times the products of the median one.
    reviews : float
        Mean number of reviews of a product, from 0 to 100; geometrically distributed.

    Returns
    -------
    iterator of (str, dict)
        The vendor's id and its rows, under ``"vendors"`` (one), ``"products"`` and ``"reviews"``; the values of a row
        are in the order of :data:`COLUMNS`. Prices are in major units of money with two decimals.

    Raises
    ------
    InvalidArgumentError
        If an argument is out of range; at once, not at the first vendor.

    Notes
    -----
    About 10 us for a vendor of 10 products. Memory is bounded by one vendor or 20,000 products, whichever is more.

    Examples
    --------
    >>> vendor_id, rows = next(catalogue(vendors=1, products=3, seed=7, first=42, skew=0))
    >>> vendor_id, [row[0] for row in rows["products"]]
    ('vendor-0000042', ['p-0', 'p-1', 'p-2'])
    """
    vendors, first = _whole("vendors", vendors, 10_000_000), _whole("first", first, 10_000_000)
    if first + vendors > 10_000_000:
        raise InvalidArgumentError(f"first + vendors must be at most 10000000, not {first + vendors}")
    sizes = _sizes(_whole("products", products, 100_000), _real("skew", skew, 4.0))
    chances = _review_chances(_real("reviews", reviews, 100.0))
    return _generate(Streams(seed).child("catalogue"), first, first + vendors, sizes, chances)


def sample(path: str | PathLike[str], *, seed: int = SAMPLE_SEED) -> int:
    """Write a small catalogue of 25 sellers as CSV, as a user might bring it; return the number of products.

    The columns are seller_id, sku, name, category, price, rating and stock; NULL is an empty field. An existing file
    is replaced.

    Raises
    ------
    InvalidArgumentError
        If `seed` is out of range.
    OSError
        If the file cannot be written.
    """
    known = ("acme", "widgets", "gadgets")
    taken = ("sku", "name", "category", "price", "rating", "stock")
    places = [COLUMNS["products"].index(column) for column in taken]
    rows = [
        (known[number] if number < len(known) else f"seller-{number:02d}", *(row[place] for place in places))
        for number, (_, tables) in enumerate(catalogue(vendors=25, products=12, seed=seed, skew=0.5))
        for row in tables["products"]
    ]
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("seller_id", *taken))
        writer.writerows(rows)
    return len(rows)


def _whole(name: str, value: int, limit: int) -> int:
    try:
        number = as_integer(value)
    except TypeError:
        raise InvalidArgumentError(f"{name} must be a whole number, not {value!r:.80}") from None
    if not 0 <= number <= limit:
        raise InvalidArgumentError(
            f"{name} must be from 0 to {limit}, not {number if abs(number) < 1 << 256 else 'that'}"
        )
    return number


def _real(name: str, value: float, limit: float) -> float:
    if not isinstance(value, int | float | np.integer | np.floating) or not 0 <= value <= limit:
        shown = "that" if isinstance(value, int) and abs(value) >= 1 << 256 else f"{value!r:.80}"
        raise InvalidArgumentError(f"{name} must be a number from 0 to {limit:g}, not {shown}")
    return float(value)


@lru_cache(maxsize=16)
def _sizes(products: int, skew: float) -> NDArray[np.int64]:
    """Return the number of products by rank: proportional to rank ** -skew, adding up to exactly the mean's sum."""
    weights = np.array([math.pow(rank, -skew) for rank in range(1, _BLOCK + 1)])
    # Rounding the running sum, not each size, keeps the total exact.
    running = np.rint(np.cumsum(weights) * (products * _BLOCK / math.fsum(weights))).astype(np.int64)
    return np.diff(running, prepend=0)


@lru_cache(maxsize=16)
def _review_chances(mean: float) -> _Numbers:
    """Return P(at most k reviews) for k = 0, 1, ... of the geometric law of that mean, until nothing is left."""
    ratio = mean / (1 + mean)
    chances, above = [], ratio
    while above > 2.0**-53:
        chances.append(1.0 - above)
        above *= ratio
    return np.array([*chances, 1.0])


@lru_cache(maxsize=8)
def _labels(prefix: str, start: int, n: int) -> NDArray[np.object_]:
    return _texts([f"{prefix}{start + number}" for number in range(n)])


def _numbered(prefix: str, numbers: NDArray[np.int64], start: int = 0) -> list[str]:
    """Return labels such as p-0, p-1 from a table whose size is a power of two, hence seldom made anew."""
    highest = int(numbers.max(initial=0))
    labels: list[str] = _labels(prefix, start, 1 << max(10, highest.bit_length()))[numbers].tolist()
    return labels


def _pick(uniform: _Numbers, n: int) -> NDArray[np.int64]:
    # The numbers given may have been rounded up to 1 on their way here.
    return np.minimum((uniform * n).astype(np.int64), n - 1)


def _ratings(uniform: _Numbers, missing: float) -> list[float | None]:
    """Return ratings of one decimal that lean to the upper end, the given share of them NULL."""
    known = np.maximum(uniform - missing, 0.0) / (1.0 - missing)
    tenths = _pick(1.0 - (1.0 - known) * (1.0 - known), 41)
    ratings: list[float | None] = _RATINGS[np.where(uniform < missing, 0, tenths + 1)].tolist()
    return ratings


def _generate(
    streams: Streams, first: int, stop: int, sizes: NDArray[np.int64], chances: _Numbers
) -> Iterator[tuple[str, dict[str, list[_Row]]]]:
    while first < stop:
        block = first // _BLOCK
        until = min(stop, (block + 1) * _BLOCK)
        ranks = np.argsort(streams.uniform("rank", block, _BLOCK), kind="stable")
        ends = np.cumsum(sizes[ranks])  # in products, from the start of the block
        while first < until:
            low = first - block * _BLOCK
            start = int(ends[low - 1]) if low else 0
            high = max(low + 1, int(np.searchsorted(ends, start + _BATCH_ROWS, side="right")))
            high = min(high, until - block * _BLOCK)
            yield from _batch(streams, block, low, np.array([start, *ends[low:high]]), chances)
            first = block * _BLOCK + high


def _batch(
    streams: Streams, block: int, low: int, bounds: NDArray[np.int64], chances: _Numbers
) -> Iterator[tuple[str, dict[str, list[_Row]]]]:
    """Generate the vendors from `low` on of a block, whose products lie between `bounds` in the block."""
    n = len(bounds) - 1
    ids = [f"vendor-{block * _BLOCK + number:07d}" for number in range(low, low + n)]

    def of_vendors(column: str) -> _Numbers:
        return streams.uniform(f"vendors.{column}", block, n, first=low)

    statuses = np.where(of_vendors("status") < 0.02, "suspended", "active").tolist()
    joined = _pick(of_vendors("createdAt"), len(_DATES) // 2)
    vendors = zip(
        ids,
        ids,
        _VENDOR_NAMES[_pick(of_vendors("name"), len(_VENDOR_NAMES))].tolist(),
        _COUNTRIES[_pick(of_vendors("country"), len(_COUNTRIES))].tolist(),
        _ratings(of_vendors("rating"), 0.05),
        statuses,
        _DATES[joined].tolist(),
        strict=True,
    )

    start, count = int(bounds[0]), int(bounds[-1] - bounds[0])
    owner = np.repeat(np.arange(n), np.diff(bounds))
    position = np.arange(start, start + count) - bounds[:-1][owner]

    def of_products(column: str) -> _Numbers:
        return streams.uniform(f"products.{column}", block, count, first=start)

    # Most vendors keep mainly to one category, so that a condition on it leaves many of them out.
    main = _pick(of_vendors("category"), len(_CATEGORIES))[owner]
    strays = of_products("category")
    category = np.where(strays < 0.7, main, _pick((np.maximum(strays, 0.7) - 0.7) / 0.3, len(_CATEGORIES)))
    goods_first, goods = _GOODS_FIRST[category], np.diff(_GOODS_FIRST)[category]
    name = (goods_first + (of_products("noun") * goods).astype(np.int64)) * len(_STYLES)
    name += _pick(of_products("style"), len(_STYLES))
    spread = of_products("price")
    hundredths = (_MEAN_PRICES[category] * (0.2 + 3.2 * spread * spread * spread)).astype(np.int64)
    hundredths = np.where(of_products("psychology") < 0.5, hundredths // 100 * 100 + 99, hundredths)
    shown = np.where(of_products("uncategorised") < 0.02, len(_CATEGORIES), category)
    stock = _pick(np.maximum(of_products("stock") - 0.08, 0.0), 270)
    created = joined[owner] + (of_products("createdAt") * (len(_DATES) - joined[owner])).astype(np.int64)
    product_ids, owner_ids = _numbered("p-", position), _texts(ids)[owner].tolist()
    products = list(
        zip(
            product_ids,
            owner_ids,
            _numbered("SKU-", position, 100),
            _PRODUCT_NAMES[name].tolist(),
            _DESCRIPTIONS[_pick(of_products("description"), len(_DESCRIPTIONS))].tolist(),
            _CATEGORY_NAMES[shown].tolist(),
            (hundredths / 100).tolist(),
            _ratings(of_products("rating"), 0.05),
            stock.tolist(),
            _DATES[created].tolist(),
            strict=True,
        )
    )

    counts = np.searchsorted(chances, of_products("reviews"), side="right")
    of_product = np.repeat(np.arange(count), counts)
    ends = np.cumsum(counts)
    turn = np.arange(len(of_product)) - (ends - counts)[of_product]
    review_bounds = np.concatenate(([0], ends))[bounds - start]
    review_position = np.arange(len(of_product)) - np.repeat(review_bounds[:-1], np.diff(review_bounds))

    def of_reviews(column: str) -> _Numbers:
        # A product's reviews walk from one draw by the golden ratio: none needs to know how many lie before it.
        walk: _Numbers = (of_products(f"reviews.{column}")[of_product] + turn * _GOLDEN) % 1.0
        return walk

    reviewed = created[of_product]
    reviews = list(
        zip(
            _numbered("r-", review_position),
            _texts(owner_ids)[of_product].tolist(),
            _texts(product_ids)[of_product].tolist(),
            _CUSTOMERS[_pick(of_reviews("customer"), len(_CUSTOMERS))].tolist(),
            _STARS[_pick(of_reviews("stars"), len(_STARS))].tolist(),
            _BODIES[_pick(of_reviews("body"), len(_BODIES))].tolist(),
            _DATES[reviewed + (of_reviews("createdAt") * (len(_DATES) - reviewed)).astype(np.int64)].tolist(),
            strict=True,
        )
    )
    product_ends, review_ends = (bounds - start).tolist(), review_bounds.tolist()
    for i, vendor in enumerate(vendors):
        yield (
            ids[i],
            {
                "vendors": [vendor],
                "products": products[product_ends[i] : product_ends[i + 1]],
                "reviews": reviews[review_ends[i] : review_ends[i + 1]],
            },
        )
