"""Summarize the texts of many files with Apache Beam.

    python examples/beam_summarize.py artifacts/bart_mini_en --input 'texts*.jsonl' \\
        --output build/headlines.jsonl --failed build/failed.jsonl --shards 4 \\
        --direct_running_mode=multi_processing --direct_num_workers=2

The input is .txt with a text per line, or .jsonl with objects that have a "text"; the output is
.jsonl, or .parquet with the columns id, text, generated_text, score and error. Texts that cannot be
summarized are in the --failed files, with an "error", and the exit code is 1. Paths may be on any
file system of Beam; all machines must find the artifact. All other options are those of Beam's
runner.

The files are named after the number of shards, as in headlines-00003-of-00004.jsonl. Beam writes
temporary files, and renames them when the pipeline has ended: a failed run leaves no output, and a
second run replaces the files of the first.
"""

import argparse
import json
import logging
import os
import re
from collections.abc import Callable, Sequence

if __name__ == "__main__":  # before Beam, which warns of packages, and logs tracebacks as errors
    logging.getLogger().setLevel(logging.CRITICAL)

import apache_beam as beam
import pyarrow
from apache_beam.io.filesystem import FileSystem
from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult

from bart_export.artifact.artifact import Artifact
from bart_export.errors import InputError
from bart_export.locations import redacted
from bart_export.progress import plural
from bart_export.runtime.lines import row_of_line, row_of_object
from bart_export.runtime.results import Row
from bart_export.scale import place_of, reason_of
from bart_export.scale.beam import BartModelHandler, error_rows, result_row

READ, FAILED = "read_texts", "failed_texts"  # counters
QUIET = ["--default_sdk_harness_log_level=ERROR"]
READERS = {".txt": row_of_line, ".jsonl": row_of_object, ".ndjson": row_of_object}
WRITTEN = (".jsonl", ".parquet")
SUFFIXES = {"input": READERS, "output": WRITTEN, "failed": WRITTEN}
COLUMNS = {
    "id": pyarrow.string(),
    "text": pyarrow.string(),
    "generated_text": pyarrow.string(),
    "score": pyarrow.float64(),
    "error": pyarrow.string(),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the pipeline."""
    parser, own, flags = parse(arguments)
    try:
        Artifact.open(own.artifact)  # before workers start
        pipeline = beam.Pipeline(options=PipelineOptions([*QUIET, *flags]))
        with pipeline:
            lines = pipeline | beam.io.ReadFromText(own.input, coder=beam.coders.BytesCoder())
            rows, unusable = (
                lines
                | beam.Map(row_of, READERS[suffix_of(own.input)])
                | "Count" >> beam.Map(counted, READ)
                | beam.Partition(lambda row, _: int("error" in row), 2)
            )
            predictions, dead = (
                rows
                | beam.Reshuffle()  # spreads the texts of a file over all workers
                | RunInference(
                    BartModelHandler(own.artifact), inference_args={"truncate": own.truncate}
                ).with_exception_handling(exc_class=InputError)
            )
            write(predictions | beam.Map(result_row), own.output, own.shards)
            letters = (dead.failed_inferences, *dead.failed_postprocessing) | beam.Flatten()
            failed = (unusable, letters | beam.FlatMap(error_rows)) | "Failed" >> beam.Flatten()
            write(failed | beam.Map(counted, FAILED), own.failed, 1)
        count, failures = (count_of(pipeline.result, name) for name in (READ, FAILED))
    except KeyboardInterrupt:
        parser.exit(130, "Interrupted.\n")
    except Exception as error:  # of any library and any process
        parser.exit(2, f"Error: {reason_of(error)}\n")
    if failures:
        where = f'see "error" in the files of {redacted(own.failed)}'
        parser.exit(1, f"No result for {failures} of {plural(count, 'text')}: {where}.\n")


def parse(
    arguments: Sequence[str] | None,
) -> tuple[argparse.ArgumentParser, argparse.Namespace, list[str]]:
    """Return the parser, what it knows, and options of Beam; refuse all others."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("artifact")
    for name in SUFFIXES:
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--shards", type=int, default=1, help="number of output files")
    parser.add_argument("--truncate", action="store_true", help="truncate texts that are too long")
    own, flags = parser.parse_known_args(arguments)
    beams: list[argparse.ArgumentParser] = []
    PipelineOptions([]).get_all_options(add_extra_args_fn=beams.append)
    beams[0].error = parser.error
    if unknown := beams[0].parse_known_args(flags)[1]:
        parser.error(f"unknown arguments: {redacted(' '.join(unknown))}")
    for name, suffixes in SUFFIXES.items():
        if suffix_of(path := getattr(own, name)) not in suffixes:
            parser.error(f"--{name} must end in {' or '.join(suffixes)}, received {redacted(path)}")
    if prefix_of(own.output) == prefix_of(own.failed):
        parser.error("--output and --failed must name different files, received the same")
    if own.shards < 1:
        parser.error(f"--shards must be at least 1, received {own.shards}")
    pattern = FileSystem.translate_pattern(place_of(own.input))
    for name, shards in (("output", own.shards), ("failed", 1)):
        prefix, suffix = os.path.splitext(place_of(getattr(own, name)))
        if re.match(pattern, f"{prefix}-00000-of-{shards:05}{suffix}"):  # and read by the next run
            received = redacted(own.input)
            parser.error(f"--input must not match the files of --{name}, received {received}")
    return parser, own, flags


def row_of(line: bytes, read: Callable[[bytes], Row]) -> Row:
    """Return the row for a line; Beam cannot encode lone surrogates."""
    try:
        json.dumps(row := read(line), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return {**row_of_line(line), "error": "The line must be valid Unicode, without \\ud800."}
    return row


def counted(row: Row, name: str) -> Row:
    """Return a row, and count it."""
    Metrics.counter("beam_summarize", name).inc()
    return row


def count_of(result: PipelineResult, name: str) -> int:
    """Return a counter's value at the end of a pipeline."""
    counters = result.metrics().query(MetricsFilter().with_name(name))["counters"]
    return sum(counter.result for counter in counters)


def suffix_of(path: str) -> str:
    """Return the suffix of a path."""
    return os.path.splitext(path)[1].lower()


def prefix_of(path: str) -> str:
    """Return what the names of a path's files begin with, absolute unless it is a URL."""
    prefix, suffix = os.path.splitext(place_of(path))
    return f"{prefix}{suffix.lower()}"


def write(rows: beam.PCollection, path: str, shards: int) -> None:
    """Write rows to files that are named after `path`, which ends in .jsonl or .parquet."""
    prefix, suffix = os.path.splitext(path)
    if suffix_of(path) == ".parquet":
        convert = beam.Map(columns)
        sink = beam.io.WriteToParquet(
            prefix, pyarrow.schema(COLUMNS), file_name_suffix=suffix, num_shards=shards
        )
    else:
        convert = beam.Map(json.dumps, default=repr)
        sink = beam.io.WriteToText(prefix, suffix, num_shards=shards)
    rows | f"Convert {path}" >> convert | f"Write {path}" >> sink


def columns(row: Row) -> Row:
    """Return the values of `COLUMNS` in a row."""
    strings = COLUMNS.keys() - {"score"}
    texts = {name: str(row[name]) for name in strings if row.get(name) is not None}
    return {**dict.fromkeys(COLUMNS), "score": row.get("score"), **texts}


if __name__ == "__main__":
    main()
