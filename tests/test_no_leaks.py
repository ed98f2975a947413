"""What a query leaves behind: nothing, however it ended."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
from pathlib import Path
from typing import Any

from mktsim.errors import IncompleteAnswerError
from mktsim.fanout import Breaker, QueryCoordinator, Scanner, ScatterPolicy
from mktsim.sql import Schema
from mktsim.sqlite import Connection, driver

SCHEMA = Schema(("CREATE TABLE t(a INTEGER)",))
COUNT = "SELECT COUNT(*) FROM t"
VENDORS = 4


def open_descriptors() -> int:
    """Count this process's file descriptors."""
    return len(os.listdir("/proc/self/fd"))


def live_timers(loop: asyncio.AbstractEventLoop) -> int:
    """Count the timers that will still fire."""
    return sum(not handle.cancelled() for handle in loop._scheduled)  # type: ignore[attr-defined]


def connections() -> int:
    """Count the driver's open connections."""
    gc.collect()
    return len(driver.connections())


class Live:
    """Vendors that answer late, fail or never answer; the first is asked over a socket, a new one for each question."""

    def __init__(self, chance: random.Random, database: Connection, path: Path) -> None:
        self.chance = chance
        self.database = database
        self.path = path

    async def execute(self, sql: str, params: Any) -> list[tuple[Any, ...]]:
        """Answer after up to 4 ms, fail, or never answer."""
        draw = self.chance.random()
        if draw < 0.02:
            raise ConnectionError("gone")
        if draw < 0.04:
            await asyncio.Event().wait()
        await asyncio.sleep(0.004 * self.chance.random())
        return self.database.execute(sql, params).fetchall()

    async def execute_remotely(self, sql: str, params: Any) -> list[tuple[Any, ...]]:
        """Ask over a socket."""
        reader, writer = await asyncio.open_unix_connection(self.path)
        try:
            writer.write(json.dumps([sql, list(params)]).encode() + b"\n")
            return [tuple(row) for row in json.loads(await reader.readline())]
        finally:
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one question that came over a socket, unless the asker is gone."""
        with contextlib.suppress(ConnectionError, ValueError):
            sql, params = json.loads(await reader.readline())
            await asyncio.sleep(0.004 * self.chance.random())
            writer.write(json.dumps(self.database.execute(sql, params).fetchall()).encode() + b"\n")
        writer.close()


async def drained() -> None:
    """Let the server's own handlers, which nobody cancels and which all end, come to their end; a leak would stay."""
    for _ in range(200):
        if len(asyncio.all_tasks()) == 1:
            return
        await asyncio.sleep(0.01)


def test_ten_thousand_queries_with_random_time_outs_leave_nothing(tmp_path):
    """No task, timer, connection, descriptor or registered callback; flat and as a tree, under every policy."""
    chance = random.Random(11)
    database = SCHEMA.database()
    database.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
    live = Live(chance, database, tmp_path / "socket")
    outcomes = {"answered": 0, "refused": 0, "partial": 0, "cancelled": 0, "left": 0}

    async def one(made: QueryCoordinator) -> None:
        policy = ScatterPolicy(
            deadline_s=chance.choice((0.002, 0.02, 0.05, 0.1)),
            retries=chance.randrange(3),
            backoff_s=0.001,
            hedge_after_s=chance.choice((None, 0.003)),
            attempt_timeout_s=chance.choice((None, 0.02)),
            window=chance.choice((None, 4)),
            breaker=chance.choice((None, Breaker(failures=50, open_s=0.01))),
        )
        draw = chance.random()
        try:
            if draw < 0.1:
                async with asyncio.timeout(0.002):  # The caller gives up.
                    await made.query(COUNT, policy=policy)
            elif draw < 0.3:
                stream = made.stream("SELECT a FROM t", policy=policy)
                async with stream:
                    async for _ in stream:
                        break
                outcomes["left"] += 1
                return
            answer = await made.query(COUNT, policy=policy, allow_partial=draw > 0.6)
        except IncompleteAnswerError:
            outcomes["refused"] += 1
        except TimeoutError:
            outcomes["cancelled"] += 1
        else:
            outcomes["answered" if answer.coverage.complete else "partial"] += 1
            assert answer.coverage.complete is False or answer.rows == [(2 * VENDORS,)]

    async def story() -> None:
        loop = asyncio.get_running_loop()
        server = await asyncio.start_unix_server(live.serve, live.path)
        made = [
            QueryCoordinator(
                [Scanner(f"v{i}", live.execute if i else live.execute_remotely) for i in range(VENDORS)],
                schema=SCHEMA,
                fanout_width=width,
            )
            for width in (None, 2)
        ]
        # Warm: the gather keeps a connection a plan.
        for each in made:
            await asyncio.gather(*(one(each) for _ in range(50)))
            with contextlib.suppress(IncompleteAnswerError):
                await each.query(COUNT, allow_partial=True, deadline_s=0.01)
        await drained()
        before = (len(asyncio.all_tasks()), live_timers(loop), connections(), open_descriptors())
        assert before[:2] == (1, 0)
        for _ in range(200):
            await asyncio.gather(*(one(made[chance.randrange(2)]) for _ in range(50)))
        await drained()
        assert (len(asyncio.all_tasks()), live_timers(loop)) == (1, 0)
        gathers = sum(len(each._engine._idle) for each in made)
        for each in made:
            assert each._in_flight == 0
            each.close()
        for _ in range(200):  # A socket that was closed goes with a later turn of the loop; one that leaked stays.
            if open_descriptors() <= before[3]:
                break
            await asyncio.sleep(0.01)
        assert connections() <= before[2]
        assert open_descriptors() <= before[3]
        assert gathers <= 4

        server.close()
        await server.wait_closed()

    asyncio.run(story())
    database.close()
    assert sum(outcomes.values()) == 10_100
    assert min(outcomes.values()) > 10, outcomes
