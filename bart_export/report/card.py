"""README.md, the model card of an artifact on the Hugging Face Hub.

The text is in `templates/README.md.j2`; the front matter has the fields of
huggingface.co/docs/hub/model-cards.
"""

import re
from collections.abc import Iterator
from typing import Any

from bart_export.artifact.figures import FileVerification
from bart_export.artifact.manifest import Manifest
from bart_export.artifact.upload import CARD
from bart_export.locations import HUGGING_FACE, last_name
from bart_export.report import facts
from bart_export.report.report import template

TASK = "summarization"
TAGS = ("bart", "tflite", "bart-export")
# The hub's identifiers of the licences that BART's checkpoints have; others are "other".
LICENCES = re.compile(
    r"apache-2\.0|mit|bsd(-[23]-clause)?|cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-[34]\.0|(a|l)?gpl-[23]\.[01]"
    r"|openrail|unlicense|wtfpl",
    re.IGNORECASE,
)
LICENCE_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*", re.IGNORECASE)
ROUGE = {"rouge_1": "ROUGE-1", "rouge_2": "ROUGE-2", "rouge_l": "ROUGE-L"}


def render(manifest: Manifest, repository: str) -> str:
    """Return the card of an artifact in the repository "org/name"."""
    import huggingface_hub as hub

    preset, files = facts.known_preset(manifest), facts.reported_files(manifest)
    title, base = last_name(manifest.preset), base_model(manifest)
    data = hub.ModelCardData(
        model_name=title,
        library_name="litert",
        pipeline_tag=TASK,
        base_model=base,
        base_model_relation="quantized" if base else None,
        language="en" if preset else None,
        tags=list(TAGS),
        eval_results=[hub.EvalResult(**row) for file in files for row in results(file)],
        **licence_fields(manifest.licence),
    )
    return template(CARD).render(
        front_matter=data.to_yaml(),
        repository=repository,
        title=title,
        description=preset and preset.description,
        # Not the path of a local checkpoint.
        source=manifest.source.handle if "://" in manifest.source.handle or preset else None,
        manifest=manifest,
        files=files,
        evidence=facts.evidence(files),
        versions=manifest.saved_model_versions,
        targets={entry.target for entry in manifest.files.values()},
    )


def base_model(manifest: Manifest) -> str | None:
    """Return the checkpoint's repository on the Hugging Face Hub, or None if it is not known."""
    preset = facts.known_preset(manifest)
    handles = (manifest.source.handle, *(preset.aliases if preset else ()))
    found = filter(None, map(HUGGING_FACE.fullmatch, handles))
    return next((match[1] for match in found), None)


def licence_fields(licence: str | None) -> dict[str, Any]:
    """Return the card's fields for a licence that a checkpoint states."""
    if licence is None:
        return {"license": "unknown"}
    if LICENCES.fullmatch(licence):
        return {"license": licence.lower()}
    name = LICENCE_NAME.fullmatch(licence)
    return {"license": "other"} | ({"license_name": licence.lower()} if name else {})


def results(file: facts.ReportedFile) -> Iterator[dict[str, Any]]:
    """Yield the arguments of an `EvalResult` for each figure of a file."""
    row = file.verification
    if row is None:
        return
    dataset = dataset_fields(row)
    figures: list[tuple[str, str, float | None]] = [
        ("accuracy", "Same next token as the Keras model", row.top1),
        ("exact_match", "Same text as the Keras model", row.tokens),
    ]
    figures += [
        ("rouge", words, row.rouge[name].file)
        for name, words in ROUGE.items()
        if row.rouge and name in row.rouge
    ]
    for kind, words, value in figures:
        if value is not None:
            yield {
                "task_type": TASK,
                "metric_type": kind,
                "metric_name": f"{words} ({file.label})",
                "metric_value": round(value, 4),
                **dataset,
            }


def dataset_fields(row: FileVerification) -> dict[str, Any]:
    """Return the description of the texts that a file's figures were measured on."""
    if row.data is None:
        return {"dataset_type": "golden", "dataset_name": facts.GOLDEN_TEXTS}
    return {
        "dataset_type": "texts",
        "dataset_name": f"{row.data.texts} texts",
        "dataset_args": {"sha256": row.data.sha256},
    }
