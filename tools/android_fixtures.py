"""Write the fixtures of the Kotlin tests: bundles of models, and Python's results with them.

Usage: android_fixtures.py [--output build/android]

The fixtures are rebuilt and replaced atomically if the package, this file, the data or a version
has changed. Otherwise nothing is done, and TensorFlow is not imported.
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bart_export.artifact import drafts
from bart_export.artifact.artifact import Artifact
from bart_export.artifact.drafts import write_json
from bart_export.config import GenerationConfig
from bart_export.contract import StaticShapes
from bart_export.errors import BartExportError
from bart_export.export.options import TfliteOptions
from bart_export.recipes.table import DEFAULT, RECIPES
from bart_export.runtime.logits import sampled_choice
from bart_export.runtime.search import drive, search
from bart_export.text.tokenizer import BartTokenizer, IncrementalDetokenizer
from bart_export.text.vocabulary import BYTE_SYMBOLS

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
TEXTS = ROOT / "tools" / "mini_model" / "test.jsonl"
VERSIONS = ("ai-edge-litert", "tensorflow", "keras", "ai-edge-quantizer", "numpy", "tokenizers")
STAMP = "stamp.json"
LIBRARY = "libLiteRt.path"

PRESET = "bart_mini_en"
ONE_SOURCE = "one_source"  # an artifact with version 1 of the contract
GENERATED = 200  # texts
BEAMS = 4
# For the golden cases (sources of 8 to 20 tokens, at most 24 generated tokens, 1 to 4 beams) and
# the texts of golden.json, which fill these models' 64 positions.
GOLDEN_MODELS = ("bart_tiny_symmetric", "bart_tiny_distilled")
GOLDEN_SHAPES = StaticShapes(source_lengths=(8, 24, 64), target_length=24, num_beams=(1, 4))

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
    write_lines(directory / "search.jsonl", search_rows())
    write_json(directory / "sampling.json", {"pcg64": uniforms(), "choices": list(choices())})
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
        models[name] = str(DATA / "golden" / name), options
    with cli.loading_tensorflow(stage):
        from bart_export.artifact import bundle
        from bart_export.export.pipeline import export
    for name, (preset, options) in models.items():
        stage(f"export {name}")
        made = export(preset, options, exports / name)
        bundle.write(made, options.recipes[0].name, directory / name)


def write_generations(directory: Path, bundle: Path) -> None:
    """Write generations.json, the settings by name, and generations.jsonl, a row for each text.

    A row has `text`, `source_token_ids`, and the best sequence by name of the settings.
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
        row = {"text": text, "source_token_ids": results["greedy"][number].source_token_ids}
        for name, answers in results.items():
            best = answers[number]
            row[name] = {"token_ids": best.token_ids, "text": best.text, "score": best.score}
        rows.append(row)
    write_lines(directory / "generations.jsonl", rows)


def changed(own: GenerationConfig, wanted: GenerationConfig) -> dict[str, Any]:
    """Return the parameters that change `own` to `wanted`."""
    before = own.to_dict()
    return {name: value for name, value in wanted.to_dict().items() if value != before[name]}


# Searches with a model that both languages compute exactly.

SEARCHES = 180
# Adding a constant to all logits must not change a beam search. Rows that do change depend on the
# last bits of an exponential, which languages compute differently.
MOVED = (97.0, -61.0, 211.0)


def logits_after(sequence: tuple[int, ...], vocabulary_size: int) -> np.ndarray:
    """Return the logits after a sequence, (vocabulary,): integers divided by 101."""
    h = 17
    for token in sequence:
        h = (h * 31 + token + 1) % 2**31
    v = np.arange(vocabulary_size, dtype=np.int64)
    return (((h * (v + 3) + v * v * 7) % 1009) / 101.0).astype(np.float32)


def search_row(
    vocabulary_size: int, generation: GenerationConfig, moved: float = 0.0
) -> dict[str, Any]:
    """Return the settings of a search and its results; the decoder state is the sequences."""

    def step(
        state: list[tuple[int, ...]], token_ids: np.ndarray, beam_index: np.ndarray
    ) -> tuple[np.ndarray, list[tuple[int, ...]]]:
        pairs = zip(beam_index.tolist(), token_ids.tolist(), strict=True)
        grown = [(*state[beam], token) for beam, token in pairs]
        logits = [logits_after(sequence, vocabulary_size) for sequence in grown]
        return np.stack(logits) + np.float32(moved), grown

    rows = max(generation.num_beams, generation.num_return_sequences)
    *settled, finished = drive(search(generation), step, [()] * rows)
    return {
        "vocabulary_size": vocabulary_size,
        "generation": generation.to_dict(),
        "hypotheses": [
            {"token_ids": one.token_ids, "score": one.score} for one in finished.hypotheses
        ],
        "settled": [event.token_ids for event in settled],
    }


def search_settings() -> Iterator[tuple[int, GenerationConfig]]:
    """Yield vocabulary sizes and settings endlessly, in all combinations."""
    chance = random.Random(0)
    for number in itertools.count():
        vocabulary_size = (23, 7, 700, 7, 2, 23)[number % 6]
        kind = ("beams", "beams", "greedy", "beams", "sampling")[number // 6 % 5]
        max_length = chance.choice((2, 5, 12, 20, 30))
        small = vocabulary_size == 2
        common = {
            "max_length": max_length,
            "min_length": chance.choice((0, 0, 4, max_length)) % (max_length + 1),
            "no_repeat_ngram_size": 0 if small else chance.choice((0, 0, 1, 2, 3)),
            "repetition_penalty": chance.choice((1.0, 1.0, 1.3, 0.8)),
            "forced_bos_token_id": chance.choice((None, None, 0)),
            "forced_eos_token_id": chance.choice((None, 1 if small else 2)),
            "eos_token_id": 1 if small else chance.choice((2, 2, (2, 5))),
            "decoder_start_token_id": 1 if small else 2,
        }
        if kind == "beams":
            num_beams = chance.randrange(2, 6)
            own = {
                "num_beams": num_beams,
                "num_return_sequences": chance.randrange(1, num_beams + 1),
                "length_penalty": chance.choice((1.0, 0.0, 2.0, -1.0, 0.6)),
                "early_stopping": chance.choice((True, False, "never")),
            }
        elif kind == "sampling":
            own = {
                "do_sample": True,
                "seed": chance.choice((0, 1, 7, 42, 2**32, 2**63 - 1)),
                "num_return_sequences": chance.choice((1, 1, 3)),
                "temperature": chance.choice((1.0, 0.7, 1.8)),
                "top_k": chance.choice((0, 50, 4)),
                "top_p": chance.choice((1.0, 0.9, 0.3)),
            }
        else:
            own = {}
        yield vocabulary_size, GenerationConfig(**common, **own)


def search_rows() -> Iterator[dict[str, Any]]:
    """Yield the rows of search.jsonl, which do not depend on rounding."""
    rows = filter(None, map(stable_row, search_settings()))
    yield from itertools.islice(rows, SEARCHES)


def stable_row(setting: tuple[int, GenerationConfig]) -> dict[str, Any] | None:
    """Return the row of a setting, or None if it depends on rounding or no token is left."""
    try:
        row = search_row(*setting)
        moves = MOVED if setting[1].num_beams > 1 else ()
        others = [search_row(*setting, moved) for moved in moves]
    except BartExportError:
        return None
    same = all(tokens_of(other) == tokens_of(row) for other in others)
    return row if same else None


def tokens_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the parts of a row that must not depend on rounding."""
    return [one["token_ids"] for one in row["hypotheses"]], row["settled"]


# Random numbers.

SEEDS = (0, 1, 42, 2**32, 2**63 - 1)
DRAWS = 40


def uniforms() -> list[dict[str, Any]]:
    """Return the first random numbers of NumPy's generator for each seed."""
    return [
        {"seed": seed, "uniforms": np.random.Generator(np.random.PCG64(seed)).random(5).tolist()}
        for seed in SEEDS
    ]


def choices() -> Iterator[dict[str, Any]]:
    """Yield settings, rows of logits, and the tokens drawn from them with one seed."""
    stream = np.random.default_rng(0)
    table = itertools.product((1.0, 0.6, 1.7), (0, 1, 5, 50), (1.0, 0.9, 0.4))
    for number, (temperature, top_k, top_p) in enumerate(table):
        rows = (stream.normal(size=(DRAWS, 30)) * 3).astype(np.float32)
        rows[1::5] = rows[1::5].round()  # equal logits
        rows[2::5, ::3] = rows[2::5].max()
        sampling = {
            "seed": SEEDS[number % len(SEEDS)],
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        }
        choose = sampled_choice(GenerationConfig(do_sample=True, **sampling))
        tokens = [choose(row) for row in rows]
        yield {**sampling, "rows": rows.tolist(), "tokens": tokens}


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
