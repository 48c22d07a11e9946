"""Two reports of the benchmark, row by row: how many times the other's figure each figure is.

A report and another of the same schema go in, ratios come out, and which rows have no partner. What
was measured, and which of two figures is better, is not known here.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from types import GenericAlias
from typing import Annotated, Any

from rich.console import Group
from rich.table import Table

from bart_export import documents
from bart_export.bench.bench import SCHEMA_VERSION
from bart_export.bench.tables import cores, filled, named, opening_table
from bart_export.errors import InputError

Report = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Rows:
    """One list of a report: what tells its rows apart, and figures → their heads in a table."""

    keys: tuple[str, ...]
    figures: Mapping[str, str]


FILE = ("recipe", "build")
ASKED = ("num_threads", "source", "num_beams", "new_tokens")
LISTS = {
    "files": Rows(FILE, {"bytes": "size"}),
    "openings": Rows((*FILE, "num_threads", "opening", "until"), {"seconds": "time"}),
    "memory": Rows(
        (*FILE, *ASKED), {"private_bytes": "private\nmemory", "shared_bytes": "shared\nmemory"}
    ),
    "generation": Rows(
        (*FILE, *ASKED),
        {
            "encode_seconds": "encode",
            "step_seconds": "step",
            "seconds": "all",
            "tokens_per_second": "tokens\nper s",
        },
    ),
}
KEY = Annotated[
    object, documents.Kind("a text or a number", lambda value: isinstance(value, (str, int)))
]


def fields(types: Mapping[str, Any]) -> type[documents.Record]:
    """Return the type of an object with some fields."""
    record: type[documents.Record] = dataclasses.make_dataclass(
        "Part", types.items(), bases=(documents.Record,), frozen=True
    )
    return record


# What a comparison reads of a report.
REPORT = fields(
    {
        "artifact": fields({"preset": str}),
        "machine": fields({"processor": str, "cores": int}),
        **{
            name: GenericAlias(
                tuple,
                (
                    fields(
                        dict.fromkeys(rows.keys, KEY) | dict.fromkeys(rows.figures, float | None)
                    ),
                    ...,
                ),
            )
            for name, rows in LISTS.items()
        },
    }
)


def read(path: pathlib.Path) -> dict[str, Any]:
    """Read a report that `bart-export bench --json` printed.

    Raises:
        InputError: for a file that cannot be read, is no report, or is one of another schema.
    """
    try:
        report = documents.parse_json(documents.read(path, 64 * documents.MEBIBYTE))
    except OSError as error:
        raise InputError(f"Cannot read the report {path}: {error.strerror}.") from error
    except ValueError:
        report = None
    version = report.get("schema_version") if isinstance(report, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} must be a report of bart-export bench --json of schema version "
            f"{SCHEMA_VERSION}, received {'one of ' if version else ''}{version or 'none'}. "
            "Measure again with this version of bart-export."
        )
    try:
        REPORT.from_dict(report)
    except ValueError as error:
        raise InputError(f"{path} is no whole report: {error}. Measure again.") from None
    return dict(report)


def compare(report: Report, other: Report) -> dict[str, Any]:
    """Return the ratios of a report's figures to another's.

    Returns:
        `artifact` and `machine` of the other; for each of `LISTS` the rows that both have, with
        their keys and, for each figure, this report's over the other's, None where one does not
        have it; and `only_here` and `only_there`, the keys of rows without partner.
    """
    compared: dict[str, Any] = {name: other[name] for name in ("artifact", "machine")}
    only: dict[str, list[dict[str, Any]]] = {"only_here": [], "only_there": []}
    for name, rows in LISTS.items():
        here, there = by_keys(report, name), by_keys(other, name)
        compared[name] = [
            dict(zip(rows.keys, keys, strict=True))
            | {figure: ratio(row[figure], there[keys][figure]) for figure in rows.figures}
            for keys, row in here.items()
            if keys in there
        ]
        for side, mine, theirs in (("only_here", here, there), ("only_there", there, here)):
            only[side] += [
                {"list": name, **dict(zip(rows.keys, keys, strict=True))}
                for keys in mine
                if keys not in theirs
            ]
    return {**compared, **only}


def by_keys(report: Report, name: str) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    """Return the rows of a list of a report by what tells them apart."""
    return {tuple(row[key] for key in LISTS[name].keys): row for row in report[name]}


def ratio(here: float | None, there: float | None) -> float | None:
    """Return how many times `there` a figure is, None where that is nothing or not known."""
    return None if here is None or not there else here / there


def tables(compared: Mapping[str, Any]) -> Group:
    """Return a comparison for a terminal: a table of each list, and what has no partner."""
    about = compared["machine"]
    other = f"{compared['artifact']['preset']} on {about['processor']}, {cores(about)}"
    parts: list[Table | str] = [f"Figures as multiples of those of {other}:"]
    for name in LISTS:
        if name == "openings":
            parts.append(opening_table("Openings", compared[name], multiple))
        else:
            parts.append(ratio_table(name, compared[name]))
    parts += [
        without_partner(compared, side, where)
        for side, where in (("only_here", "this report"), ("only_there", "the other"))
        if compared[side]
    ]
    return Group(*parts)


def ratio_table(name: str, rows: list[dict[str, Any]]) -> Table:
    """Return the table of one list; the number of new tokens is the same in all its rows."""
    keys = [key for key in LISTS[name].keys if key not in (*FILE, "new_tokens")]
    figures = LISTS[name].figures
    return filled(
        name.capitalize(),
        ("recipe", *(key.removeprefix("num_") for key in keys), *figures.values()),
        [
            (
                named(row),
                *(str(row[key]) for key in keys),
                *(multiple(row[figure]) for figure in figures),
            )
            for row in rows
        ],
    )


def multiple(ratio: float | None) -> str:
    """Return a ratio as it stands in a table, a dash for none."""
    return "–" if ratio is None else f"{ratio:.2f}"


def without_partner(compared: Mapping[str, Any], side: str, where: str) -> str:
    """Return the line that says how many rows have no partner, and what only they are of."""
    rows = compared[side]
    others = [row for name in LISTS for row in compared[name]]
    others += compared["only_there" if side == "only_here" else "only_here"]
    alone = {}
    for key in dict.fromkeys(key for row in rows for key in row if key != "list"):
        known = {row[key] for row in others if key in row}
        values = dict.fromkeys(row[key] for row in rows if key in row)
        if unmet := [value for value in values if value not in known]:
            alone[key] = unmet
    reasons = "; ".join(f"{key} {', '.join(map(str, values))}" for key, values in alone.items())
    counted = f"{len(rows)} rows of {where} have" if len(rows) > 1 else f"1 row of {where} has"
    return f"{counted} no partner{f': {reasons}' if reasons else ''}."
