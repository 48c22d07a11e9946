"""Measures Beam's worker processes: texts a second, and memory of each.

    python tools/measure_beam.py ARTIFACT TEXTS.jsonl --workers 1 --workers 2

Rates are those of the time from the first batch's beginning to the last one's end: they leave out
the start of Beam and of its processes. Memory is without the pages of files, which processes share,
and without that of a worker that has imported Beam, this package and LiteRT.
"""

import argparse
import json
import logging
import os
import tempfile
import time
from pathlib import Path

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import PipelineOptions
from measuring import anonymous_bytes, command
from rich.table import Table

from bart_export.bench.measurements import host
from bart_export.runtime.generator import Generator
from bart_export.scale.beam import BartModelHandler

MIB = 1 << 20
ONE = "one process with two threads"


class MeasuredHandler(BartModelHandler):
    """Writes the time of each batch, and the process's memory, to a file per process."""

    def __init__(self, location, folder, **settings):
        super().__init__(location, **settings)
        self.folder = folder

    def write(self, **record):
        record["bytes"] = anonymous_bytes()
        with open(f"{self.folder}/{os.getpid()}.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")

    def load_model(self):
        import ai_edge_litert.compiled_model  # noqa: F401 - before the memory is read

        self.write()
        return super().load_model()

    def run_inference(self, batch, model, inference_args=None):
        began = time.time()
        predictions = super().run_inference(batch, model, inference_args)
        self.write(began=began, ended=time.time(), texts=len(batch))
        return predictions


def rows_of(folder):
    """Return the records of each process that had a batch."""
    paths = Path(folder).glob("*.jsonl")
    read = [list(map(json.loads, path.read_text().splitlines())) for path in paths]
    return [records for records in read if len(records) > 1]


def measure(artifact, texts, workers, **settings):
    """Run a pipeline with worker processes, and return its rate and memory."""
    with tempfile.TemporaryDirectory() as folder:
        options = PipelineOptions(
            runner="FnApiRunner",
            direct_running_mode="multi_processing",
            direct_num_workers=workers,
        )
        handler = MeasuredHandler(artifact, folder, **settings)
        with beam.Pipeline(options=options) as pipeline:
            pipeline | beam.Create(texts) | beam.Reshuffle() | RunInference(handler)
        processes = rows_of(folder)
    batches = [batch for records in processes for batch in records[1:]]
    seconds = max(batch["ended"] for batch in batches) - min(batch["began"] for batch in batches)
    assert sum(batch["texts"] for batch in batches) == len(texts)
    return {
        "processes": len(processes),
        "batches": len(batches),
        "texts_per_second": len(texts) / seconds,
        "worker_mib": [
            (max(batch["bytes"] for batch in records) - records[0]["bytes"]) / MIB
            for records in processes
        ],
    }


def compare(arguments):
    logging.getLogger().setLevel(logging.ERROR)
    lines = arguments.texts.read_text(encoding="utf-8").splitlines()
    texts = [" ".join(json.loads(line)["text"].split()[: arguments.words]) for line in lines]
    texts = (texts * (arguments.count // len(texts) + 1))[: arguments.count]
    artifact = str(arguments.artifact)
    with Generator.from_artifact(artifact, recipe=arguments.recipe, num_threads=2) as generator:
        generator.generate(texts[:8])
        began = time.perf_counter()
        list(generator.generate_iter(texts))
        rate = len(texts) / (time.perf_counter() - began)
    rows = [{"name": ONE, "texts_per_second": rate, "worker_mib": []}]
    for workers in arguments.workers:
        measured = measure(artifact, texts, workers, recipe=arguments.recipe)
        rows.append({"name": f"Beam, {workers} workers with one thread", **measured})
    return {"machine": host().to_dict(), "artifact": artifact, "texts": len(texts), "rows": rows}


def table(report):
    made = Table("", "texts a second", "MiB of each worker")
    for row in report["rows"]:
        memory = ", ".join(f"{one:.0f}" for one in row["worker_mib"])
        made.add_row(row["name"], f"{row['texts_per_second']:.1f}", memory)
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("texts", type=Path, help='JSON Lines with a "text"')
    parser.add_argument("--recipe")
    parser.add_argument("--words", type=int, default=40, help="words of each text that are used")
    parser.add_argument("--count", type=int, default=2000, help="texts, which are repeated")
    parser.add_argument("--workers", type=int, action="append", required=True)
    command(parser, compare, table)
