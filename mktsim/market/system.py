"""The marketplace's own durable object: it numbers runs, places carts, and decides those that are all or nothing.

Theory of operation
-------------------
A cart becomes one ``Order.placed`` per vendor, in one transaction: from then on it cannot be lost. A cart with a key,
or one that is all or nothing, is remembered beside them. *All or nothing*: vendors hold their orders and are heard one
by one; the last one heard decides, in the transaction that records it, and the decision goes out as
``Order.confirmed`` or ``Order.released`` to each. If somebody is not heard in time, the alarm decides to release. An
order and the decision about it travel in one lane, so that a vendor hears them in this order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mktsim.errors import DuplicateError
from mktsim.objects import DurableObject, noun, object_schema
from mktsim.objects.ledger import LEDGER_TABLE
from mktsim.objects.log import LOG_TABLE
from mktsim.sql.schema import Schema

#: A cart that was placed: its `orders` as JSON, what each vendor answered (`heard`), and `state`: ``each`` (orders that
#: stand alone), ``open``, ``confirmed`` or ``released``.
Placement: Final = noun(
    "Placement",
    {"digest": "TEXT", "orders": "TEXT", "heard": "TEXT", "state": "TEXT", "expires": "REAL"},
    compact=True,
)

#: The platform's own databases: the market's object, the ledger of vendors with something to do, the log of events.
SYSTEM_SCHEMA: Final = Schema((*object_schema(Placement).statements, LEDGER_TABLE, LOG_TABLE))


class MarketObject(DurableObject):
    """The marketplace's own durable object."""

    nouns = (Placement,)
    creators = frozenset({"begin"})

    def begin(self) -> int:
        """Return the number of this run, never given out before."""
        return self.next_serial()

    def place(
        self,
        orders: Sequence[Mapping[str, Any]],
        key: str | None = None,
        digest: str = "",
        hold_s: float | None = None,
    ) -> list[dict[str, Any]] | None:
        """Send ``Order.placed`` for each order, all of them or none; or return those placed before under this key.

        Raises
        ------
        DuplicateError
            Another cart was placed under this key.
        """
        known = self.things.get(Placement, key) if key is not None else None
        if known is not None:
            if known["digest"] != digest:
                raise DuplicateError(f"another cart was placed under the key {key!r:.80}: choose a new one")
            before: list[dict[str, Any]] = json.loads(str(known["orders"]))
            return before
        extra: dict[str, Any] = {}
        if key is not None or hold_s is not None:
            expires = None if hold_s is None else self.now_s + hold_s
            placement = self.things.create(
                Placement,
                {} if key is None else {"id": key},
                digest=digest,
                orders=json.dumps(list(orders)),
                heard="{}",
                state="each" if hold_s is None else "open",
                expires=expires,
            )
            if expires is not None:
                extra = {"hold": True, "cart": placement["id"]}
                alarm_s = self.alarm_at_s()
                self.set_alarm(expires if alarm_s is None else min(alarm_s, expires))
        for order in orders:
            self.send("Order.placed", {**order, **extra})
        return None

    def heard(self, cart: str, order_id: str, status: str) -> str:
        """Record a vendor's answer to an order of a cart that is all or nothing, and return the cart's state."""
        placement = self.things.get(Placement, cart)
        assert placement is not None, "a cart is recorded before its orders are sent"
        heard = json.loads(str(placement["heard"])) | {order_id: status}
        self.things.update(Placement, cart, heard=json.dumps(heard))
        if placement["state"] == "open" and len(heard) == len(json.loads(str(placement["orders"]))):
            return self._decide(cart, all(each == "placed" for each in heard.values()))
        return str(placement["state"])

    def alarm(self) -> None:
        """Release the carts that were not answered in time."""
        waiting = [(row["expires"], str(row["id"])) for row in self.things.find(Placement, state="open")]
        later = []
        for expires, cart in waiting:
            assert isinstance(expires, float)
            if expires <= self.now_s:
                self._decide(cart, False)
            else:
                later.append(expires)
        self.set_alarm(min(later, default=None))

    def _decide(self, cart: str, confirmed: bool) -> str:
        state = "confirmed" if confirmed else "released"
        placement = self.things.update(Placement, cart, state=state)
        for order in json.loads(str(placement["orders"])):
            decision = {name: order[name] for name in ("vendorId", "orderId", "customer", "commissionBp")}
            self.send(f"Order.{state}", decision)
        return state
