"""Policies of a scatter: what each does, when, and that none of them changes an answer.

Times are exact: the scanners sleep on the simulated clock, where a computation takes no time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from mktsim.errors import (
    IncompleteAnswerError,
    InvalidArgumentError,
    OverloadedError,
    QueryError,
    VendorDownError,
    VendorError,
    VendorTimeoutError,
)
from mktsim.fanout import (
    Aggregator,
    Breaker,
    Histogram,
    QueryCoordinator,
    Scanner,
    ScatterPolicy,
    ScatterRequest,
    prepare,
    store_scanners,
    tree,
)
from mktsim.fanout.policy import Circuits, RetryBudget
from mktsim.fanout.scanner import ShardScanner
from mktsim.network import InProcessNetwork
from mktsim.sim.loop import sim_run
from mktsim.sql import Schema
from mktsim.sqlite import connect
from mktsim.storage import open_store
from mktsim.streams import Streams
from mktsim.testing import Grammar, check_statement, typed

DDL = "CREATE TABLE t(a INTEGER, b TEXT)"
SCHEMA = Schema((DDL,))
COUNT = "SELECT COUNT(*) FROM t"
ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT COUNT(*) FROM c"


class Vendor:
    """A vendor whose n-th call takes the n-th delay, or raises it where it is an error; the last one repeats."""

    def __init__(self, *steps: float | Exception, rows: int = 1) -> None:
        self.steps = steps
        self.rows = rows
        self.begun: list[float] = []
        self.cancelled = 0

    async def __call__(self, sql: str, params: Any) -> list[tuple[int]]:
        step = self.steps[min(len(self.begun), len(self.steps) - 1)]
        self.begun.append(asyncio.get_running_loop().time())
        if isinstance(step, Exception):
            raise step
        try:
            await asyncio.sleep(step)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [(self.rows,)]


def run(
    vendors: dict[str, Vendor], use: Callable[[QueryCoordinator], Any], **options: Any
) -> tuple[Any, float, QueryCoordinator]:
    """Use a coordinator over vendors on the simulated clock; return the result, when it came, and the coordinator."""

    async def scenario() -> tuple[Any, float, QueryCoordinator]:
        made = QueryCoordinator([Scanner(*item) for item in vendors.items()], schema=SCHEMA, **options)
        try:
            result = await use(made)
            return result, asyncio.get_running_loop().time(), made
        finally:
            made.close()

    return sim_run(scenario())


def count(made: QueryCoordinator) -> Any:
    """Ask how many rows there are."""
    return made.query(COUNT)


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"deadline_s": 0},
        {"deadline_s": float("nan")},
        {"attempt_timeout_s": -1},
        {"retries": -1},
        {"retries": 1.5},
        {"retries": True},
        {"backoff_s": float("nan")},
        {"retry_budget": -0.1},
        {"hedge_after_s": "soon"},
        {"hedge_quantile": 1.0},
        {"hedge_quantile": 0},
        {"tied": True},
        {"tied": 1, "hedge_after_s": 1},
        {"window": 0},
        {"max_in_flight": 0},
        {"breaker": 3},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_by_name(values):
    """Whole validation before any work."""
    with pytest.raises(InvalidArgumentError):
        ScatterPolicy(**values)


def test_breakers_trees_and_replicas_are_checked_when_given():
    """Zero failures, a tree of width 1, replicas of nobody."""
    for values in ({"failures": 0}, {"open_s": 0.0}, {"probes": 0}):
        with pytest.raises(InvalidArgumentError):
            Breaker(**values)
    scanners = [Scanner("a", print), Scanner("b", print)]
    for width in (1, 0, -3, 2.5, True):
        with pytest.raises(InvalidArgumentError):
            tree(scanners, width)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        QueryCoordinator(scanners, replicas={"nobody": ["x"]})
    with pytest.raises(InvalidArgumentError):
        QueryCoordinator(scanners, policy="fast")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        Aggregator("empty", [])
    with pytest.raises(InvalidArgumentError):
        Scanner("a", print, workers=0)


# -- retries -----------------------------------------------------------------------------------------------------------


def test_a_failed_attempt_is_made_again_after_a_keyed_share_of_the_back_off():
    """Full jitter: the n-th pause is a uniform share of backoff * 2**n, a function of seed, query and vendor alone."""
    down = ConnectionError("gone")
    vendors = {"a": Vendor(0.0), "b": Vendor(down, down, 0.5)}
    policy = ScatterPolicy(retries=3, backoff_s=1.0, backoff_cap_s=100.0)
    answer, end_s, _ = run(vendors, count, policy=policy, streams=Streams(7))
    assert answer.rows == [(2,)]
    assert answer.stats.calls == 4
    shares = [Streams(7).uniform_at(f"retry/{attempt}", 1, 1) for attempt in range(2)]
    assert vendors["b"].begun == [0.0, shares[0], shares[0] + 2 * shares[1]]
    assert end_s == vendors["b"].begun[-1] + 0.5
    again = {"a": Vendor(0.0), "b": Vendor(down, down, 0.5)}
    run(again, count, policy=policy, streams=Streams(8))
    assert again["b"].begun != vendors["b"].begun


def test_a_statement_that_fails_is_not_retried():
    """It fails wherever it runs."""
    vendors = {"a": Vendor(QueryError("no such thing"))}
    with pytest.raises(QueryError):
        run(vendors, count, policy=ScatterPolicy(retries=5))
    assert len(vendors["a"].begun) == 1


def test_retries_stop_at_the_deadline_and_name_what_failed():
    """A pause that would end after the deadline is not begun."""
    vendors = {"a": Vendor(ConnectionError("gone"))}
    policy = ScatterPolicy(retries=1000, backoff_s=1.0, deadline_s=3.0)
    with pytest.raises(IncompleteAnswerError, match="gone") as caught:
        run(vendors, count, policy=policy)
    assert isinstance(caught.value.__cause__, VendorDownError)
    assert len(vendors["a"].begun) < 20


def test_the_retry_budget_keeps_retries_a_share_of_calls():
    """A hundred failing vendors get the reserve of ten and a fifth of their number, no more."""
    vendors = {f"v{i:03d}": Vendor(ConnectionError("gone")) for i in range(100)}
    policy = ScatterPolicy(retries=5, backoff_s=0.001, retry_budget=0.2)
    with pytest.raises(IncompleteAnswerError):
        run(vendors, count, policy=policy)
    assert sum(len(vendor.begun) for vendor in vendors.values()) == 100 + 10 + 20
    budget = RetryBudget()
    for _ in range(1000):
        budget.deposit(100, 0.2)
    assert budget.tokens == 30  # What earlier queries left over does not pile up.


def test_an_attempt_that_takes_too_long_is_cancelled_and_made_again():
    """A lost message is sent again, long before the deadline."""
    vendors = {"a": Vendor(1e9, 0.5)}
    policy = ScatterPolicy(retries=1, backoff_s=0.0, attempt_timeout_s=2.0)
    answer, end_s, _ = run(vendors, count, policy=policy)
    assert (answer.rows, end_s, vendors["a"].cancelled) == ([(1,)], 2.5, 1)


# -- hedges and tied requests ------------------------------------------------------------------------------------------


def test_a_hedge_is_sent_after_the_delay_and_the_first_answer_counts_once():
    """The straggler's second copy answers at 1 + 0.25 s; the first is cancelled."""
    vendors = {"a": Vendor(0.5), "slow": Vendor(9.0, 0.25, rows=5)}
    answer, end_s, _ = run(vendors, count, policy=ScatterPolicy(hedge_after_s=1.0))
    assert (answer.rows, end_s, answer.stats.calls) == ([(6,)], 1.25, 3)
    assert vendors["slow"].begun == [0.0, 1.0]
    assert vendors["slow"].cancelled == 1


def test_a_hedge_goes_to_a_replica_where_there_is_one():
    """And its answer stands in the vendor's own place."""
    primary, replica = Vendor(9.0), Vendor(0.25)
    vendors = {"a": Vendor(0.0), "b": primary}
    answer, end_s, _ = run(
        vendors, count, policy=ScatterPolicy(hedge_after_s=1.0), replicas={"b": [Scanner("b2", replica)]}
    )
    assert (end_s, len(primary.begun), replica.begun, answer.rows) == (1.25, 1, [1.0], [(2,)])


def test_a_failed_first_copy_leaves_the_answer_to_the_second():
    """The scatter waits for the copy that is left before it fails or retries."""

    class FailsLater(Vendor):
        async def __call__(self, sql: str, params: Any) -> list[tuple[int]]:
            answer = await super().__call__(sql, params)
            if len(self.begun) and self.begun[0] == 0.0 and asyncio.get_running_loop().time() == 2.0:
                raise ConnectionError("gone")
            return answer

    vendors = {"a": FailsLater(2.0, 3.0)}
    answer, end_s, _ = run(vendors, count, policy=ScatterPolicy(hedge_after_s=1.0))
    assert (answer.rows, end_s) == ([(1,)], 4.0)


def test_the_hedge_delay_can_be_an_observed_quantile():
    """Until enough was observed nothing is hedged; then what is slower than the quantile is."""
    vendors = {f"v{i:02d}": Vendor(0.01 * (i + 1)) for i in range(30)}
    vendors["late"] = Vendor(0.01, 5.0, 0.02)

    async def thrice(made: QueryCoordinator) -> list[float]:
        times = []
        for _ in range(2):
            start = asyncio.get_running_loop().time()
            await count(made)
            times.append(asyncio.get_running_loop().time() - start)
        return times

    times, _, made = run(vendors, thrice, policy=ScatterPolicy(hedge_quantile=0.9))
    assert times[0] == pytest.approx(0.3)
    assert 0.27 <= times[1] <= 0.40  # the 0.9-quantile of 0.01 to 0.30 s, a bucket's 9 % above at most, and 0.02
    assert made._node.observed.count == 62


def test_tied_requests_run_once_unless_both_start_at_once():
    """The copy that starts withdraws the one that still waits in line at the other host."""
    primary, replica = Vendor(3.0), Vendor(10.0, 5.0)

    async def scenario() -> tuple[float, Any]:
        first = Scanner("a", primary, workers=1)
        second = Scanner("a2", replica, workers=1)
        made = QueryCoordinator([first], schema=SCHEMA, replicas={"a": [second]})
        loop = asyncio.get_running_loop()
        # The primary is busy for 3 s.
        blockers = [asyncio.ensure_future(second.execute(COUNT)), asyncio.ensure_future(made.query(COUNT))]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        start = loop.time()
        answer = await made.query(COUNT, policy=ScatterPolicy(hedge_after_s=0.5, tied=True))
        took = loop.time() - start
        for blocker in blockers:
            blocker.cancel()
        await asyncio.gather(*blockers, return_exceptions=True)
        made.close()
        return took, answer

    took, answer = sim_run(scenario())
    # The replica's line is not held by the blocker (it was called directly), so its copy starts at 0.5 s, takes 5 s,
    # and withdraws the copy that would have started at the primary at 3 s.
    assert (took, answer.rows, answer.stats.calls) == (5.5, [(1,)], 2)
    assert len(primary.begun) == 1
    assert len(replica.begun) == 2


def test_a_tied_twin_that_arrives_after_its_first_copy_started_is_withdrawn():
    """The first copy starts at once and tells the replica, which then drops the second: it never runs."""
    primary, replica = Vendor(3.0), Vendor(0.1)
    answer, end_s, _ = run(
        {"a": primary},
        count,
        policy=ScatterPolicy(hedge_after_s=0.5, tied=True),
        replicas={"a": [Scanner("a2", replica)]},
    )
    assert (answer.rows, end_s, replica.begun) == ([(1,)], 3.0, [])


def test_a_tied_pair_of_which_the_started_copy_dies_is_retried():
    """Its twin was withdrawn, so nobody would answer: that is a failed attempt like any other."""
    primary, replica = Vendor(ConnectionError("died"), 0.0), Vendor(0.25)
    answer, _, _ = run(
        {"a": primary},
        count,
        policy=ScatterPolicy(hedge_after_s=0.5, tied=True, retries=1, backoff_s=0.0),
        replicas={"a": [Scanner("a2", replica)]},
    )
    assert answer.rows == [(1,)]


# -- windows, breakers, load -------------------------------------------------------------------------------------------


def test_the_window_caps_calls_in_flight():
    """Seven calls of a second, three at a time: three rounds."""
    vendors = {f"v{i}": Vendor(1.0) for i in range(7)}
    answer, end_s, _ = run(vendors, count, policy=ScatterPolicy(window=3))
    assert (answer.rows, end_s) == ([(7,)], 3.0)
    assert sorted(vendor.begun[0] for vendor in vendors.values()) == [0, 0, 0, 1, 1, 1, 2]


def test_a_breaker_opens_after_failures_lets_a_probe_through_and_closes_on_its_success():
    """Three failures open it; while open the vendor is not asked; after 10 s one probe closes it."""
    down = ConnectionError("gone")
    vendors = {"a": Vendor(0.0), "b": Vendor(down, down, down, 0.0)}
    policy = ScatterPolicy(breaker=Breaker(failures=3, open_s=10.0))

    async def story(made: QueryCoordinator) -> list[int]:
        asked = []
        for pause in (0, 0, 0, 1, 1, 9, 0):
            await asyncio.sleep(pause)
            with contextlib.suppress(IncompleteAnswerError):
                await count(made)
            asked.append(len(vendors["b"].begun))
        return asked

    asked, _, made = run(vendors, story, policy=policy)
    assert asked == [1, 2, 3, 3, 3, 4, 5]
    assert not made._node.circuits.open


def test_a_half_open_breaker_lets_no_more_than_its_probes_through_and_opens_again_on_a_failure():
    """The state machine by itself."""
    circuits, breaker = Circuits(), Breaker(failures=2, open_s=5.0, probes=1)
    for now_s in (0.0, 1.0):
        assert circuits.admit("x", breaker, now_s)
        circuits.failed("x", breaker, now_s)
    assert not circuits.admit("x", breaker, 5.9)
    assert circuits.admit("x", breaker, 6.0)
    assert not circuits.admit("x", breaker, 6.0)
    circuits.given_up("x")
    assert circuits.admit("x", breaker, 6.0)
    circuits.failed("x", breaker, 7.0)
    assert not circuits.admit("x", breaker, 11.0)
    assert circuits.admit("x", breaker, 12.0)
    circuits.succeeded("x")
    assert circuits.admit("x", breaker, 12.0)
    assert circuits.admit("x", breaker, 12.0)


def test_one_query_more_than_allowed_is_refused_by_name():
    """Load is shed at the door, and the place is free again afterwards."""

    async def story(made: QueryCoordinator) -> tuple[int, int]:
        answers = await asyncio.gather(*(count(made) for _ in range(5)), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, OverloadedError)]
        await count(made)
        return len(refused), made._in_flight

    result, _, _ = run({"a": Vendor(1.0)}, story, policy=ScatterPolicy(max_in_flight=2))
    assert result == (3, 0)


def test_a_policy_may_be_given_for_one_query():
    """It stands in place of the coordinator's."""
    vendors = {"a": Vendor(ConnectionError("gone"), 0.0)}
    answer, _, _ = run(vendors, lambda made: made.query(COUNT, policy=ScatterPolicy(retries=1)))
    assert answer.rows == [(1,)]


# -- deadlines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", [connect, lambda: sqlite3.connect(":memory:")], ids=["ours", "sqlite3"])
def test_a_deadline_interrupts_a_running_statement(driver):
    """A statement without end stops within 50 ms of the deadline, and those after it are not begun."""
    fleet = [driver() for _ in range(3)]
    for connection in fleet:
        connection.execute(DDL)
        connection.execute("INSERT INTO t VALUES (1, 'x')")
    looping = f"SELECT a, ({ENDLESS.replace('x + 1', 'x + t.a')}) FROM t"
    made = QueryCoordinator([Scanner.from_connection(f"v{i}", each) for i, each in enumerate(fleet)], schema=SCHEMA)
    start = time.perf_counter()
    with pytest.raises(IncompleteAnswerError) as caught:
        asyncio.run(made.query(looping, shard_key="v0", deadline_s=0.2))
    assert 0.2 <= time.perf_counter() - start < 0.25
    assert isinstance(caught.value.__cause__, VendorTimeoutError)
    assert asyncio.run(made.query(COUNT)).rows == [(3,)]
    made.close()
    for connection in fleet:
        connection.close()


def test_the_deadline_holds_for_the_gather_too():
    """What vendors sent in time and the coordinator could not gather is no answer; and the next query is well."""
    databases = [connect() for _ in range(3)]
    for connection in databases:
        connection.execute(DDL)
        connection.execute("INSERT INTO t VALUES (1, 'x')")
    scanners = [Scanner.from_connection(f"v{i}", each) for i, each in enumerate(databases)]
    made = QueryCoordinator(scanners, schema=SCHEMA)
    # random() is evaluated where one database would: in the gather. The vendors answer at once.
    endless = f"SELECT a, random(), ({ENDLESS.replace('x + 1', 'x + t.a')}) FROM t"
    assert made.explain(endless).tier == "collect"
    for allow_partial in (False, True):
        start = time.perf_counter()
        with pytest.raises(IncompleteAnswerError, match="gathered before the deadline"):
            asyncio.run(made.query(endless, deadline_s=0.2, allow_partial=allow_partial))
        assert 0.2 <= time.perf_counter() - start < 0.3

    async def stream() -> None:
        async for _ in made.stream(endless, deadline_s=0.2):
            pass

    with pytest.raises(IncompleteAnswerError, match="gathered before the deadline"):
        asyncio.run(stream())
    assert asyncio.run(made.query(COUNT)).rows == [(3,)]
    made.close()
    for connection in databases:
        connection.close()


def test_now_is_the_coordinators_clock_and_under_simulation_the_simulated_time():
    """A clock of one's own, the loop's, or the system's."""

    async def now(**options: Any) -> str:
        made = QueryCoordinator([], schema=SCHEMA, **options)
        await asyncio.sleep(0.02)
        rows = (await made.query("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')")).rows
        made.close()
        return str(rows[0][0])

    assert asyncio.run(now(clock=lambda: 86_400.5)) == "1970-01-02 00:00:00.500"
    assert sim_run(now()) == "1970-01-01 00:00:00.020"
    assert asyncio.run(now()) > "2020"


@pytest.mark.parametrize("kind", ["memory", "directory", "packed"])
def test_a_deadline_interrupts_the_scan_of_a_shard_within_a_vendors_statement(kind, tmp_path):
    """With the stores' set-up from `prepare`; what was read before the deadline is handed in where that is allowed."""
    path = None if kind == "memory" else tmp_path / "store"
    with open_store(kind, path, SCHEMA, shards=["s"], locate=lambda _id: "s", setup=prepare) as store:
        store.create_many((f"v{i}", {"t": [(int(i == 3), "x")] * 2}) for i in range(6))
        made = QueryCoordinator(store_scanners(store), schema=SCHEMA)
        # It never ends at v3, whose rows have a = 1; elsewhere the recursion has one step.
        step = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE t.a = 1) SELECT COUNT(*) FROM c"
        sql = f"SELECT b, ({step}) FROM t"
        (shard,) = made.scanners
        assert isinstance(shard, ShardScanner)

        async def scan(allow_partial: bool) -> Any:
            end_s = asyncio.get_running_loop().time() + 0.2
            asked = ScatterRequest(((sql, ()),), deadline_s=end_s, allow_partial=allow_partial)
            return await shard.scan(asked)  # type: ignore[misc]

        start = time.perf_counter()
        with pytest.raises(VendorTimeoutError):
            asyncio.run(scan(False))
        assert 0.2 <= time.perf_counter() - start < 0.25
        partial = asyncio.run(scan(True))
        assert [place for place, _ in partial.segments] == ["v0", "v1", "v2"]
        assert sorted(partial.failures) == ["v3", "v4", "v5"]
        assert asyncio.run(made.query(COUNT)).rows == [(12,)]
        made.close()


def test_a_deadline_given_as_a_budget_interrupts_a_worker_process(tmp_path):
    """The worker's clock is its own: what travels is what is left of the time."""
    with (
        ProcessPoolExecutor(1) as pool,
        open_store("packed", tmp_path / "p", SCHEMA, shards=["s"], locate=lambda _id: "s", setup=prepare) as store,
    ):
        store.create_many((f"v{i}", {"t": [(1, "x")]}) for i in range(3))
        made = QueryCoordinator(store_scanners(store, executor=pool), schema=SCHEMA)

        async def story() -> None:
            assert (await made.query(COUNT)).rows == [(3,)]
            loops = f"SELECT a, ({ENDLESS.replace('x + 1', 'x + t.a')}) FROM t"
            with pytest.raises(IncompleteAnswerError):
                await made.query(loops, shard_key="v1", deadline_s=0.2)
            start = time.perf_counter()
            # The one worker is free again: it was interrupted, not left looping.
            assert (await made.query(COUNT)).rows == [(3,)]
            assert time.perf_counter() - start < 0.2

        asyncio.run(story())
        made.close()


def test_the_deadline_reaches_aggregators_which_hand_in_what_they_have():
    """One vendor of eight never answers: with partial answers allowed it alone is missing, not its branch."""
    vendors = {f"v{i}": Vendor(1e9 if i == 5 else 0.1) for i in range(8)}

    def ask(made: QueryCoordinator) -> Any:
        return made.query(COUNT, deadline_s=1.0, allow_partial=True)

    answer, end_s, _ = run(vendors, ask, fanout_width=2)
    assert (answer.rows, answer.coverage.missing, answer.coverage.answered) == ([(7,)], ("v5",), 7)
    assert end_s < 1.0
    assert vendors["v5"].cancelled == 1
    with pytest.raises(IncompleteAnswerError) as caught:
        run(vendors, lambda made: made.query(COUNT, deadline_s=1.0), fanout_width=2)
    assert (caught.value.answered, caught.value.missing) == (7, ("v5",))


# -- trees -------------------------------------------------------------------------------------------------------------


def test_a_tree_puts_neighbours_under_one_node_and_calls_from_each_nodes_own_address():
    """Ten vendors at width 3: four nodes below two, and nobody sends more than three calls."""
    sent: dict[str, int] = {}

    class Counting(InProcessNetwork):
        def call(self, source: str, target: str, message: Any) -> asyncio.Future[Any]:
            sent[source] = sent.get(source, 0) + 1
            return super().call(source, target, message)

    vendors = {f"v{i}": Vendor(0.0) for i in range(10)}
    answer, _, _ = run(vendors, count, fanout_width=3, network=Counting())
    assert answer.rows == [(10,)]
    assert sorted(sent.values()) == [1, 1, 2, 3, 3, 3, 3]
    assert sent["coordinator"] == 2


def same(one: Any, other: Any) -> bool:
    """Whether two answers, or two errors, are the same to the bit."""
    if isinstance(one, Exception) or isinstance(other, Exception):
        return type(one) is type(other)
    return (one.columns, typed(one.rows)) == (other.columns, typed(other.rows))


def answer_of(made: QueryCoordinator, sql: str, params: Any) -> Any:
    """Return a query's answer, or its error."""
    try:
        return asyncio.run(made.query(sql, params))
    except QueryError as error:
        return error


@given(st.randoms(use_true_random=False))
def test_trees_of_any_width_answer_bit_for_bit_as_flat_and_as_one_sqlite(chance):
    """Statements of every tier; widths 2, 3 and 10; scanners of vendors."""
    grammar = Grammar(chance)
    case = grammar.case()
    fleet = case.fleet()
    scanners = [[Scanner.from_connection(f"v{i:03d}", each) for i, each in enumerate(fleet)] for _ in range(4)]
    made = [
        QueryCoordinator(scanners[place], schema=case.schema, fanout_width=width)
        for place, width in enumerate((None, 2, 3, 10))
    ]
    for _ in range(2):
        sql, params = grammar.statement(case)
        note(sql)
        # Where both refuse the statement, it is asked again for the error.
        answers = [check_statement(sql, case, params, coordinator=each) for each in made]
        flat, *trees = [
            answer_of(each, sql, params) if answer is None else answer
            for each, answer in zip(made, answers, strict=True)
        ]
        assert all(same(flat, other) for other in trees)
    for each in (*made, *fleet):
        each.close()


@given(st.randoms(use_true_random=False))
def test_trees_of_shards_answer_as_one_sqlite_wherever_vendors_live(chance):
    """Vendors of several shards lie between each other in the order of vendors; combining must not change that."""
    grammar = Grammar(chance)
    case = grammar.case()
    shards = [f"s{i}" for i in range(5)]
    with open_store(
        "memory", None, case.schema, shards=shards, locate=lambda id_: shards[hash_of(id_) % 5], setup=prepare
    ) as store:
        for vendor in range(case.vendors):
            tables = {
                table.name: [
                    row for row, owner in zip(table.rows, case.owners[table.name], strict=True) if owner == vendor
                ]
                for table in case.tables
            }
            store.create(f"v{vendor:03d}", tables)
        made = QueryCoordinator(store_scanners(store), schema=case.schema, fanout_width=2)
        for _ in range(2):
            sql, params = grammar.statement(case)
            note(sql)
            check_statement(sql, case, params, coordinator=made)
        made.close()


def test_ties_among_the_first_rows_fall_by_vendor_whatever_shard_and_node_they_pass():
    """Every rating is the same, and neighbours live in different shards: the first five vendors have the first rows."""
    with open_store(
        "memory",
        None,
        SCHEMA,
        shards=[f"s{i}" for i in range(4)],
        locate=lambda id_: f"s{int(id_[1:]) % 4}",
        setup=prepare,
    ) as store:
        store.create_many((f"v{i:02d}", {"t": [(1, f"of {i}")]}) for i in range(40))
        made = QueryCoordinator(store_scanners(store), schema=SCHEMA, fanout_width=2)
        answer = asyncio.run(made.query("SELECT b FROM t ORDER BY a LIMIT 5"))
        assert answer.rows == [(f"of {i}",) for i in range(5)]
        assert answer.stats.rows_shipped == 10  # Each of the two nodes below the coordinator combined to five.
        made.close()


def hash_of(id_: str) -> int:
    """Spread ids over shards, not in their order."""
    return random.Random(id_).randrange(1000)


def test_random_delays_hedges_and_retries_never_change_an_answer():
    """Two hundred seeds: vendors answer late, fail at first, answer twice; what comes is exact or refused."""
    answered = 0
    for seed in range(200):
        chance = random.Random(seed)
        steps = [
            [ConnectionError("x") if chance.random() < 0.3 else chance.random() * 2 for _ in range(4)] for _ in range(9)
        ]
        vendors = {f"v{i}": Vendor(*each, rows=10**i) for i, each in enumerate(steps)}
        policy = ScatterPolicy(
            retries=chance.randrange(3),
            backoff_s=0.1,
            hedge_after_s=chance.choice((None, 0.3)),
            window=chance.choice((None, 2, 5)),
            deadline_s=chance.choice((None, 3.0)),
            attempt_timeout_s=chance.choice((None, 1.5)),
        )
        try:
            answer, _, _ = run(vendors, count, policy=policy, fanout_width=chance.choice((None, 2, 4)))
        except IncompleteAnswerError:
            continue
        assert answer.rows == [(111_111_111,)], f"seed {seed}"
        answered += 1
    assert 20 < answered < 180


def test_a_node_remembers_times_in_a_histogram_that_merges():
    """Merged counts are those of one histogram that saw everything; quantiles are within a bucket above."""
    chance = random.Random(5)
    times = [chance.lognormvariate(-4, 1) for _ in range(5_000)]
    whole, parts = Histogram(), [Histogram() for _ in range(7)]
    for place, each in enumerate(times):
        whole.add(each)
        parts[place % 7].add(each)
    for part in parts[1:]:
        parts[0].merge(part)
    assert parts[0] == whole
    for share in (0.5, 0.9, 0.99):
        exact = sorted(times)[int(share * 5_000) - 1]
        assert exact <= whole.quantile(share) <= exact * 2 ** (1 / 8) * 1.0001
    with pytest.raises(InvalidArgumentError):
        Histogram().quantile(0.5)


def test_a_vendor_error_keeps_its_vendor():
    """Custom errors of this package pass through as they are."""
    vendors = {"a": Vendor(VendorError("odd", vendor_id="a"))}
    with pytest.raises(IncompleteAnswerError) as caught:
        run(vendors, count)
    assert isinstance(caught.value.__cause__, VendorError)
    assert caught.value.missing == ("a",)


# -- what a partial answer guarantees ----------------------------------------------------------------------------------


def partial_answer(sql: str, fleet: dict[str, list[tuple[int | None, str]]], missing: set[str]) -> Any:
    """Ask a fleet of which some vendors are down."""
    databases = {name: SCHEMA.database() for name in fleet}
    for name, rows in fleet.items():
        databases[name].executemany("INSERT INTO t VALUES (?, ?)", rows)

    def down(_sql: str, _params: Any) -> Any:
        raise ConnectionError("down")

    scanners = [
        Scanner(name, down, has_functions=True) if name in missing else Scanner.from_connection(name, database)
        for name, database in databases.items()
    ]
    made = QueryCoordinator(scanners, schema=SCHEMA)
    try:
        return asyncio.run(made.query(sql, allow_partial=True))
    finally:
        for each in (made, *databases.values()):
            each.close()


@pytest.mark.parametrize(
    ("sql", "rows", "columns", "certain"),
    [
        ("SELECT a, b FROM t", "subset", ("exact", "exact"), 6),
        ("SELECT * FROM t WHERE a > 1", "subset", ("exact", "exact"), 4),
        ("SELECT a FROM t ORDER BY a DESC", "subset", ("exact",), 6),
        ("SELECT DISTINCT b FROM t", "subset", ("exact",), 1),
        ("SELECT COUNT(*), COUNT(DISTINCT a) FROM t", "subset", ("lower bound", "lower bound"), 1),
        ("SELECT MIN(a), MAX(a), AVG(a) FROM t", "subset", ("upper bound", "lower bound", "none"), 1),
        ("SELECT SUM(a), SUM(length(b)) FROM t", "subset", ("lower bound if none is negative", "lower bound"), 1),
        ("SELECT SUM(abs(a) * 2) FROM t", "subset", ("lower bound",), 1),
        ("SELECT TOTAL(-a) FROM t", "subset", ("lower bound if none is negative",), 1),
        ("SELECT COUNT(*) - 1 FROM t", "subset", ("none",), 1),
        ("SELECT b, COUNT(*) FROM t GROUP BY b", "subset", ("exact", "lower bound"), 1),
        ("SELECT b, COUNT(*) FROM t GROUP BY b HAVING COUNT(*) < 100", "none", ("none", "none"), 0),
        ("SELECT b, COUNT(*) FROM t GROUP BY b ORDER BY 2 LIMIT 1", "none", ("exact", "lower bound"), 0),
        ("SELECT a FROM t LIMIT 5", "none", ("exact",), 2),
        ("SELECT a FROM t LIMIT 5 OFFSET 1", "none", ("exact",), 1),
        ("SELECT a FROM t LIMIT 1", "none", ("exact",), 1),
        ("SELECT a FROM t ORDER BY a LIMIT 5", "none", ("exact",), 0),
        ("SELECT DISTINCT a FROM t LIMIT 2", "none", ("none",), 0),
        ("SELECT a, RANK() OVER (ORDER BY a) FROM t", "none", ("none", "none"), 0),
        ("SELECT x.a FROM t AS x JOIN t AS y USING (a)", "none", ("none",), 0),
        ("SELECT random() FROM t", "none", ("none",), 0),
        ("SELECT a FROM t UNION SELECT 1", "none", ("none",), 0),
    ],
)
def test_a_partial_answer_says_what_it_still_guarantees(sql, rows, columns, certain):
    """The second of three vendors is missing; what nothing proves is called none."""
    fleet = {
        "v0": [(1, "x"), (2, "x")],
        "v1": [(0, "w"), (9, "y"), (2, "x")],
        "v2": [(1, "x"), (2, "x"), (3, "x"), (4, "x")],
    }
    answer = partial_answer(sql, fleet, {"v1"})
    held = answer.guarantees
    assert (held.rows, held.columns, held.certain_rows) == (rows, columns, certain), held.text
    assert answer.coverage.missing_vendors == ("v1",)
    whole = partial_answer(sql, fleet, set())
    assert whole.guarantees.rows == "all"


NUMBERS = st.one_of(st.none(), st.integers(0, 4))
FLEETS = st.lists(
    st.lists(st.tuples(NUMBERS, st.sampled_from(["x", "X", "y", ""])), max_size=4), min_size=1, max_size=5
)
STATEMENTS = [
    "SELECT a, b FROM t", "SELECT a FROM t WHERE a > 1", "SELECT b FROM t ORDER BY a", "SELECT DISTINCT a FROM t",
    "SELECT COUNT(*), COUNT(a), COUNT(DISTINCT b) FROM t", "SELECT MIN(a), MAX(a), MIN(b), MAX(b) FROM t",
    "SELECT SUM(a), TOTAL(a), SUM(length(b)) FROM t", "SELECT b, COUNT(*), MAX(a), SUM(a) FROM t GROUP BY b",
    "SELECT a, b FROM t LIMIT 3", "SELECT a FROM t LIMIT 4 OFFSET 2", "SELECT a, b FROM t ORDER BY a LIMIT 3",
    "SELECT COUNT(*) FILTER (WHERE a > 1), MAX(a) FILTER (WHERE b = 'x') FROM t",
    "SELECT b COLLATE NOCASE, COUNT(*) FROM t GROUP BY b COLLATE NOCASE",
]  # fmt: skip


@given(FLEETS, st.sampled_from(STATEMENTS), st.data())
def test_what_is_guaranteed_of_a_partial_answer_holds_of_the_full_one(lists, sql, data):
    """Whatever the missing vendors hold: subsets, bounds and certain rows are checked against the full answer."""
    fleet = {f"v{i}": rows for i, rows in enumerate(lists)}
    missing = data.draw(st.sets(st.sampled_from(sorted(fleet)), min_size=1))
    some, full = partial_answer(sql, fleet, missing), partial_answer(sql, fleet, set())
    held = some.guarantees
    assert held.rows != "all"
    if held.rows == "none":
        assert some.rows[: held.certain_rows] == full.rows[: held.certain_rows]
        return
    assert held.certain_rows == len(some.rows)
    left = list(full.rows)
    for row in some.rows:
        match = next((other for other in left if all(map(stands, held.columns, row, other))), None)
        assert match is not None, (row, full.rows, held.text)
        left.remove(match)


def stands(bound: str, value: Any, other: Any) -> bool:
    """Whether a value stands to the full answer's as a bound says; numbers and texts of one kind only are compared."""
    if bound == "exact":
        return bool(value == other)
    if bound == "equal":
        return str(value).lower() == str(other).lower()
    if value is None or bound == "none":
        return True
    return bool(value >= other) if bound == "upper bound" else bool(value <= other)


def test_missing_vendors_of_a_shard_are_named_when_they_are_asked_for(tmp_path):
    """`missing` has the shard; `missing_vendors` its vendors, looked up in the store."""
    shards = ["s0", "s1"]
    with open_store(
        "memory", None, SCHEMA, shards=shards, locate=lambda id_: shards[int(id_[1:]) % 2], setup=prepare
    ) as store:
        store.create_many((f"v{i}", {"t": [(i, "x")]}) for i in range(6))

        class Lossy(InProcessNetwork):
            def call(self, source: str, target: str, message: Any) -> asyncio.Future[Any]:
                if target == "shard/s1":
                    future = asyncio.get_running_loop().create_future()
                    future.set_exception(VendorDownError("lost", vendor_id="s1"))
                    return future
                return super().call(source, target, message)

        made = QueryCoordinator(store_scanners(store), schema=SCHEMA, network=Lossy())
        answer = asyncio.run(made.query(COUNT, allow_partial=True))
        assert (answer.rows, answer.coverage.missing) == ([(3,)], ("s1",))
        assert answer.coverage.missing_vendors == ("v1", "v3", "v5")
        assert "lower bound" in answer._repr_html_()
        made.close()


def test_a_vendor_in_two_shards_is_an_error_and_never_counted_twice():
    """As in the middle of a move gone wrong."""
    stores = [
        open_store("memory", None, SCHEMA, shards=[f"s{i}"], locate=lambda _id, i=i: f"s{i}", setup=prepare)  # type: ignore[misc]
        for i in range(2)
    ]
    for store in stores:
        store.create("acme", {"t": [(1, "x")]})
    made = QueryCoordinator([scanner for store in stores for scanner in store_scanners(store)], schema=SCHEMA)
    with pytest.raises(VendorError, match="two shards"):
        asyncio.run(made.query("SELECT a FROM t"))
    for each in (made, *stores):
        each.close()


def test_a_damaged_vendor_alone_is_missing_from_its_shard(tmp_path):
    """The others of its shard answer, where a partial answer is allowed."""
    with open_store("packed", tmp_path / "p", SCHEMA, shards=["s"], locate=lambda _id: "s", setup=prepare) as store:
        store.create_many((f"v{i}", {"t": [(i, "x")]}) for i in range(5))
        (path,) = [
            each for each in (tmp_path / "p").iterdir() if each.suffix == ".sqlite" and "catalogue" not in each.name
        ]
        with contextlib.closing(connect(str(path))) as file:
            file.execute("UPDATE vendors SET image = zeroblob(4096) WHERE id = 'v2'")
        made = QueryCoordinator(store_scanners(store), schema=SCHEMA)
        with pytest.raises(IncompleteAnswerError):
            asyncio.run(made.query(COUNT))
        for options in ({}, {"deadline_s": 5.0}):
            answer = asyncio.run(made.query(COUNT, allow_partial=True, **options))
            assert (answer.rows, answer.coverage.missing) == ([(4,)], ("v2",))
        made.close()
