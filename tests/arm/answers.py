"""Writes what an artifact's files compute on this processor; test_arm.py runs it under emulation.

Usage: answers.py ARTIFACT ENGINE TEXTS.json OUTPUT RECIPE:COUNT ...

OUTPUT is a directory. RECIPE.json in it has the sources, and the token ids and scores of the golden
answers, one at a time, and of the headlines of the first COUNT texts, together. RECIPE.npy has
the logits along the Keras model's distinct golden answers, float32 (tokens, vocabulary).
"""

import json
import sys
from pathlib import Path

import numpy as np

from bart_export.artifact.artifact import Artifact
from bart_export.runtime.generator import Generator
from bart_export.runtime.search import run, search


def main():
    artifact, engine, texts, output, *wanted = sys.argv[1:]
    cases = Artifact.open(Path(artifact)).golden().cases
    traces = {(case.source_token_ids, case.reference.token_ids): None for case in cases}
    lines = json.loads(Path(texts).read_bytes())
    for each in wanted:
        recipe, count = each.split(":")
        with Generator.from_artifact(artifact, recipe=recipe, engine=engine) as generator:
            results = generator.generate(lines[: int(count)], truncate=True)
            answers = {
                "sources": [
                    *(case.source_token_ids for case in cases),
                    *(result.source_token_ids for result in results),
                ],
                "golden": [answer(generator.engine, case) for case in cases],
                "headlines": [(result.token_ids, result.score) for result in results],
            }
            logits = [forced_logits(generator.engine, *trace) for trace in traces]
        np.save(Path(output, f"{recipe}.npy"), np.concatenate(logits))
        Path(output, f"{recipe}.json").write_text(json.dumps(answers))


def answer(engine, case):
    """Return the token ids and score of a golden answer."""
    generation = case.generation
    state = engine.start(case.source_token_ids, generation.num_beams, generation.max_length)
    best = run(search(generation), engine.step, state)[0]
    return best.token_ids, best.score


def forced_logits(engine, source, tokens):
    """Return the logits (tokens, vocabulary) along an answer to a source."""
    rows, row_of_beam = [], np.zeros(1, np.int32)
    state = engine.start(source, 1, len(tokens))
    for token in tokens[:-1]:
        logits, state = engine.step(state, np.array([token], np.int32), row_of_beam)
        rows.append(logits[0].copy())
    return np.stack(rows)


if __name__ == "__main__":
    main()
