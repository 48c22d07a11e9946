"""Golden cases through saved signatures, loaded as Python does and as the server does.

What is fixed at export differs between cases, so one SavedModel holds a signature for each of its
combinations, made as the exporter makes its own.
"""

import contextlib
import json

import numpy as np
import pytest
import tensorflow as tf
from support.golden_cases import EACH_MODEL, GOLDEN, GoldenCases
from support.made_up_artifacts import CONFIG

from bart_export import contract
from bart_export.checkpoints import resolve
from bart_export.config import GenerationConfig
from bart_export.convert import saved_model
from bart_export.graph.parameters import BatchParameters, InferenceParameters
from bart_export.graph.saved_model_signatures import Served, defaults
from bart_export.graph.tokenizer import GraphTokenizer
from bart_export.server import tensorflow_engine
from bart_export.server.messages import object_array
from bart_export.server.options import ServeOptions
from bart_export.server.servable import Call
from bart_export.text.tokenizer import BartTokenizer
from bart_export.verify.saved_model import FIXED

SIGNATURES = {one.name: one for one in contract.saved_model_signatures()}
GENERATE = SIGNATURES["generate"]
TOKENIZATION = json.loads((GOLDEN / "tokenization.json").read_text(encoding="utf-8"))
VOCABULARY = GOLDEN.parent / "vocabulary"
LONGEST = 1024
PER_ROW = [tensor.name for tensor in contract.GENERATION_INPUTS]


def fixed(generation):
    """Return what of some settings is fixed at export."""
    names = (*FIXED, "num_return_sequences")
    return tuple((name, getattr(generation, name)) for name in names)


class SavedGolden:
    """A SavedModel of a golden checkpoint, and the cases that each of its signatures answers."""

    def __init__(self, name, directory):
        self.golden = GoldenCases(name)
        checkpoint = resolve.read(GOLDEN / name)
        tokenizer = checkpoint.tokenizer()
        parameters = InferenceParameters(
            checkpoint.config, lambda weight: np.asarray(checkpoint.weights[weight])
        )
        module = saved_model.ServedModule(
            BatchParameters(parameters), GraphTokenizer(tokenizer), "float32"
        )
        groups = {}
        for case in self.golden.cases:
            groups.setdefault(fixed(self.golden.settings(case)), []).append(case)
        self.groups = {f"generate_{number}": cases for number, cases in enumerate(groups.values())}
        functions = {}
        for key, cases in self.groups.items():
            generation = self.golden.settings(cases[0])
            served = Served(checkpoint.config, module.weights, module.tokenizer, generation, 64)
            functions[key] = saved_model.signature_function(served, GENERATE)
        self.directory = directory
        tf.saved_model.save(module, str(directory), signatures=functions)

    def inputs(self, cases):
        """Return the inputs of a call that answers all of some cases, a row each."""
        sources = [self.golden.source(case["row"]) for case in cases]
        lengths = np.array([len(source) for source in sources], np.int32)
        # What stands behind a source must not matter.
        ids = np.full((len(sources), lengths.max()), 3, np.int32)
        for row, source in zip(ids, sources, strict=True):
            row[: len(source)] = source
        settings = [defaults(self.golden.settings(case)) for case in cases]
        per_row = {
            name: np.concatenate([row[name].numpy() for row in settings]) for name in PER_ROW
        }
        per_row["early_stopping"] = object_array(per_row["early_stopping"])
        return {"encoder_token_ids": ids, "encoder_lengths": lengths, **per_row}

    def wrong(self, run):
        """Return the cases that `run(signature, inputs)` answers otherwise."""
        wrong = []
        for key, cases in self.groups.items():
            outputs = run(key, self.inputs(cases))
            for number, case in enumerate(cases):
                ids, lengths = (
                    np.asarray(outputs[name])[number]
                    for name in ("decoder_token_ids", "decoder_lengths")
                )
                scores = np.asarray(outputs["scores"])[number]
                sequences = ids[:, : lengths.max()].tolist()
                if not self.golden.same(case, sequences, scores):
                    wrong.append((case, sequences, scores))
        return wrong


@pytest.fixture(scope="module", params=EACH_MODEL)
def saved(request, tmp_path_factory):
    return SavedGolden(request.param, tmp_path_factory.mktemp(request.param) / "1")


@contextlib.contextmanager
def loaded(directory, by):
    """Yield `run(signature, outputs, inputs)` of a SavedModel, loaded in Python or as served."""
    if by == "python":
        signatures = tf.saved_model.load(str(directory)).signatures

        def run(key, outputs, inputs):
            given = {name: tf.constant(value) for name, value in inputs.items()}
            found = signatures[key](**given)
            return {name: found[name].numpy() for name in outputs}

        yield run
    else:
        servable = tensorflow_engine.open_saved_model(directory, ServeOptions())

        def serve(key, outputs, inputs):
            call = Call(signature=key, inputs=inputs, outputs=tuple(outputs))
            return servable.submit(call).result(timeout=300)

        try:
            yield serve
        finally:
            servable.close()


BY = ["python", pytest.param("server", marks=pytest.mark.slow)]


@pytest.mark.parametrize("by", BY)
def test_every_case_is_answered_token_for_token(saved, by):
    asked = [id(case) for cases in saved.groups.values() for case in cases]
    assert sorted(asked) == sorted(id(case) for case in saved.golden.cases)
    outputs = [tensor.name for tensor in GENERATE.outputs]
    with loaded(saved.directory, by) as run:
        assert saved.wrong(lambda key, inputs: run(key, outputs, inputs)) == []


@pytest.fixture(scope="module")
def saved_tokenizer(tmp_path_factory):
    """Return the directory of a SavedModel that has BART's vocabulary and no weights."""
    tokenizer = BartTokenizer.from_files(VOCABULARY / "vocabulary.json", VOCABULARY / "merges.txt")
    module = tf.Module()
    module.tokenizer = GraphTokenizer(tokenizer)
    served = Served(CONFIG, {}, module.tokenizer, GenerationConfig(), LONGEST)
    functions = {
        name: saved_model.signature_function(served, SIGNATURES[name])
        for name in ("tokenize", "detokenize")
    }
    directory = tmp_path_factory.mktemp("tokenizer") / "1"
    tf.saved_model.save(module, str(directory), signatures=functions)
    return directory


@pytest.mark.parametrize("by", ["python", "server"])
def test_every_text_is_tokenized_and_comes_back(saved_tokenizer, by):
    wrong = []
    with loaded(saved_tokenizer, by) as run:
        for first in range(0, len(TOKENIZATION), 100):
            rows = TOKENIZATION[first : first + 100]
            texts = object_array([row["text"].encode() for row in rows])
            found = run("tokenize", ["encoder_token_ids", "encoder_lengths"], {"text": texts})
            ids, lengths = found["encoder_token_ids"], found["encoder_lengths"]
            given = {"decoder_token_ids": ids, "decoder_lengths": lengths}
            back = run("detokenize", ["text"], given)["text"]
            for row, received, length, text in zip(rows, ids, lengths, back, strict=True):
                same = received[:length].tolist() == [0, *row["ids"], 2]
                if not same or text.decode() != row["text"]:
                    wrong.append((row, received[:length], text))
    assert len(TOKENIZATION) == 600
    assert wrong == []
