"""The marketplace: vendors, carts, orders, and SQL over all of it."""

from mktsim.market.cart import Cart
from mktsim.market.generate import generate
from mktsim.market.marketplace import Marketplace
from mktsim.market.vendor import Inventory, VendorObject

__all__ = ["Cart", "Inventory", "Marketplace", "VendorObject", "generate"]
