"""Ray Data: `BartGenerator` generates from a column of texts.

    texts.map_batches(
        BartGenerator,
        fn_constructor_kwargs={"location": "artifacts/bart_mini_en", "num_beams": 4},
        compute=ActorPoolStrategy(size=8),
        num_cpus=1,
        batch_size=256,
        batch_format="pyarrow",
    )

The package ray itself is not needed here; pyarrow comes with it.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

from bart_export.config import MAX_BATCH_SIZE, require
from bart_export.errors import InputError, MissingExtra, shown
from bart_export.runtime import Generator, Result
from bart_export.runtime.results import RESULT_FIELDS, Row
from bart_export.scale import MEMORY_BUDGET, checked_settings, results_or_refusals

try:
    import pyarrow as pa
except ImportError:
    raise MissingExtra("BartGenerator", "pyarrow", "ray") from None

THREADS = "OMP_NUM_THREADS"  # unless it is set, Ray sets it to a worker's num_cpus, rounded down
SEQUENCE = {"generated_text": pa.string(), "score": pa.float64(), "token_ids": pa.list_(pa.int32())}


class BartGenerator:
    """Generates from the texts of a batch; a callable class for Ray Data's `map_batches`.

    The texts of a batch are decoded together. It adds the columns of a row of `bart-export generate
    --output`: `generated_text`, `score`, `token_ids`, `sequences` (if several are returned),
    `truncated`, and `error`. If a text was refused, `error` has the reason and the others are null;
    otherwise `error` is null. Columns of the batch with these names are replaced, and all others
    kept.

    It is pickled as its arguments; a copy opens the artifact again.

    Args:
        location: the artifact; see `Generator.from_artifact`.
        column: the column with the texts.
        revision, recipe, engine, max_batch_size: see `Generator.from_artifact`.
        memory_budget: bytes for the decoder's inputs and outputs.
        num_threads: threads of the engine; None means as many as the worker's `num_cpus`.
        truncate, allow_empty, special_tokens, parameters: see `Generator.generate`.

    Raises:
        ArtifactError: if the artifact cannot be opened.
        ConfigurationError: if a parameter does not exist or is out of range.
    """

    def __init__(
        self,
        location: str | os.PathLike[str],
        *,
        column: str = "text",
        revision: str | None = None,
        recipe: str | None = None,
        engine: str | None = None,
        num_threads: int | None = None,
        max_batch_size: int = MAX_BATCH_SIZE,
        memory_budget: int = MEMORY_BUDGET,
        truncate: bool = False,
        allow_empty: bool = False,
        special_tokens: bool = False,
        **parameters: Any,
    ) -> None:
        require(isinstance(column, str), "column", "the name of a column", column)
        opening: dict[str, Any] = {
            "revision": revision, "recipe": recipe, "engine": engine,
            "max_batch_size": max_batch_size, "memory_budget": memory_budget,
        }  # fmt: skip
        calling: dict[str, Any] = {
            "truncate": truncate, "allow_empty": allow_empty, "special_tokens": special_tokens,
            **parameters,
        }  # fmt: skip
        self.column, self.calling = column, calling
        self.copied: Callable[[], BartGenerator] = functools.partial(
            type(self), location, column=column, num_threads=num_threads, **opening, **calling
        )
        if num_threads is None:
            num_threads = threads_of_worker()
        self.generator = Generator.from_artifact(location, num_threads=num_threads, **opening)
        self.schema = schema(checked_settings(self.generator, calling).num_return_sequences)

    def __reduce__(self) -> tuple[Callable[[], "BartGenerator"], tuple[()]]:
        return self.copied, ()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return a batch with the columns of the results.

        Raises:
            InputError: if the batch has another format, not the column, or two of one name.
        """
        columns = list(batch.schema.names if isinstance(batch, pa.Table) else batch)
        several = len({*columns}) < len(columns)
        if not isinstance(batch, pa.Table) or self.column not in columns or several:
            raise InputError(
                f'A batch must be a pyarrow.Table (batch_format="pyarrow") with a column '
                f"{self.column!r} (column=…) and no name twice, received a {type(batch).__name__} "
                f"with {shown(columns)}."
            )
        answers = results_or_refusals(self.generator, texts_of(batch[self.column]), self.calling)
        results = pa.Table.from_pylist(list(map(row, answers)), self.schema)
        made = batch.drop_columns([name for name in columns if name in RESULT_FIELDS])
        for field in self.schema:
            made = made.append_column(field, results[field.name])
        return made


def threads_of_worker() -> int | None:
    """Return the number of threads in OpenMP's variable, which may be a list for nested regions.

    Raises:
        ConfigurationError: if it is not a number.
    """
    given = os.environ.get(THREADS, "")
    first = given.partition(",")[0].strip()
    accepted = "a number of threads, unless num_threads is given"
    require(not given or first.isdecimal(), THREADS, accepted, given)
    return int(first) if given else None


def texts_of(column: pa.ChunkedArray) -> list[Any]:
    """Return a column's values; bytes that are not UTF-8 are lone surrogates, which are refused.

    Arrow's reader of JSON, for example, does not check that strings are UTF-8.
    """
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        values = column.cast(pa.large_binary()).to_pylist()
    return [value and value.decode("utf-8", "surrogateescape") for value in values]


def row(answer: Result | InputError) -> Row:
    """Return the columns of a text's result or refusal."""
    if isinstance(answer, InputError):
        return {"error": str(answer)}
    return answer.to_dict() | {"truncated": answer.truncated}


def schema(sequences: int) -> pa.Schema:
    """Return the columns of results with this many sequences each."""
    several = {"sequences": pa.list_(pa.struct(SEQUENCE))} if sequences > 1 else {}
    return pa.schema(SEQUENCE | several | {"truncated": pa.bool_(), "error": pa.string()})
