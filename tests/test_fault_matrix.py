"""Every fault under every policy: the answer is exact, or partial and says so, or refused. Never silently wrong.

The vendors are processes of their own behind sockets; "dies" means SIGKILL while the answer is on its way.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mktsim.errors import IncompleteAnswerError, MktsimError
from mktsim.fanout import Breaker, QueryCoordinator, Scanner, ScatterPolicy
from mktsim.sql import Schema

SCHEMA = Schema(("CREATE TABLE t(a INTEGER, b TEXT)",))
SUM = "SELECT COUNT(*), SUM(a) FROM t"
EXACT = [(6, 21)]
PARTIAL = [(4, 10)]
LIMIT_S = 1.0

#: What a vendor process does. It answers one question a connection, a line of JSON each way; rows are (number, text).
PROCESS = """
import json, os, signal, socket, sqlite3, sys, time
path, fault, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
database = sqlite3.connect(":memory:")
database.execute("CREATE TABLE t(a INTEGER, b TEXT)")
database.executemany("INSERT INTO t VALUES (?, 'x')", [(first,), (first + 1,)])
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen(64)
print("ready", flush=True)
asked = 0
while True:
    connection, _ = server.accept()
    question = connection.makefile().readline()
    if not question:
        continue
    asked += 1
    broken = fault if asked == 1 or not fault.startswith("once ") else "none"
    broken = broken.removeprefix("once ")
    sql, params = json.loads(question)
    answer = json.dumps({"rows": database.execute(sql, params).fetchall()}).encode() + b"\\n"
    if broken == "never":
        held = connection  # Open, and silent for good.
        continue
    if broken == "slow":
        time.sleep(0.05)
    elif broken == "error":
        answer = json.dumps({"error": "disk on fire"}).encode() + b"\\n"
    elif broken == "dies":
        connection.sendall(answer[: len(answer) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    elif broken == "twice":
        answer += answer
    elif broken == "garbage":
        answer = b"\\x00\\xff{not json at all\\n"
    elif broken == "wrong width":
        answer = json.dumps({"rows": [[1, 2, 3, 4, 5, 6, 7]]}).encode() + b"\\n"
    elif broken == "wrong type":
        answer = json.dumps({"rows": [[{"a": 1}] * 2]}).encode() + b"\\n"
    elif broken == "no rows":
        answer = json.dumps({"rows": "ab"}).encode() + b"\\n"
    try:
        connection.sendall(answer)
    except OSError:
        pass
    connection.close()
"""

FAULTS = (
    "none", "never", "slow", "error", "dies", "twice", "garbage", "wrong width", "wrong type", "no rows",
    "once never", "once error", "once garbage",
)  # fmt: skip
POLICIES = {
    "plain": ScatterPolicy(deadline_s=LIMIT_S),
    "window": ScatterPolicy(deadline_s=LIMIT_S, window=2),
    "retry": ScatterPolicy(deadline_s=LIMIT_S, retries=2, backoff_s=0.001, attempt_timeout_s=0.25),
    "hedge": ScatterPolicy(deadline_s=LIMIT_S, hedge_after_s=0.03),
    "replica": ScatterPolicy(deadline_s=LIMIT_S, hedge_after_s=0.03, retries=2, backoff_s=0.001),
    "tied": ScatterPolicy(deadline_s=LIMIT_S, hedge_after_s=0.03, tied=True, retries=1, attempt_timeout_s=0.25),
    "breaker": ScatterPolicy(deadline_s=LIMIT_S, breaker=Breaker(failures=1, open_s=60.0)),
    "tree": ScatterPolicy(deadline_s=LIMIT_S),
}
#: Policies under which the replica of the faulty vendor is known.
WITH_REPLICA = ("replica", "tied")
#: Where an exact answer is owed, fault by fault; "slow" is within every deadline.
EXACT_IS_OWED = {
    **dict.fromkeys(FAULTS, WITH_REPLICA),
    **dict.fromkeys(("none", "slow", "twice"), tuple(POLICIES)),
    **dict.fromkeys(("once never",), ("retry", "hedge", *WITH_REPLICA)),
    **dict.fromkeys(("once error", "once garbage"), ("retry", *WITH_REPLICA)),
}


class Remote:
    """A vendor process, and the callable that asks it."""

    def __init__(self, path: Path, process: asyncio.subprocess.Process) -> None:
        self.path = path
        self.process = process

    @classmethod
    async def start(cls, folder: Path, name: str, fault: str, first: int) -> Remote:
        """Start a process and wait until it listens."""
        path = folder / name
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", "-c", PROCESS, str(path), fault, str(first), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        return cls(path, process)

    async def execute(self, sql: str, params: Any) -> Any:
        """Ask over a new connection."""
        reader, writer = await asyncio.open_unix_connection(self.path)
        try:
            writer.write(json.dumps([sql, list(params)]).encode() + b"\n")
            line = await reader.readline()
            if not line.endswith(b"\n"):
                raise EOFError("the connection broke within the answer")
            answer = json.loads(line)
            if "error" in answer:
                raise OSError(answer["error"])
            rows = answer["rows"]
            return [tuple(row) if isinstance(row, list) else row for row in rows]
        finally:
            writer.close()

    async def stop(self) -> int:
        """End the process and return how it ended."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()
        return int(self.process.returncode or 0)


async def ask(folder: Path, fault: str, policy: str) -> list[str]:
    """Ask for an answer without gaps, then for a partial one, of three vendors whose second is faulty."""
    remotes = [
        await Remote.start(folder, name, kind, first)
        for name, kind, first in (("a", "none", 1), ("b", fault, 3 + 2), ("c", "none", 3), ("b2", "none", 3 + 2))
    ]
    scanners = [Scanner(name, each.execute) for name, each in zip("abc", remotes, strict=False)]
    made = QueryCoordinator(
        scanners,
        schema=SCHEMA,
        policy=POLICIES[policy],
        replicas={"b": [Scanner("b2", remotes[3].execute)]} if policy in WITH_REPLICA else None,
        fanout_width=2 if policy == "tree" else None,
    )
    outcomes = []
    try:
        for allow_partial in (False, True):
            (answer,) = await asyncio.gather(made.query(SUM, allow_partial=allow_partial), return_exceptions=True)
            if isinstance(answer, BaseException):
                assert isinstance(answer, IncompleteAnswerError)
                assert not allow_partial
                assert answer.missing == ("b",)
                assert isinstance(answer.__cause__, MktsimError)
                outcomes.append("refused")
                continue
            if answer.coverage.complete:
                assert answer.rows == EXACT
                outcomes.append("answered")
            else:
                assert allow_partial
                assert answer.coverage.missing_vendors == ("b",)
                assert answer.rows == PARTIAL
                assert answer.guarantees.columns == ("lower bound", "lower bound if none is negative")
                outcomes.append("partial")
    finally:
        made.close()
        codes = [await each.stop() for each in remotes]
    if fault == "dies":
        # 255 is asyncio's word for a child whose end its transport has already collected.
        assert codes[1] in (-signal.SIGKILL, 255)
    await asyncio.sleep(0)
    return outcomes


@pytest.mark.parametrize("policy", POLICIES)
def test_no_fault_under_no_policy_gives_a_wrong_answer(policy, tmp_path):
    """Thirteen faults: what is owed exactly is exact; the rest is refused, or partial and says who is missing."""

    async def all_faults() -> dict[str, list[str]]:
        folders = []
        for fault in FAULTS:
            folders.append(tmp_path / fault.replace(" ", "-"))
            folders[-1].mkdir()
        results = {}
        for place in range(0, len(FAULTS), 4):
            several = range(place, min(place + 4, len(FAULTS)))
            found = await asyncio.gather(*(ask(folders[i], FAULTS[i], policy) for i in several))
            results.update({FAULTS[i]: outcomes for i, outcomes in zip(several, found, strict=True)})
        return results

    results = asyncio.run(all_faults())
    for fault, outcomes in results.items():
        if policy in EXACT_IS_OWED[fault]:
            assert outcomes == ["answered", "answered"], (fault, policy)
        elif fault.startswith("once "):
            # The second question is answered well, unless a breaker has opened; so may be the first, by a hedge that
            # was sent before the error came.
            assert outcomes[0] == "refused" or policy == "hedge", (fault, policy)
            assert outcomes[1] == ("partial" if policy == "breaker" else "answered"), (fault, policy)
        else:
            assert outcomes == ["refused", "partial"], (fault, policy)
    # Shown by pytest -rA.
    counted = Counter(outcome for outcomes in results.values() for outcome in outcomes)
    print(f"{policy}: {dict(counted)}")
