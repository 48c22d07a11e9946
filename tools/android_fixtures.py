"""Write the fixtures of the Kotlin tests: bundles of models, and Python's results with them.

Usage: android_fixtures.py [--output build/android]

The fixtures are rebuilt and replaced atomically if the package, this file, the data or a version
has changed. Otherwise nothing is done, and TensorFlow is not imported.
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import android_searches

from bart_export.artifact import drafts
from bart_export.artifact.artifact import Artifact
from bart_export.artifact.drafts import write_json
from bart_export.config import GenerationConfig
from bart_export.contract import StaticShapes
from bart_export.errors import BartExportError
from bart_export.export.options import TfliteOptions
from bart_export.recipes.table import DEFAULT, RECIPES
from bart_export.text.tokenizer import BartTokenizer, IncrementalDetokenizer
from bart_export.text.vocabulary import BYTE_SYMBOLS

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
TEXTS = ROOT / "tools" / "mini_model" / "test.jsonl"
VERSIONS = ("ai-edge-litert", "tensorflow", "keras", "litert-quantizer", "numpy", "tokenizers")
STAMP = "stamp.json"
LIBRARY = "libLiteRt.path"

PRESET = "bart_mini_en"
ONE_SOURCE = "one_source"  # an artifact with version 1 of the contract
GENERATED = 200  # texts
BEAMS = 4
# For the golden cases (sources of 8 to 20 tokens, at most 24 generated tokens, 1 to 4 beams) and
# the texts of golden.json, which fill these models' 64 positions.
GOLDEN_MODELS = ("bart_tiny_symmetric", "bart_tiny_distilled")
# Kotlin ignores the buckets for several sources.
GOLDEN_SHAPES = StaticShapes((8, 24, 64), target_length=24, num_beams=(1, 4), sources=(2,))
MOST_DRAFTED = 10  # tokens; these models' settings enable drafts

Stage = Callable[[str], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "android")
    output = parser.parse_args().output.absolute()
    try:
        make(output)
    except BartExportError as error:
        sys.exit(str(error))


def make(output: Path) -> None:
    """Write all fixtures unless they are up to date."""
    wanted = stamp()
    if found(output) == wanted:
        print(f"{output} is up to date")
    else:
        with drafts.place_beside(output) as place:
            draft = place / drafts.ARTIFACT
            draft.mkdir()
            write(draft)
            (draft / LIBRARY).write_text(library())
            write_json(draft / STAMP, wanted)
            if output.exists():
                drafts.exchange(draft, output)
            else:
                draft.rename(output)
    # The environment may have moved.
    (output / LIBRARY).write_text(library())


def stamp() -> dict[str, Any]:
    """Return the versions and hashes that the fixtures depend on."""
    sources = [
        Path(__file__),
        Path(android_searches.__file__),
        TEXTS,
        *(path for path in (ROOT / "bart_export").rglob("*") if "__pycache__" not in path.parts),
        *DATA.rglob("*"),
    ]
    digests = {
        str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(sources)
        if path.is_file()
    }
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    return {"versions": versions, "sources": digests}


def found(output: Path) -> Any:
    """Return the stamp of an earlier complete run, or None if there is none."""
    try:
        return json.loads((output / STAMP).read_bytes())
    except (OSError, ValueError):
        return None


def library() -> str:
    """Return the path of the installed LiteRT's C library and LiteRT's version, on two lines."""
    package = importlib.util.find_spec("ai_edge_litert")
    assert package is not None and package.origin is not None
    version = importlib.metadata.version("ai-edge-litert")
    return f"{Path(package.origin).with_name('libLiteRt.so')}\n{version}\n"


def write(directory: Path) -> None:
    """Write all files into an empty directory."""
    began = time.perf_counter()

    def stage(name: str) -> None:
        print(f"{time.perf_counter() - began:6.1f} s  {name}", flush=True)

    stage("search, sampling and text without a model")
    write_lines(directory / "search.jsonl", android_searches.search_rows())
    write_lines(directory / "drafts.jsonl", android_searches.draft_rows())
    samples = {
        "pcg64": android_searches.uniforms(),
        "choices": list(android_searches.choices()),
    }
    write_json(directory / "sampling.json", samples)
    write_lines(directory / "incremental.jsonl", incremental_rows())
    shutil.copytree(DATA / "artifacts" / ONE_SOURCE, directory / ONE_SOURCE)
    exports = directory / "exports"
    write_bundles(directory, exports, stage)
    stage(f"generate from {GENERATED} texts")
    write_generations(directory, directory / PRESET)
    shutil.rmtree(exports)
    stage("finished")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# Bundles, and the texts that Python generates with one.


def write_bundles(directory: Path, exports: Path, stage: Stage) -> None:
    """Export the presets and write a bundle of each to the directory."""
    from bart_export import cli
    from bart_export.cli.export import static_shapes

    shapes = static_shapes({"shapes": "static"})
    models = {PRESET: (PRESET, TfliteOptions((RECIPES[DEFAULT],), shapes))}
    for name in GOLDEN_MODELS:
        options = TfliteOptions((RECIPES["float32"],), GOLDEN_SHAPES)
        models[name] = str(drafting(DATA / "golden" / name, exports / "presets" / name)), options
    with cli.loading_tensorflow(stage):
        from bart_export.artifact import bundle
        from bart_export.export.pipeline import export
    for name, (preset, options) in models.items():
        stage(f"export {name}")
        made = export(preset, options, exports / name)
        bundle.write(made, options.recipes[0].name, directory / name)


def drafting(preset: Path, target: Path) -> Path:
    """Copy a preset, and enable drafts in its settings."""
    shutil.copytree(preset, target)
    path = target / "generation_config.json"
    settings = json.loads(path.read_bytes())
    write_json(path, {**settings, "prompt_lookup_num_tokens": MOST_DRAFTED})
    return target


def write_generations(directory: Path, bundle: Path) -> None:
    """Write generations.json, the settings by name, and generations.jsonl, a row for each text.

    A row has `text`, `source_token_ids`, `truncated`, and for each settings the best sequence.
    """
    from bart_export.quiet import native_stderr_silenced
    from bart_export.runtime.generator import Generator

    own = Artifact.open(bundle).generation
    settings = {"greedy": own.replace(num_beams=1), "beams": own.replace(num_beams=BEAMS)}
    lines = TEXTS.read_text(encoding="utf-8").splitlines()[:GENERATED]
    texts = [json.loads(line)["text"] for line in lines]
    with native_stderr_silenced():
        generator = Generator.from_artifact(bundle)
        results = {
            name: generator.generate(texts, truncate=True, **changed(own, generation))
            for name, generation in settings.items()
        }
    shutil.rmtree(bundle / ".cache", ignore_errors=True)
    write_json(
        directory / "generations.json",
        {name: generation.to_dict() for name, generation in settings.items()},
    )
    rows = []
    for number, text in enumerate(texts):
        first = results["greedy"][number]
        row: dict[str, Any] = {
            "text": text,
            "source_token_ids": first.source_token_ids,
            "truncated": first.truncated,
        }
        for name, answers in results.items():
            best = answers[number]
            row[name] = {"token_ids": best.token_ids, "text": best.text, "score": best.score}
        rows.append(row)
    write_lines(directory / "generations.jsonl", rows)


def changed(own: GenerationConfig, wanted: GenerationConfig) -> dict[str, Any]:
    """Return the parameters that change `own` to `wanted`."""
    before = own.to_dict()
    return {name: value for name, value in wanted.to_dict().items() if value != before[name]}


# Incremental detokenization.

WHOLE = (
    "Hello, world.",
    "Grüße aus Kraków: naïve façade, £5 — “quoted”…",
    "🚀🐈 and 👩‍👩‍👧‍👦, 🇩🇪 flags, 👍🏽 skin",
    "e\u0301a\u0308o\u0302 n\u0303 Z\u0351\u036b\u0343 combined",
    "文字化け テスト 한국어 नमस्ते שלום مرحبا ไทย",
    "line\nbreak\ttab\u00a0space\u3000wide\u2028end",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff \ufffd \ufeff \u200b",
)
RANDOM_ROWS = 400


def incremental_rows() -> Iterator[dict[str, Any]]:
    """Yield ids, the text completed by each of them, and the rest at the end."""
    folder = DATA / "vocabulary"
    tokenizer = BartTokenizer.from_files(folder / "vocabulary.json", folder / "merges.txt")
    detokenizer = IncrementalDetokenizer(tokenizer)
    for ids in incremental_ids(tokenizer):
        yield {
            "ids": ids,
            "pieces": [detokenizer.push(one) for one in ids],
            "finish": detokenizer.finish(),
        }


def incremental_ids(tokenizer: BartTokenizer) -> Iterator[list[int]]:
    """Yield ids of complete and cut texts, of single bytes, and random ids."""
    single = [tokenizer.token_to_id(symbol) for symbol in BYTE_SYMBOLS]
    special = sorted(tokenizer.special_token_ids)
    chance = random.Random(0)
    for text in WHOLE:
        ids = list(tokenizer.tokenize(text))
        yield ids
        yield [tokenizer.start_token_id, *ids, tokenizer.end_token_id]
        octets = [single[byte] for byte in text.encode()]
        yield octets
        for _ in range(5):
            begin = chance.randrange(len(octets))
            yield octets[begin : begin + chance.randrange(1, 9)]
            cut = chance.randrange(len(octets))
            yield [*octets[:cut], chance.choice(special), *octets[cut:]]
    for _ in range(RANDOM_ROWS):
        kinds = (single[0x80:], single, special, range(tokenizer.vocabulary_size))
        weights = (6, 2, 1, 2)
        yield [
            chance.choice(kind)
            for kind in chance.choices(kinds, weights, k=chance.randrange(1, 24))
        ]


if __name__ == "__main__":
    main()
