"""The comparison of two benchmark reports: ratios of their figures."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Group

from bart_export.bench.rows import LISTS, MULTIPLE, Report, Row, tables_of


@dataclasses.dataclass(frozen=True)
class ReportComparison:
    """The ratios of the report `here` to the report `there`."""

    here: Report
    there: Report

    def ratios(self) -> list[Row]:
        """Return the rows that both reports have, with ratios as figures."""
        others = self.there.rows()
        return [ratio(row, others[key]) for key, row in self.here.rows().items() if key in others]

    def to_dict(self) -> dict[str, object]:
        """Return the comparison as a JSON object."""
        lists: dict[str, list[object]] = {name: [] for name in LISTS}
        for row in self.ratios():
            lists[row.list_name].append(row.keys() | row.figures())
        return {
            "artifact": self.there.artifact.to_dict(),
            "machine": self.there.machine.to_dict(),
            **lists,
            "only_here": identified(self.here.unmatched(self.there)),
            "only_there": identified(self.there.unmatched(self.here)),
        }

    def tables(self) -> Group:
        """Return a table for each list, and notes on rows that only one report has."""
        titles = {kind: name.capitalize() for name, kind in LISTS.items()}
        return Group(
            f"Ratios to the report of {self.there.artifact.on(self.there.machine)}:",
            *tables_of(self.ratios(), titles, MULTIPLE),
            *unmatched_note(self.here, self.there, "this report"),
            *unmatched_note(self.there, self.here, "the other report"),
        )


def ratio(row: Row, other: Row) -> Row:
    """Return a row of ratios; a ratio is None if a figure is unknown or the divisor is 0."""
    ratios: dict[str, Any] = {
        name: None if figure is None or not of else figure / of
        for (name, figure), of in zip(row.figures().items(), other.figures().values(), strict=True)
    }
    return dataclasses.replace(row, **ratios)


def identified(rows: Iterable[Row]) -> list[dict[str, object]]:
    """Return the list names and keys of rows."""
    return [{"list": row.list_name} | row.keys() for row in rows]


def unmatched_note(report: Report, other: Report, where: str) -> Iterator[str]:
    """Yield a note on the rows that only `report` has, and the values found only in them."""
    rows = report.unmatched(other)
    known = {pair for row in other.rows().values() for pair in row.keys().items()}
    alone: dict[str, list[str]] = {}
    for name, value in dict.fromkeys(pair for row in rows for pair in row.keys().items()):
        if (name, value) not in known:
            alone.setdefault(name, []).append(str(value))
    reasons = "; ".join(f"{name} {', '.join(values)}" for name, values in alone.items())
    have = f"{len(rows)} rows of {where} have" if len(rows) > 1 else f"1 row of {where} has"
    if rows:
        yield f"{have} no counterpart{f': {reasons}' if reasons else ''}."
