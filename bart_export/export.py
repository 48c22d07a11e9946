"""The journey of an export, top to bottom: a preset goes in, a verified artifact comes out.

`export` names every stage in order; each is a room of its own. Nothing is committed unless every
file says what the Keras model says, and whatever fails leaves the previous artifact as it was.
"""

import dataclasses
import importlib.metadata
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import bart_export
from bart_export import artifact, checkpoints, contract, presets
from bart_export.artifact import Artifact, Draft
from bart_export.checkpoints import Checkpoint, names
from bart_export.config import GenerationConfig
from bart_export.errors import ArtifactError
from bart_export.model import BartBackbone
from bart_export.presets import Source
from bart_export.progress import Stage
from bart_export.quality import golden, verify
from bart_export.quality.reference import KerasReference
from bart_export.recipes import Recipe
from bart_export.runtime.engine import CompiledModelEngine
from bart_export.targets import tflite
from bart_export.text.tokenizer import BartTokenizer

GOLDEN = "golden.json"
VOCABULARY, MERGES = "tokenizer/vocabulary.json", "tokenizer/merges.txt"

# Writes a target's files into a draft and returns, for each file's name, its recipe.
Target = Callable[[BartBackbone, Sequence[Recipe], Draft, Stage], dict[str, Recipe]]
TARGETS: dict[str, Target] = {"tflite": tflite.write_recipes}


def export(
    preset: str,
    target: str,
    chosen: Sequence[Recipe],
    output: pathlib.Path,
    stage: Stage = lambda name: None,
) -> Artifact:
    """Export a preset to an artifact directory.

    Args:
        preset: what `presets.resolve` takes.
        target: a key of `TARGETS`.
        chosen: recipes to write, one file each.
        output: the artifact directory to make, to add to, or to replace.
        stage: told the name of each stage as it begins.

    Raises:
        BartExportError: of the family, for whatever cannot be read, written or is not true.
        VerificationFailed: if a file does not say what the Keras model says.
    """
    stage("resolve the preset")
    source = presets.resolve(preset)
    stage("read the checkpoint")
    checkpoint = checkpoints.read(source.directory)
    generation = presets.defaults_for(source, checkpoint.generation)
    stage("build the Keras model")
    backbone = BartBackbone.from_checkpoint(checkpoint)
    with artifact.draft(output) as draft:
        tokenizer = write_tokenizer(checkpoint, draft)
        files = TARGETS[target](backbone, chosen, draft, stage)
        stage("ask the Keras model")
        questions = golden.questions(
            tokenizer, checkpoint.config, generation, checkpoint.encoder_sequence_length
        )
        reference = verify.consult(KerasReference(backbone), tokenizer, questions)
        rows, answers = [], {}
        for name, recipe in files.items():
            stage(f"verify {name}")
            engine = CompiledModelEngine(draft.directory / name, checkpoint.config)
            comparison, answers[name] = verify.check(name, recipe, engine, tokenizer, reference)
            rows.append({"file": name, **dataclasses.asdict(comparison)})
        stage("commit the artifact")
        manifest = describe(source, checkpoint, tokenizer, generation, preset)
        kept = keep_others(output, manifest, files, draft)
        manifest["files"] |= {name: entry(draft, name, target, files[name]) for name in files}
        manifest["verification"] = rows + kept["verification"]
        manifest["files"] |= kept["files"]
        content = golden.to_dict(questions, reference.answers, answers)
        golden.add_files(content, kept["golden"])
        write_json(draft.directory / GOLDEN, content)
        for name in (VOCABULARY, MERGES, GOLDEN):
            manifest["files"][name] = draft.entry(name)
        draft.commit(manifest)
    return Artifact.open(output)


def write_tokenizer(checkpoint: Checkpoint, draft: Draft) -> BartTokenizer:
    """Write the tokenizer's files into a draft and open them there."""
    vocabulary, merges = draft.directory / VOCABULARY, draft.directory / MERGES
    vocabulary.parent.mkdir()
    write_json(vocabulary, dict(checkpoint.vocabulary))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in checkpoint.merges)]
    merges.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return BartTokenizer.from_files(vocabulary, merges)


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write a JSON file that people can read."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def describe(
    source: Source,
    checkpoint: Checkpoint,
    tokenizer: BartTokenizer,
    generation: GenerationConfig,
    preset: str,
) -> dict[str, Any]:
    """Return the manifest's fields that do not depend on the files."""
    config = checkpoint.config
    sizes = contract.sizes(config)
    return {
        "preset": preset,
        "source": {
            "handle": source.handle,
            "revision": source.revision,
            "format": checkpoint.format,
            "weights_sha256": checkpoints.weights_digest(checkpoint),
        },
        "config": config.to_dict(),
        "parameter_count": names.parameter_count(config),
        "generation": generation.to_dict(),
        "encoder_sequence_length": checkpoint.encoder_sequence_length,
        "special_token_ids": {
            "start_token_id": tokenizer.start_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "end_token_id": tokenizer.end_token_id,
            "unknown_token_id": tokenizer.unknown_token_id,
            "mask_token_id": tokenizer.mask_token_id,
        },
        "tokenizer": {"vocabulary": VOCABULARY, "merges": MERGES},
        "signatures": {
            "tflite": {
                signature.name: signature.to_dict(sizes)
                for signature in contract.tflite_signatures(config)
            }
        },
        "tools": {"bart-export": bart_export.__version__}
        | {name: importlib.metadata.version(name) for name in TOOLS},
        "files": {},
        "verification": [],
    }


TOOLS = ("tensorflow", "keras", "ai-edge-litert", "ai-edge-quantizer", "numpy", "tokenizers")
SAME = ("source", "config", "generation", "encoder_sequence_length")


def entry(draft: Draft, name: str, target: str, recipe: Recipe) -> dict[str, Any]:
    """Return the manifest's entry of an exported file."""
    return draft.entry(
        name,
        target=target,
        recipe=recipe.name,
        runtimes=dict(recipe.runtimes),
        refusals=dict(recipe.refusals),
    )


def keep_others(
    output: pathlib.Path, manifest: Mapping[str, Any], files: Mapping[str, Recipe], draft: Draft
) -> dict[str, Any]:
    """Carry over what an earlier export of the very same source left, and this one does not write.

    Returns the manifest's entries and verification rows of those files, and their golden cases.
    An artifact of another source, or one that is damaged, is replaced whole.
    """
    nothing: dict[str, Any] = {"files": {}, "verification": [], "golden": {"cases": []}}
    others: dict[str, Any] = {}
    try:
        previous = Artifact.open(output)
        if any(previous.manifest[field] != manifest[field] for field in SAME):
            return nothing
        cases = json.loads(previous.path(GOLDEN).read_bytes())
        others = {
            name: details
            for name, details in previous.manifest["files"].items()
            if "target" in details and name not in files
        }
        for name in others:
            draft.carry(previous, name)
    except ArtifactError:
        for name in others:
            (draft.directory / name).unlink(missing_ok=True)
        return nothing
    return {
        "files": others,
        "verification": [row for row in previous.manifest["verification"] if row["file"] in others],
        "golden": cases,
    }
