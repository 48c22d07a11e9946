"""Summarize the texts of many files with Apache Beam.

    python examples/beam_summarize.py artifacts/bart_mini_en --input 'texts*.jsonl' \\
        --output build/headlines.jsonl --failed build/failed.jsonl --shards 4 \\
        --direct_running_mode=multi_processing --direct_num_workers=2

The input is .txt with a text per line, or .jsonl with objects that have a "text"; the output is
.jsonl, or .parquet with the columns id, text, generated_text, score and error. Texts that cannot be
summarized are in the --failed files, with an "error". Paths and the artifact may be on any file
system of Beam. All other options are those of Beam's runner.

The files are named after the number of shards, as in headlines-00003-of-00004.jsonl. Beam writes
temporary files, and renames them when the pipeline has ended: a failed run leaves no output, and a
second run replaces the files of the first.
"""

import argparse
import json
import logging
import os
from collections.abc import Sequence

import apache_beam as beam
import pyarrow
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import PipelineOptions

from bart_export.documents import parse_json
from bart_export.errors import InputError
from bart_export.runtime.results import Row
from bart_export.scale.beam import BartModelHandler, error_rows, result_row

READERS = {".jsonl": parse_json, ".txt": lambda line: {"text": line.decode()}}
COLUMNS = {
    "id": pyarrow.string(),
    "text": pyarrow.string(),
    "generated_text": pyarrow.string(),
    "score": pyarrow.float64(),
    "error": pyarrow.string(),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the pipeline."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("artifact")
    for name in ("input", "output", "failed"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--shards", type=int, default=1, help="number of output files")
    own, flags = parser.parse_known_args(arguments)
    quiet = "--default_sdk_harness_log_level=ERROR"
    read = READERS.get(suffix_of(own.input))
    if read is None:
        parser.error(f"--input must end in {' or '.join(READERS)}, received {own.input}")
    for path in (own.output, own.failed):
        if suffix_of(path) not in (".jsonl", ".parquet"):
            parser.error(f"--output and --failed must end in .jsonl or .parquet, received {path}")

    with beam.Pipeline(options=PipelineOptions([quiet, *flags])) as pipeline:
        lines = pipeline | beam.io.ReadFromText(own.input, coder=beam.coders.BytesCoder())
        rows, unreadable = lines | beam.Map(read).with_exception_handling()
        predictions, dead = (
            rows
            | beam.Reshuffle()  # spreads the texts of a file over all workers
            | RunInference(BartModelHandler(own.artifact)).with_exception_handling(
                exc_class=InputError
            )
        )
        write(predictions | beam.Map(result_row), own.output, own.shards)
        letters = (unreadable, dead.failed_inferences, *dead.failed_postprocessing)
        write(letters | beam.Flatten() | beam.FlatMap(error_rows), own.failed, 1)


def suffix_of(path: str) -> str:
    """Return the suffix of a path."""
    return os.path.splitext(path)[1]


def write(rows: beam.PCollection, path: str, shards: int) -> None:
    """Write rows to files that are named after `path`, which ends in .jsonl or .parquet."""
    prefix, suffix = os.path.splitext(path)
    if suffix == ".parquet":
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
    texts = {name: str(value) for name, value in row.items() if name in strings}
    return {**dict.fromkeys(COLUMNS), "score": row.get("score"), **texts}


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.ERROR)  # Beam warns of packages that are not needed
    main()
