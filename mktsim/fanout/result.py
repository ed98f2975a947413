"""Answers, and what is said about how they came about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from mktsim.fanout.guarantees import COMPLETE, Guarantees
from mktsim.sql.plan import Plan
from mktsim.storage.replicas import Staleness

if TYPE_CHECKING:
    import pandas as pd

_SHOWN_ROWS = 20
_LEFT = "text-align:left;vertical-align:top"


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which vendors an answer speaks for.

    Attributes
    ----------
    asked, answered : int
        Vendors.
    missing : tuple of str
        Ids of the scanners (vendors, or shards of vendors) that did not answer, and of single vendors of a shard that
        did not.

    Examples
    --------
    >>> coverage = Coverage(asked=4, answered=3, missing=("bolt",))
    >>> coverage.complete, coverage.fraction, coverage.missing_vendors
    (False, 0.75, ('bolt',))
    """

    asked: int
    answered: int
    missing: tuple[str, ...] = ()
    _expand: Callable[[str], Iterable[str]] | None = field(default=None, repr=False, compare=False)

    @property
    def missing_vendors(self) -> tuple[str, ...]:
        """Ids of the vendors that did not answer: those of a missing shard are looked up now, in its store."""
        if self._expand is None:
            return self.missing
        return tuple(dict.fromkeys(vendor_id for id_ in self.missing for vendor_id in self._expand(id_)))

    @property
    def complete(self) -> bool:
        """Whether everybody asked has answered."""
        return not self.missing

    @property
    def fraction(self) -> float:
        """Answered over asked; 1.0 where nobody had to be asked."""
        return self.answered / self.asked if self.asked else 1.0


@dataclass(frozen=True, slots=True)
class QueryStats:
    """How an answer came about.

    Attributes
    ----------
    tier : str
        ``route``, ``two-phase``, ``collect`` or ``local``.
    vendors_asked, vendors_answered, vendors_pruned : int
        Vendors; pruned ones were proven irrelevant and not visited. Asked are those whose rows the answer might have
        needed, answered those of whom nothing is missing: they need not have been read. Where a LIMIT without ORDER BY
        is full after a shard's first vendors, the scan ends there, and the shard's others count as answered.
    rows_shipped : int
        Rows that reached the coordinator.
    wall_s : dict
        Wall time in seconds by phase: ``plan``, ``scatter``, ``gather``, ``total``.
    calls : int
        Calls that the coordinator sent, further attempts and second copies included.
    delivery : str
        ``gathered``, or ``streamed`` where rows were handed out vendor by vendor.
    reading : str
        How vendors were read, and why: what was pruned, or answered from summaries or earlier partials.
    stale : Staleness or None
        For how many vendors replicas answered, and how far behind they were at most; None where none did.

    Examples
    --------
    A hundred rows are averaged, and two travel: each vendor sends a sum and a count.

    >>> import asyncio, sqlite3
    >>> from mktsim.fanout import QueryCoordinator, Scanner
    >>> fleet = {name: sqlite3.connect(":memory:") for name in ("acme", "bolt")}
    >>> for connection in fleet.values():
    ...     _ = connection.execute("CREATE TABLE products(price REAL)")
    ...     _ = connection.executemany("INSERT INTO products VALUES (?)", [(float(price),) for price in range(50)])
    >>> coordinator = QueryCoordinator([Scanner.from_connection(*each) for each in fleet.items()])
    >>> stats = asyncio.run(coordinator.query("SELECT AVG(price) FROM products")).stats
    >>> coordinator.close()
    >>> stats.tier, stats.vendors_answered, stats.rows_shipped
    ('two-phase', 2, 2)
    >>> sorted(stats.wall_s)
    ['gather', 'plan', 'scatter', 'total']
    >>> for connection in fleet.values():
    ...     connection.close()
    """

    tier: str
    vendors_asked: int
    vendors_answered: int
    vendors_pruned: int
    rows_shipped: int
    wall_s: dict[str, float] = field(default_factory=dict)
    calls: int = 0
    delivery: str = "gathered"
    reading: str = ""
    stale: Staleness | None = None


@dataclass(frozen=True, slots=True)
class QueryResult:
    """An answer: rows, and what is known about them. Iterating yields each row as a dict.

    Attributes
    ----------
    rows : list of tuple
        Values as SQLite has them.
    columns : tuple of str
        Names as SQLite gives them; a name may occur twice.
    stats : QueryStats
        Tier, vendors, rows shipped, wall time by phase.
    coverage : Coverage
        Which vendors the answer speaks for.
    guarantees : Guarantees
        What holds of it although vendors are missing.

    Examples
    --------
    >>> asked = {"vendors_asked": 2, "vendors_answered": 2, "vendors_pruned": 0}
    >>> stats = QueryStats("two-phase", **asked, rows_shipped=2, wall_s={})
    >>> result = QueryResult([("mouse", 2)], ("name", "count"), stats, Coverage(2, 2))
    >>> [row["name"] for row in result]
    ['mouse']
    """

    rows: list[tuple[Any, ...]]
    columns: tuple[str, ...]
    stats: QueryStats
    coverage: Coverage
    guarantees: Guarantees = COMPLETE

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(zip(self.columns, row, strict=True)) for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        stats = self.stats
        return (
            f"QueryResult({len(self.rows)} rows x {len(self.columns)} columns, {stats.tier}, "
            f"{stats.vendors_answered} of {stats.vendors_asked} vendors, {stats.vendors_pruned} pruned)"
        )

    def __str__(self) -> str:
        """Return the first rows as a table of plain text, in which nothing can command a terminal."""
        lines = [[_printable(name) for name in self.columns]]
        lines += [[_printable(_shown(value)) for value in row] for row in self.rows[:_SHOWN_ROWS]]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        more = len(self.rows) - _SHOWN_ROWS
        return "\n".join([*table, *([f"... {more:,} more rows"] if more > 0 else []), repr(self)])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self) if cycle else str(self))

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a DataFrame whose columns are in the answer's order."""
        import pandas as pd

        frame = pd.DataFrame.from_records(self.rows, columns=range(len(self.columns)))
        frame.columns = pd.Index(self.columns)
        return frame

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(_shown(value))}</td>" for value in row) + "</tr>"
            for row in self.rows[:_SHOWN_ROWS]
        )
        more = f"<p>… {len(self.rows) - _SHOWN_ROWS:,} more rows</p>" if len(self.rows) > _SHOWN_ROWS else ""
        missing = ""
        if not self.coverage.complete:
            missing = (
                f"; <b>missing: {escape(', '.join(self.coverage.missing[:10]))}</b>; {escape(str(self.guarantees))}"
            )
        stats = self.stats
        foot = (
            f"{len(self.rows):,} rows; {stats.tier}; {stats.vendors_answered:,} of {stats.vendors_asked:,} vendors "
            f"answered, {stats.vendors_pruned:,} pruned; {stats.rows_shipped:,} rows shipped; "
            f"{1e3 * stats.wall_s.get('total', 0.0):.1f} ms"
        )
        if stats.stale is not None:
            foot += f"; {stats.stale.vendors:,} vendors answered by replicas up to {stats.stale.seconds:.3g} s behind"
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        # JupyterLab would typeset `$5 and $6` in a value as mathematics.
        return f"<div class='mathjax_ignore tex2jax_ignore'>{table}{more}<p><small>{foot}{missing}</small></p></div>"


def _shown(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"x'{value[:32].hex()}'" + ("…" if len(value) > 32 else "")
    text = str(value)
    return text if len(text) <= 200 else text[:199] + "…"


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a statement would do, and why; nothing was run.

    Attributes
    ----------
    sql : str
        The statement, as it was given.
    tier : str
        How it would be answered.
    scatter : tuple of str
        What each vendor runs.
    combine : str or None
        What an inner node does with partials.
    gather : str
        What runs over the collected rows.
    vendors : int
        How many vendors would be visited.
    pruned : int
        How many need not be.
    only : tuple of str or None
        The vendors, where a condition names them.
    rules : tuple of str
        Push-downs, each with the rule that allows it.
    reason : str
        Why no better tier was possible.
    travels : str
        How many rows reach the coordinator, as far as the plan bounds it.
    reading : str
        How vendors would be read, and why: what summaries or earlier partials spare.

    Examples
    --------
    >>> from mktsim.sql import Planner, Schema
    >>> planner = Planner(Schema(["CREATE TABLE products(category TEXT, price REAL)"]))
    >>> plan = planner.plan("SELECT category, MAX(price) FROM products GROUP BY category")
    >>> explanation = Explanation.of(plan, vendors=1_000, pruned=20, only=None, routed=False)
    >>> explanation.tier, explanation.vendors, explanation.travels
    ('two-phase', 1000, 'a row for each group of each of 1,000 vendors')
    >>> print(explanation.scatter[0])
    SELECT "products"."category", MAX(price) FROM "products" GROUP BY category
    """

    sql: str
    tier: str
    scatter: tuple[str, ...]
    combine: str | None
    gather: str
    vendors: int
    pruned: int
    only: tuple[str, ...] | None
    rules: tuple[str, ...]
    reason: str
    travels: str = ""
    reading: str = ""

    @classmethod
    def of(
        cls,
        plan: Plan,
        *,
        vendors: int,
        pruned: int,
        only: tuple[str, ...] | None,
        routed: bool,
        reading: str = "",
    ) -> Explanation:
        """Describe a plan and the vendors it would visit."""
        if routed:
            rule = "the shard column allows one vendor: it answers the original text alone"
            return cls(plan.statement.sql, "route", (plan.statement.sql,), None, "", vendors, pruned, only, (rule,), "")
        return cls(
            sql=plan.statement.sql,
            tier=plan.tier,
            scatter=tuple(statement.sql for statement in plan.scatter),
            combine=plan.combine.sql if plan.combine else None,
            gather=plan.gather,
            vendors=vendors,
            pruned=pruned,
            only=only,
            rules=plan.rules,
            reason=plan.reason,
            travels=plan.travels(vendors),
            reading=reading,
        )

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield "tier", self.tier + (f" ({self.reason})" if self.reason else "")
        for sql in self.scatter:
            yield "scatter", sql
        if self.combine:
            yield "combine", self.combine
        if self.gather:
            yield "gather", self.gather
        named = f": {', '.join(self.only[:5])}{', …' if len(self.only) > 5 else ''}" if self.only else ""
        yield "vendors", f"{self.vendors:,} to visit, {self.pruned:,} pruned{named}"
        if self.reading:
            yield "reading", self.reading
        if self.travels:
            yield "rows", self.travels
        for rule in self.rules:
            yield "rule", rule

    def __str__(self) -> str:
        return "\n".join(f"{name:<8} {value}" for name, value in self._lines())

    def __repr__(self) -> str:
        """Return one line; `print` shows the statements and the rules, as IPython does."""
        return f"<Explanation {self.tier}, {self.vendors:,} vendors to visit, {self.pruned:,} pruned: {self.sql!r:.80}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self) if cycle else str(self))

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='{_LEFT}'>{name}</th><td style='{_LEFT}'><code>{escape(value)}</code></td></tr>"
            for name, value in self._lines()
        )
        return f"<table>{rows}</table>"
