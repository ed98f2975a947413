"""Durable objects: nouns, things, isolation, stubs, requests, events."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import logging
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mktsim.errors import (
    DuplicateError,
    InvalidArgumentError,
    IsolationError,
    MktsimError,
    NotCallableError,
    ObjectError,
    OverloadedError,
    ParameterError,
    ReadOnlyError,
    SQLSyntaxError,
    UnknownVendorError,
    UnsupportedQueryError,
    VendorDownError,
    VendorTimeoutError,
)
from mktsim.network import InProcessNetwork, Metered, encoded
from mktsim.objects import (
    Caller,
    DurableObject,
    Event,
    ObjectHost,
    RetryPolicy,
    Stub,
    Subscriptions,
    deadline,
    exposed,
    noun,
    object_schema,
)
from mktsim.objects.calls import CallMessage, Step
from mktsim.objects.events import EventMessage
from mktsim.objects.ledger import LEDGER_TABLE, StoreLedger
from mktsim.sim import SimNetwork, load_preset, sim_run
from mktsim.sql.schema import Schema
from mktsim.storage import VendorStore, open_store
from mktsim.streams import Streams

Note = noun("Note", {"text": "TEXT NOT NULL", "weight": "REAL", "n": "INTEGER", "raw": "BLOB", "createdAt": "TEXT"})


class Shelf:
    """An object that stays with its notebook."""

    def __init__(self, book: Notebook) -> None:
        self._book = book
        self.secret = 1

    @exposed
    def heaviest(self) -> str:
        return str(self._book.sql.execute("SELECT text FROM notes ORDER BY weight DESC LIMIT 1")[0][0])

    @property
    @exposed
    def size(self) -> int:
        return len(self._book.things.list("Note"))

    def burn(self) -> None:
        raise AssertionError("nobody may call this")


class Notebook(DurableObject):
    """The object of these tests."""

    nouns = (Note,)
    creators = frozenset({"begin"})

    def begin(self) -> str:
        return self.id

    def write(self, text: str, weight: float = 1.0) -> dict[str, Any]:
        return dict(self.things.create(Note, text=text, weight=weight))

    def texts(self) -> list[str]:
        return [str(row[0]) for row in self.sql.execute("SELECT text FROM notes ORDER BY rowid")]

    def shelf(self) -> Shelf:
        return Shelf(self)

    def fail(self, text: str = "lost") -> None:
        self.write(text)
        self.send("Note.written", {"text": text})
        raise KeyError(text)

    def tell(self, text: str, lane: str = "") -> int:
        self.write(text)
        return self.send("Note.written", {"text": text, "vendorId": lane})

    async def slowly(self, text: str) -> int:
        before = len(self.texts())
        await asyncio.sleep(0)
        self.write(text)
        await asyncio.sleep(0)
        return before

    async def ask(self, other: Stub) -> Any:
        return await other.texts()

    def sql_text(self, statement: str) -> list[Any]:
        return self.sql.execute(statement)

    def query_text(self, statement: str, params: Any = ()) -> list[Any]:
        return self.sql.query(statement, params)

    def write_then_query(self, statement: str) -> list[Any]:
        self.sql.execute(statement)
        return self.sql.query(statement)

    def _private(self) -> None:
        raise AssertionError("nobody may call this")

    def send(self, event: str, data: Any) -> int:  # overriding a platform name does not open it
        return super().send(event, data)


class World:
    """A host of notebooks, its network, a caller and a hub."""

    def __init__(
        self,
        store: VendorStore,
        system: VendorStore,
        *,
        network: Any = None,
        policy: RetryPolicy | None = None,
        queue_limit: int = 1_000,
        factory: Callable[[str], DurableObject] = Notebook,
    ) -> None:
        self.store = store
        self.network = network if network is not None else InProcessNetwork()
        self.on = Subscriptions()
        self.host = ObjectHost(
            store,
            self.network,
            factory=factory,
            prefix="vendor/",
            hub="market",
            streams=Streams(1),
            ledger=StoreLedger(system, "ledger"),
            queue_limit=queue_limit,
            policy=policy or RetryPolicy(base_s=0.001),
        )
        self.network.register("market", self._deliver)
        self.caller = Caller(self.network, "test")

    def _deliver(self, _address: str, message: EventMessage) -> Any:
        return self.on.deliver(message)

    def book(self, id: str = "acme") -> Stub:
        return self.caller.stub(f"vendor/{id}")


SYSTEM = Schema((*object_schema().statements, LEDGER_TABLE))


def run(test: Callable[[World], Awaitable[None]], *, path: Path | None = None, **options: Any) -> None:
    """Run a coroutine in a world of its own, in memory or on files below `path`."""

    async def body() -> None:
        kind = "memory" if path is None else "directory"
        with (
            open_store(kind, path and path / "v", object_schema(Note), shards=["s"], locate=lambda _: "s") as store,
            open_store(kind, path and path / "s", SYSTEM, shards=["s"], locate=lambda _: "s") as system,
        ):
            world = World(store, system, **options)
            try:
                await test(world)
                await world.caller.drain()
            finally:
                await world.host.close()

    asyncio.run(body())


# -- nouns and things -------------------------------------------------------------------------------------------


def test_a_noun_makes_the_same_ddl_for_every_vendor_with_id_and_vendor_id_first() -> None:
    """Databases of one schema must share their DDL byte for byte."""
    product = noun("Product", {"name": "TEXT NOT NULL"}, indexes=("name", ("vendorId", "name")))
    assert (product.table, product.names) == ("products", ("id", "vendorId", "name"))
    database = object_schema(product).database()
    assert database.execute("SELECT COUNT(*) FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL").get == 2
    database.close()
    assert noun("Category").table == "categories"
    assert noun("Box", table="crates").table == "crates"


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("", {}),
        ("Pro duct", {}),
        ('P"', {}),
        ("P" * 1_000_000, {}),
        ("P\0", {}),
        ("Product", {"id": "TEXT"}),
        ("Product", {"VENDORID": "TEXT"}),
        ("Product", {"name": "DATE"}),
        ("Product", {"name": "TEXT); DROP TABLE products"}),
        ("Product", {"name": "TEXT, evil TEXT"}),
        ("Product", {"name": None}),
        ("Product", {"na'me": "TEXT"}),
    ],
)
def test_a_noun_that_is_no_plain_declaration_is_refused(name: str, columns: dict[str, Any]) -> None:
    """Names are identifiers, types are SQLite's, and a type cannot smuggle in more than its column."""
    with pytest.raises(InvalidArgumentError):
        noun(name, columns)


def test_two_nouns_of_one_table_are_refused() -> None:
    """A schema has each name and each table once."""
    with pytest.raises(InvalidArgumentError, match="table"):
        object_schema(noun("A", table="things"), noun("B", table="THINGS"))


def test_things_take_dicts_and_give_dicts() -> None:
    """create, get, update, find, list and delete agree with each other; ids and owner are filled in."""

    class Keeper(Notebook):
        def story(self) -> list[Any]:
            first = self.things.create("Note", {"text": 'it\'s "quoted"'}, weight=2)
            second = self.things.create(Note, text="b", raw=b"\0\xff")
            changed = self.things.update(Note, str(first["id"]), n=7)
            return [
                first["vendorId"] == self.id and first["weight"] == 2.0 and first["createdAt"] is not None,
                changed == {**first, "n": 7} == self.things.get(Note, str(first["id"])),
                self.things.find(Note, n=None) == [second],
                self.things.list("Note") == [changed, second],
                self.things.delete(Note, str(second["id"])) and not self.things.delete(Note, str(second["id"])),
                self.things.create(Note, text="c")["id"] not in (first["id"], second["id"]),
            ]

    async def test(world: World) -> None:
        book = world.book()
        await book.begin()
        assert await book.story() == [True] * 6

    run(test, factory=Keeper)


@pytest.mark.parametrize(
    "data",
    [
        {"text": 5},
        {"text": "a", "colour": "red"},
        {"text": "a", 'x"; DROP TABLE notes --': 1},
        {"text": "a", "weight": float("nan")},
        {"text": "a", "weight": "heavy"},
        {"text": "a", "n": 1.5},
        {"text": "a", "n": True},
        {"text": "a", "n": 2**63},
        {"text": "a\0b"},
        {"text": "\ud800"},
        {"text": "a" * 1_000_000},
        {"text": "a", "vendorId": "other"},
        {"text": None},
        {},
    ],
)
def test_a_thing_that_does_not_fit_its_noun_is_refused_and_nothing_is_written(data: dict[str, Any]) -> None:
    """Unknown columns, wrong types, NaN, NUL, other owners: a named error each."""

    class Keeper(Notebook):
        def keep(self, data: dict[str, Any]) -> None:
            self.things.create(Note, data)

    async def test(world: World) -> None:
        book = world.book()
        await book.begin()
        with pytest.raises(InvalidArgumentError):
            await book.keep(data)
        assert await book.texts() == []

    run(test, factory=Keeper)


def test_an_id_is_taken_once_and_unknown_nouns_and_things_are_named() -> None:
    """DuplicateError and InvalidArgumentError say so."""

    class Keeper(Notebook):
        def twice(self) -> None:
            for _ in range(2):
                self.things.create(Note, text="a", id="same")

        def unknown_noun(self) -> None:
            self.things.list("Ghost")

        def unknown_thing(self) -> None:
            self.things.update(Note, "nobody", text="x")

    async def test(world: World) -> None:
        book = world.book()
        await book.begin()
        with pytest.raises(DuplicateError):
            await book.twice()
        for call in (book.unknown_noun, book.unknown_thing):
            with pytest.raises(InvalidArgumentError):
                await call()

    run(test, factory=Keeper)


# -- isolation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "ATTACH 'other.db' AS other",
        "DETACH main",
        "CREATE TABLE extra(a)",
        "CREATE TEMP TABLE extra(a)",
        "CREATE VIEW v AS SELECT 1",
        "DROP TABLE notes",
        "DROP VIEW things",
        "ALTER TABLE notes ADD COLUMN c",
        "PRAGMA user_version = 9",
        "PRAGMA writable_schema = ON",
        "PRAGMA journal_mode = OFF",
        "REINDEX",
        "ANALYZE",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT mine",
        "SELECT load_extension('evil')",
        "UPDATE _vendor SET id = 'other'",
        "DELETE FROM _outbox",
        "INSERT INTO _inbox VALUES('a', 1, '', '')",
        "UPDATE sqlite_schema SET sql = ''",
        "INSERT INTO notes(id, vendorId, text) VALUES('x', 'other', 't')",
        "INSERT OR REPLACE INTO notes(id, vendorId, text) VALUES('x', NULL, 't')",
        "UPDATE notes SET vendorId = 'other'",
        "UPDATE notes SET VENDORID = 'other', text = 'b'",
        "INSERT INTO notes(id, vendorId, text) VALUES('a', 'acme', 't') ON CONFLICT DO UPDATE SET vendorId = 'other'",
    ],
)
def test_an_object_cannot_leave_its_own_rows_by_sql(statement: str) -> None:
    """SQLite's authorizer and the insert trigger deny it; what was there stays, and the object goes on."""

    async def test(world: World) -> None:
        book = world.book()
        await book.begin()
        await book.write("a")
        with pytest.raises(IsolationError):
            await book.sql_text(statement)
        assert await book.sql_text("SELECT vendorId, text FROM notes") == [("acme", "a")]
        assert await book.write("b")

    run(test)


def test_vacuum_is_refused_by_sqlite_itself_inside_a_request() -> None:
    """A request is a transaction, and VACUUM INTO would write a file."""

    async def test(world: World) -> None:
        book = world.book()
        await book.begin()
        for statement in ("VACUUM", "VACUUM INTO 'copy.db'"):
            with pytest.raises(SQLSyntaxError, match="transaction"):
                await book.sql_text(statement)

    run(test)


def test_a_query_reads_only_even_if_the_same_text_was_allowed_to_write_before() -> None:
    """The statement cache must not hand a query what was prepared for writing."""

    async def test(world: World) -> None:
        book = world.book()
        await book.begin()
        with pytest.raises(ReadOnlyError):
            await book.write_then_query("DELETE FROM notes")
        with pytest.raises(ReadOnlyError):
            await book.query_text("INSERT INTO notes(id, vendorId, text) VALUES('a', 'acme', 't') RETURNING id")
        with pytest.raises(UnsupportedQueryError):
            await book.query_text("SELECT 1; SELECT 2")
        with pytest.raises(SQLSyntaxError):
            await book.query_text("SELEC 1")
        for params in ([], [1, 2], "a", [float("nan")], [object()]):
            with pytest.raises(ParameterError):
                await book.query_text("SELECT ?", params)
        for text in ("", " ", "SELECT 1" + " " * 200_000):
            with pytest.raises(InvalidArgumentError):
                await book.query_text(text)

    run(test)


def test_an_objects_database_is_closed_to_it_outside_a_request() -> None:
    """A reference to the object does not give access to its rows."""
    with pytest.raises(ObjectError):
        Notebook("acme").sql.execute("SELECT 1")


# -- stubs ------------------------------------------------------------------------------------------------------


def test_a_chain_of_calls_is_one_round_trip_and_sequential_calls_are_one_each() -> None:
    """The count is the network's own."""

    async def test(world: World) -> None:
        book = world.book()
        await book.begin()
        await asyncio.gather(*(book.write(f"n{i}", weight=float(i)) for i in range(5)))
        before = world.network.stats.round_trips
        assert await book.shelf().heaviest() == "n4"
        assert world.network.stats.round_trips == before + 1
        for _ in range(5):
            await book.texts()
        assert world.network.stats.round_trips == before + 6

    run(test)


def test_calls_of_one_tick_to_one_destination_share_a_message() -> None:
    """A gather of many stubs costs one round trip per object."""

    async def test(world: World) -> None:
        await asyncio.gather(*(world.book(f"v{i % 3}").begin() for i in range(3)))
        before = world.network.stats.round_trips
        await asyncio.gather(*(world.book(f"v{i % 3}").write(f"n{i}") for i in range(30)))
        assert world.network.stats.round_trips == before + 3
        assert await world.book("v1").texts() == [f"n{i}" for i in range(1, 30, 3)]

    run(test)


def test_a_promise_can_be_an_argument_and_is_resolved_at_the_receiver() -> None:
    """The answer of one call feeds another in the same message, also inside lists and dicts."""

    class Echo(Notebook):
        def join(self, *parts: Any, more: Any = None) -> str:
            return f"{parts} {more}"

    async def test(world: World) -> None:
        book = world.book()
        await book.begin()
        before = world.network.stats.round_trips
        wrote = book.write("a")
        assert await book.join([wrote["text"]], more={"x": wrote["weight"]}) == "(['a'],) {'x': 1.0}"
        assert world.network.stats.round_trips == before + 1
        # An answer that has arrived, or that another object owes, is an argument just the same.
        known = book.texts()
        await known
        assert await book.join(known[0]) == "('a',) None"
        await world.book("other").begin()
        assert await world.book("other").join(book.texts()) == "(['a'],) None"

    run(test, factory=Echo)


def test_branches_of_a_shared_prefix_each_get_their_own_result_at_any_time() -> None:
    """Before the prefix is sent, while it is on its way, and after its answer came."""

    async def test(world: World) -> None:
        book = world.book()
        await book.begin()
        await book.write("a")
        shelf = book.shelf()
        assert await asyncio.gather(shelf.heaviest(), shelf.size) == ["a", 1]
        assert await shelf.heaviest() == "a"
        assert await shelf.size == 1
        wrote = book.write("b")
        early = wrote["text"]
        assert (await early, (await wrote)["text"], await wrote["vendorId"]) == ("b", "b", "acme")
        assert await book.texts() == ["a", "b"]  # reading further never repeated the write

    run(test)


def test_a_call_that_nobody_awaits_is_sent_at_the_next_tick() -> None:
    """Fire and forget: no waits, and all of it arrives."""

    async def test(world: World) -> None:
        book = world.book()
        await book.begin()
        for i in range(3):
            book.write(f"n{i}")
        await world.caller.drain()
        assert await book.texts() == ["n0", "n1", "n2"]

    run(test)


def test_the_error_of_a_call_that_nobody_awaits_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Never lost silently; an awaited one is raised and not counted; a kept promise is counted when it is dropped."""

    async def test(world: World) -> None:
        book = world.book()
        await book.begin()
        book.fail("first")
        await world.caller.drain()
        assert world.caller.lost_errors == 1
        assert world.caller.last_lost[0][:2] == ("vendor/acme", "fail")
        with pytest.raises(KeyError):
            await book.fail("second")
        kept = book.fail("third")
        await world.caller.drain()
        assert world.caller.lost_errors == 1
        del kept
        assert world.caller.lost_errors == 2
        assert await book.texts() == []

    with caplog.at_level(logging.ERROR, logger="mktsim.objects"):
        run(test)
    assert len(caplog.records) == 2


def test_an_answer_that_nobody_can_ask_for_is_not_sent_back() -> None:
    """The list stays at the receiver when only its first item is wanted."""
    shipped: list[Any] = []

    class Spy(InProcessNetwork):
        def call(self, source: str, target: str, message: Any) -> asyncio.Future[Any]:
            future = super().call(source, target, message)
            future.add_done_callback(lambda done: shipped.append([outcome.value for outcome in done.result()]))
            return future

    async def test(world: World) -> None:
        book = world.book()
        await book.begin()
        await book.write("a")
        assert await book.texts()[0] == "a"
        assert shipped[-1] == [None, "a"]

    run(test, network=Spy())


def test_dropped_promises_leave_nothing_behind() -> None:
    """Graph nodes are freed by reference counting alone."""

    async def test(world: World) -> None:
        book = world.book()
        await book.begin()
        promise = book.write("a")["text"]
        node = weakref.ref(promise._node)
        await promise
        await world.caller.drain()
        del promise
        await asyncio.sleep(0)
        assert node() is None

    gc.disable()
    try:
        run(test)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "name", ["sql", "things", "send", "id", "now", "next_serial", "nouns", "creators", "reserved", "missing", "rows"]
)
def test_only_declared_public_methods_are_open(name: str) -> None:
    """The platform's own names and unknown ones are refused by name, read or called, even where overridden."""

    async def test(world: World) -> None:
        book = world.book()
        await book.begin()
        with pytest.raises(NotCallableError):
            await getattr(book, name)
        with pytest.raises(NotCallableError):
            await getattr(book, name)()
        with pytest.raises(NotCallableError):
            await getattr(book.shelf(), name)
        for closed in (book.shelf().burn, book.shelf().secret, book.write):
            with pytest.raises(NotCallableError):
                await closed
        with pytest.raises(NotCallableError):
            await book.shelf().burn()

    run(test)


@pytest.mark.parametrize("name", ["_private", "__class__", "__init__", "_sql", "__dict__", "__reduce__"])
def test_names_with_an_underscore_are_refused_at_both_ends(name: str) -> None:
    """The stub never sends them, and a receiver that gets them by a forged message refuses."""

    async def test(world: World) -> None:
        book = world.book()
        await book.begin()
        if not hasattr(object, name):
            with pytest.raises(NotCallableError):
                getattr(book, name)
        for kind in ("call", "get"):
            steps = (Step(kind, -1, name),)  # type: ignore[arg-type]
            [outcome] = await world.network.call("test", "vendor/acme", CallMessage(steps))
            assert isinstance(outcome.error, NotCallableError)

    run(test)


def test_mistakes_with_stubs_have_named_errors() -> None:
    """Awaiting an object, wrong arguments, iterating, endless chains, no loop."""

    async def test(world: World) -> None:
        book = world.book()
        await book.begin()
        with pytest.raises(NotCallableError):
            await book
        with pytest.raises(ObjectError, match="stays with"):
            await book.shelf()
        with pytest.raises(InvalidArgumentError):
            await book.write()
        with pytest.raises(InvalidArgumentError):
            await book.write("a", colour="red")
        with pytest.raises(InvalidArgumentError):
            await book.texts()[99]
        with pytest.raises(InvalidArgumentError):
            book.write(world.book("other"))
        with pytest.raises(NotCallableError):
            list(book.texts())
        with pytest.raises(NotCallableError):
            book()
        with pytest.raises(InvalidArgumentError, match="chain"):
            functools.reduce(lambda promise, _: promise[0], range(200), book.texts())
        with pytest.raises(UnknownVendorError):
            await world.book("nobody").texts()
        with pytest.raises(VendorDownError):
            await world.caller.stub("nowhere").texts()
        assert "nobody" not in world.store
        assert repr(book.shelf().size) == "<stub 'vendor/acme'.shelf(...).size>"

    run(test)
    with pytest.raises(ObjectError, match="event loop"):
        Caller(InProcessNetwork(), "test").stub("vendor/acme").write("a")


# -- requests ---------------------------------------------------------------------------------------------------


def test_an_object_serves_one_request_at_a_time() -> None:
    """A coroutine method keeps the object to itself across its awaits, so no update is lost."""

    async def test(world: World) -> None:
        await world.book().begin()

        async def one(i: int) -> Any:
            return await Caller(world.network, f"c{i}").stub("vendor/acme").slowly(f"n{i}")

        assert sorted(await asyncio.gather(*(one(i) for i in range(20)))) == list(range(20))

    run(test)


def test_a_full_queue_is_refused_by_name() -> None:
    """Past the bound, a request fails at once and the ones before it are served."""

    async def test(world: World) -> None:
        await world.book().begin()
        callers = [Caller(world.network, f"c{i}") for i in range(8)]
        results = await asyncio.gather(
            *(caller.stub("vendor/acme").slowly("x") for caller in callers), return_exceptions=True
        )
        assert [type(result) for result in results] == [int] * 5 + [OverloadedError] * 3

    run(test, queue_limit=5)


def test_a_failed_request_leaves_nothing_and_a_failed_step_undoes_itself_alone() -> None:
    """Alone, a failing call is a rolled back transaction; in a message with others it is undone and they stand."""

    async def test(world: World) -> None:
        book = world.book()
        await book.begin()
        version = world.store.version("acme")
        with pytest.raises(KeyError):
            await book.fail()
        assert world.store.version("acme") == version
        results = await asyncio.gather(book.write("a"), book.fail("lost"), book.write("b"), return_exceptions=True)
        assert isinstance(results[1], KeyError)
        assert await book.texts() == ["a", "b"]
        await world.host.pump.idle()
        assert world.host.pump.delivered == 0  # the failing step's event went with it

    run(test)


def test_a_call_that_would_wait_for_itself_is_refused() -> None:
    """A awaits B, which awaits A: an error instead of a standstill."""

    async def test(world: World) -> None:
        class Chain(Notebook):
            async def around(self, *path: str) -> str:
                return str(await world.book(path[0]).around(*path[1:])) if path else self.id

        world.host._factory = Chain
        await asyncio.gather(world.book("a").begin(), world.book("b").begin())
        assert await world.book("a").around("b") == "b"
        with pytest.raises(ObjectError, match="wait for itself"):
            await world.book("a").around("b", "a")

    run(test)


def test_an_object_whose_creation_fails_does_not_exist() -> None:
    """The database goes with the request that was to begin it."""

    class Picky(Notebook):
        def begin(self) -> str:
            raise InvalidArgumentError("no")

    async def test(world: World) -> None:
        with pytest.raises(InvalidArgumentError, match="no"):
            await world.book().begin()
        assert "acme" not in world.store
        with pytest.raises(UnknownVendorError):
            await world.book().texts()

    run(test, factory=Picky)


def test_idle_objects_are_forgotten_and_come_back() -> None:
    """The number of live objects is bounded; their rows are not in them."""

    async def test(world: World) -> None:
        world.host._active_limit = 4
        for i in range(20):
            await world.book(f"v{i}").begin()
            await world.book(f"v{i}").write("a")
        assert len(world.host._active) <= 4
        assert await world.book("v0").texts() == ["a"]

    run(test)


# -- events -----------------------------------------------------------------------------------------------------


def test_an_event_is_delivered_until_every_handler_has_run() -> None:
    """A handler that fails twice hears of it three times; then the outbox is empty."""
    heard: list[str] = []

    async def test(world: World) -> None:
        @world.on.Note.written
        async def handler(event: Event) -> None:
            heard.append(f"{event.id} {event.data['text']}")
            if len(heard) < 3:
                raise ConnectionError("again")

        book = world.book()
        await book.begin()
        seq = await book.tell("hello")
        await world.host.pump.idle()
        assert heard == [f"vendor/acme#{seq} hello"] * 3
        with world.store.read("acme") as connection:
            assert connection.execute("SELECT COUNT(*) FROM _outbox").get == 0

    run(test)


def test_the_effect_of_an_event_happens_once_however_often_it_is_delivered() -> None:
    """Acknowledgements are lost; the receiver's inbox answers for the calls that were made before."""

    class LosesAcknowledgements(InProcessNetwork):
        def call(self, source: str, target: str, message: Any) -> asyncio.Future[Any]:
            future = super().call(source, target, message)
            if target != "market":
                return future

            async def lost() -> None:
                await future
                lost_count.append(1)
                if len(lost_count) % 3:
                    raise VendorDownError("the acknowledgement was lost", vendor_id=target)

            return asyncio.ensure_future(lost())

    lost_count: list[int] = []

    async def test(world: World) -> None:
        @world.on.Note.written
        async def copy(event: Event) -> None:
            wrote = await world.book("copy").write(event.data["text"])
            assert wrote["text"] == event.data["text"]

        await asyncio.gather(world.book().begin(), world.book("copy").begin())
        for i in range(40):
            await world.book().tell(f"n{i}")
            if i % 4 == 3:
                await world.host.pump.idle()
        assert len(lost_count) == 120
        assert await world.book("copy").texts() == [f"n{i}" for i in range(40)]
        with world.store.read("copy") as connection:  # keys of settled events are forgotten
            assert connection.execute("SELECT COUNT(*) FROM _inbox WHERE seq >= 0").get <= 20

    run(test, network=LosesAcknowledgements())


def test_a_copy_of_an_event_that_was_settled_long_ago_changes_nothing() -> None:
    """The network may hand over a duplicate after the receiver has forgotten its key: the floor still refuses it."""

    async def test(world: World) -> None:
        @world.on.Note.written
        async def copy(event: Event) -> None:
            await world.book("copy").write(event.data["text"])

        await asyncio.gather(world.book().begin(), world.book("copy").begin())
        seqs = [await world.book().tell(f"n{i}") for i in range(20)]
        await world.host.pump.idle()
        await world.book().tell("n20")
        await world.host.pump.idle()
        late = EventMessage("vendor/acme", seqs[0], "Note.written", '{"text": "n0"}', seqs[0])
        with pytest.raises(ObjectError, match="settled"):
            await world.network.call("vendor/acme", "market", late)
        assert await world.book("copy").texts() == [f"n{i}" for i in range(21)]

    run(test)


def test_an_event_counts_as_settled_only_when_its_deletion_is_on_disk() -> None:
    """Else a crash could bring it back after its receivers have forgotten its key."""
    told: list[tuple[int, int]] = []

    class Overheard(InProcessNetwork):
        def call(self, source: str, target: str, message: Any) -> asyncio.Future[Any]:
            if isinstance(message, EventMessage):
                told.append((message.seq, message.settled))
            return super().call(source, target, message)

    async def test(world: World) -> None:
        book = world.book()
        await book.begin()
        first, second = await asyncio.gather(book.tell("a"), book.tell("b"))  # one request, one lane
        while world.host.pump.delivered < 2:
            await asyncio.sleep(0)
        with world.store.read("acme") as connection:
            assert connection.execute("SELECT COUNT(*) FROM _outbox").get == 2
        third = await book.tell("c")  # whose transaction deletes the first two
        with world.store.read("acme") as connection:
            assert connection.execute("SELECT seq FROM _outbox").fetchall() == [(third,)]
        await world.host.pump.idle()
        assert told == [(first, first), (second, first), (third, third)]

    run(test, policy=RetryPolicy(settle_s=1_000.0), network=Overheard())


def test_a_closing_host_writes_what_was_delivered(tmp_path: Path) -> None:
    """Delivered events are not delivered again after an orderly end, however lazily they are deleted."""
    heard: list[str] = []

    async def test(world: World) -> None:
        world.on.Note.written(lambda event: heard.append(event.data["text"]))
        if not heard:
            await world.book().begin()
            await world.book().tell("a")
        world.host.resume()
        while world.host.pump.delivered < 1 and not heard:
            await asyncio.sleep(0)

    run(test, path=tmp_path, policy=RetryPolicy(settle_s=1_000.0))
    run(test, path=tmp_path)
    assert heard == ["a"]


def test_events_of_one_lane_keep_their_order_and_lanes_do_not_wait_for_each_other() -> None:
    """A failing event holds back its own lane only."""
    heard: list[str] = []
    blocked = True

    async def test(world: World) -> None:
        nonlocal blocked

        @world.on.Note.written
        def handler(event: Event) -> None:
            if event.data["text"] == "a0" and blocked:
                raise ConnectionError("not yet")
            heard.append(event.data["text"])

        book = world.book()
        await book.begin()
        for i in range(3):
            await book.tell(f"a{i}", lane="a")
            await book.tell(f"b{i}", lane="b")
        await asyncio.sleep(0.005)
        assert heard == ["b0", "b1", "b2"]
        blocked = False
        await world.host.pump.idle()
        assert heard[3:] == ["a0", "a1", "a2"]

    run(test, policy=RetryPolicy(max_attempts=50, base_s=0.001, cap_s=0.002))


def test_an_event_that_cannot_be_delivered_becomes_a_dead_letter_that_can_be_replayed() -> None:
    """It keeps its error, its lane goes on, and a replay delivers it."""
    heard: list[str] = []
    broken = True

    async def test(world: World) -> None:
        nonlocal broken

        @world.on.Note.written
        def handler(event: Event) -> None:
            if broken and event.data["text"] == "bad":
                raise ValueError("indigestible")
            heard.append(event.data["text"])

        book = world.book()
        await book.begin()
        seq = await book.tell("bad")
        await book.tell("good")
        await world.host.pump.idle()
        assert heard == ["good"]
        [letter] = world.host.dead_letters()
        assert (letter["sender"], letter["seq"], letter["error"]) == ("acme", seq, "ValueError: indigestible")
        broken = False
        with pytest.raises(InvalidArgumentError):
            await world.host.replay("acme", seq + 100)
        await world.host.replay("acme", seq)
        await world.host.pump.idle()
        assert heard == ["good", "bad"]
        assert world.host.dead_letters() == []

    run(test, policy=RetryPolicy(max_attempts=2, base_s=0.001))


def test_events_that_were_not_delivered_are_found_again_after_a_restart(tmp_path: Path) -> None:
    """The outbox is on disk, and the ledger knows whose."""
    heard: list[str] = []

    async def first(world: World) -> None:
        @world.on.Note.written
        def handler(event: Event) -> None:
            raise ConnectionError("down")

        await asyncio.gather(world.book("a").begin(), world.book("b").begin(), world.book("quiet").begin())
        await world.book("a").tell("from a")
        await world.book("b").tell("from b")

    async def second(world: World) -> None:
        world.on.Note.written(lambda event: heard.append(event.data["text"]))
        assert world.host.resume() == 2
        await world.host.pump.idle()
        assert sorted(heard) == ["from a", "from b"]

    async def third(world: World) -> None:
        assert world.host.resume() == 0
        assert world.host._ledger.ids() == []

    run(first, path=tmp_path)
    run(second, path=tmp_path)
    run(third, path=tmp_path)


@pytest.mark.parametrize(
    ("event", "data"),
    [
        ("order", {}),
        ("Order.", {}),
        ("Order.placed; DROP", {}),
        (None, {}),
        ("Order.placed", []),
        ("Order.placed", {"a": float("nan")}),
        ("Order.placed", {"a": object()}),
    ],
)
def test_malformed_events_are_refused(event: Any, data: Any) -> None:
    """Names are ``Noun.verb`` and data is JSON; nothing is sent."""

    class Sender(Notebook):
        def emit(self, event: Any, data: Any) -> None:
            self.send(event, data)

    async def test(world: World) -> None:
        book = world.book()
        await book.begin()
        with pytest.raises(InvalidArgumentError):
            await book.emit(event, data)
        await world.host.pump.idle()
        assert world.host.pump.delivered == 0

    run(test, factory=Sender)


def test_subscriptions_refuse_what_is_no_handler() -> None:
    """A handler is callable and an event has a name."""
    on = Subscriptions()
    with pytest.raises(InvalidArgumentError):
        on.Order.placed(None)  # type: ignore[arg-type]
    with pytest.raises(MktsimError):
        on.add("placed", print)


# -- alarms, deadlines, limits --------------------------------------------------------------------------------------


class Sleeper(Notebook):
    """A notebook that writes when its alarm rings."""

    broken = 0

    def wake_at(self, at_s: Any) -> float | None:
        self.set_alarm(at_s)
        return self.alarm_at_s()

    def alarm(self) -> None:
        if type(self).broken:
            type(self).broken -= 1
            raise ConnectionError("not awake yet")
        self.tell(f"rang after {self.now_s:.0f} s")

    async def wait(self, seconds: float) -> None:
        self.write("waiting")
        await asyncio.sleep(seconds)


def test_an_alarm_rings_once_in_a_request_of_its_own_and_again_if_it_fails() -> None:
    """What it writes and sends is one transaction; setting it anew or to None replaces it."""
    heard: list[str] = []

    async def test(world: World) -> None:
        world.on.Note.written(lambda event: heard.append(event.data["text"]))
        for name in ("a", "b", "c"):
            await world.book(name).begin()
        Sleeper.broken = 2
        assert await world.book("a").wake_at(30.0) == 30.0
        await world.book("b").wake_at(10.0)
        await world.book("b").wake_at(None)
        await world.book("c").wake_at(50.0)
        await world.book("c").wake_at(20.0)
        for bad in (float("nan"), float("inf"), "soon", True):
            with pytest.raises(InvalidArgumentError):
                await world.book("a").wake_at(bad)
        await asyncio.sleep(100.0)
        await world.host.pump.idle()
        assert heard == ["rang after 20 s", "rang after 30 s"]
        assert await world.book("b").texts() == []
        with world.store.read("a") as connection:
            assert connection.execute("SELECT alarm FROM _vendor").get is None

    run_simulated(test, factory=Sleeper)


def test_an_alarm_survives_a_restart(tmp_path: Path) -> None:
    """It is in the database, and the ledger knows whose."""

    async def first(world: World) -> None:
        await world.book().begin()
        world.host._clock = lambda: 1_000.0
        await world.book().wake_at(2_000.0)

    async def second(world: World) -> None:
        world.host._clock = world.host.alarms._clock = lambda: 3_000.0
        assert world.host.resume() == 0
        await asyncio.sleep(0.05)
        assert await world.book().texts() == ["rang after 3000 s"]

    run(first, path=tmp_path, factory=Sleeper)
    run(second, path=tmp_path, factory=Sleeper)


def run_simulated(test: Callable[[World], Awaitable[None]], **options: Any) -> None:
    """Run a coroutine in a world in memory, on simulated time."""

    async def body() -> None:
        with (
            open_store("memory", None, object_schema(Note), shards=["s"], locate=lambda _: "s") as store,
            open_store("memory", None, SYSTEM, shards=["s"], locate=lambda _: "s") as system,
        ):
            world = World(store, system, **options)
            try:
                await test(world)
                await world.caller.drain()
            finally:
                await world.host.close()

    sim_run(body())


def test_a_deadline_travels_with_the_call_and_undoes_what_it_interrupts() -> None:
    """The caller gets a named error in time; the receiver, and whoever that called in turn, has written nothing."""

    class Middle(Sleeper):
        world: Any

        async def through(self) -> None:
            self.write("through")
            await self.world.book("far").wait(100.0)

    async def test(world: World) -> None:
        Middle.world = world
        await asyncio.gather(world.book().begin(), world.book("far").begin())
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        with pytest.raises(VendorTimeoutError), deadline(5.0):
            with deadline(50.0):  # an inner deadline can only be earlier
                await world.book().through()
        assert loop.time() == start_s + 5.0
        await asyncio.sleep(0)
        assert await world.book("far").texts() == await world.book().texts() == []
        with deadline(500.0):
            await world.book().through()
        assert await world.book("far").texts() == ["waiting"]
        for bad in (0, -1, float("nan"), "1", True):
            with pytest.raises(InvalidArgumentError):
                with deadline(bad):
                    pass

    run_simulated(test, factory=Middle)


def test_cancelling_who_awaits_cancels_the_call_unless_others_share_its_message() -> None:
    """What nobody waits for any more is undone; a fire-and-forget call in the same message still happens."""

    async def test(world: World) -> None:
        book = world.book()
        await book.begin()
        alone = asyncio.ensure_future(_awaited(book.wait(10.0)))
        await asyncio.sleep(1.0)
        alone.cancel()
        await asyncio.sleep(1.0)
        assert await book.texts() == []
        book.write("kept")
        shared = asyncio.ensure_future(_awaited(book.wait(10.0)))
        await asyncio.sleep(1.0)
        shared.cancel()
        await asyncio.sleep(20.0)
        assert await book.texts() == ["kept", "waiting"]
        assert world.caller.lost_errors == 0

    run_simulated(test, factory=Sleeper)


async def _awaited(promise: Any) -> Any:
    return await promise


def test_round_trips_and_bytes_are_the_same_live_and_simulated() -> None:
    """Sequential N, fire-and-forget no waits, pipelined 1: the same counts over a network that takes time.

    Bytes too: a chain in one message costs less than its calls one by one, in both directions.
    """

    def counts(simulated: bool) -> dict[str, tuple[int, int, int, bool]]:
        found: dict[str, tuple[int, int, int, bool]] = {}

        async def body() -> None:
            loop = asyncio.get_running_loop()
            if simulated:
                inner: Any = SimNetwork(loop, load_preset("same-zone").world, Streams(3))  # type: ignore[arg-type]
            else:
                inner = InProcessNetwork()
            network = Metered(inner)
            with (
                open_store("memory", None, object_schema(Note), shards=["s"], locate=lambda _: "s") as store,
                open_store("memory", None, SYSTEM, shards=["s"], locate=lambda _: "s") as system,
            ):
                world = World(store, system, network=network)
                book = world.book()
                await book.begin()
                stats = network.stats

                async def measured(name: str, work: Callable[[], Any]) -> None:
                    before, start_s = (stats.round_trips, stats.request_bytes, stats.answer_bytes), loop.time()
                    result = work()
                    if result is not None:
                        await result
                    waited = loop.time() > start_s
                    await world.caller.drain()
                    after = stats.round_trips, stats.request_bytes, stats.answer_bytes
                    trips, sent, received = (now - then for now, then in zip(after, before, strict=True))
                    found[name] = (trips, sent, received, waited and simulated)

                async def sequential() -> None:
                    for _ in range(7):
                        await book.write("a")

                def forgotten() -> None:
                    for _ in range(7):
                        book.write("b")

                async def one_by_one() -> None:
                    await book.write(await book.shelf().heaviest())

                await measured("sequential", sequential)
                await measured("forgotten", forgotten)
                await measured("chain", lambda: book.shelf().heaviest())
                await measured("one by one", one_by_one)
                await measured("pipelined", lambda: book.write(book.shelf().heaviest()))
                with pytest.raises(InvalidArgumentError):
                    await measured("refused", lambda: book.write(5))
                assert len(await book.texts()) == 16
                await world.host.close()

        (sim_run if simulated else asyncio.run)(body())
        return found

    live, simulated = counts(simulated=False), counts(simulated=True)
    assert {name: row[:3] for name, row in live.items()} == {name: row[:3] for name, row in simulated.items()}
    trips = {name: (row[0], row[3]) for name, row in simulated.items()}
    assert trips == {
        "sequential": (7, True),
        "forgotten": (1, False),
        "chain": (1, True),
        "one by one": (2, True),
        "pipelined": (1, True),
    }
    for bytes_of in (1, 2):
        assert 0 < live["pipelined"][bytes_of] < live["one by one"][bytes_of]
        assert live["forgotten"][bytes_of] < live["sequential"][bytes_of]
    call = {
        "$": "CallMessage",
        "steps": [{"$": "Step", "kind": "call", "target": -1, "name": "shelf", "wanted": False}],
    }
    call["steps"].append({"$": "Step", "kind": "call", "target": 0, "name": "heaviest"})  # type: ignore[attr-defined]
    answer = [[{"$": "Outcome", "capability": True}, {"$": "Outcome", "value": "a"}]]
    request = ["vendor/acme", call]
    assert live["chain"][1:3] == tuple(
        8 + len(json.dumps(each, separators=(",", ":"))) for each in (request, answer)
    ), "the codec is the one that is written down"


@pytest.mark.parametrize(
    "message", [float("nan"), {1: 2, (3, 4): {5}}, [Notebook], b"\0", {"é": "\ud800"}, ValueError("x")]
)
def test_every_message_has_a_size_and_what_cannot_travel_is_named(message: Any) -> None:
    """What JSON cannot say is pickled."""
    assert encoded(message) == encoded(message) != b""
    with pytest.raises(InvalidArgumentError, match="cannot travel"):
        encoded([message, lambda: None])


def test_a_reference_names_a_thing_that_is_there() -> None:
    """SQLite refuses a dangling one; NULL is none."""
    Tag = noun("Tag", {"noteId": "TEXT", "word": "TEXT DEFAULT 'new'"}, references={"noteId": Note})

    class Keeper(Notebook):
        nouns = (Note, Tag)

        def tag(self, note_id: str | None) -> Any:
            return self.things.create(Tag, noteId=note_id)["word"]

    async def body() -> None:
        with (
            open_store("memory", None, object_schema(Note, Tag), shards=["s"], locate=lambda _: "s") as store,
            open_store("memory", None, SYSTEM, shards=["s"], locate=lambda _: "s") as system,
        ):
            world = World(store, system, factory=Keeper)
            book = world.book()
            await book.begin()
            assert await book.tag((await book.write("a"))["id"]) == "new"
            assert await book.tag(None) == "new"
            with pytest.raises(InvalidArgumentError, match="FOREIGN KEY"):
                await book.tag("ghost")
            await world.host.close()

    asyncio.run(body())
    with pytest.raises(InvalidArgumentError):
        noun("Tag", {"word": "TEXT"}, references={"noteId": Note})


@pytest.mark.parametrize("network", [3, None, InProcessNetwork])
def test_only_a_network_is_metered(network: Any) -> None:
    """Refused when made, not at the first call."""
    with pytest.raises(InvalidArgumentError, match="put around a Network"):
        Metered(network)
