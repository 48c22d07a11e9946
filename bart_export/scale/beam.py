"""Generation in Apache Beam pipelines.

    predictions, dead = (
        rows
        | RunInference(BartModelHandler("artifacts/bart_mini_en"))
        .with_exception_handling(exc_class=InputError)
    )

Every text is in exactly one output. A text that is refused, for example because it is too long, is
raised after its batch, so that Beam puts it alone into `dead.failed_postprocessing`; the other
texts of the batch are not affected. Other errors, such as an engine's, fail the batch, and Beam's
runner tries it again unless `exc_class` includes them.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bart_export.config import check_path, is_whole, require
from bart_export.errors import InputError, MissingExtra
from bart_export.locations import redacted_url
from bart_export.runtime.generator import Generator
from bart_export.runtime.results import RESULT_FIELDS, Result, Row
from bart_export.scale import MEMORY_BUDGET, check_parameters, results_or_refusals

try:
    from apache_beam.metrics import Metrics
    from apache_beam.ml.inference.base import ModelHandler, PredictionResult
except ImportError as error:
    raise MissingExtra("bart_export.scale.beam", "apache-beam", "beam") from error

Element = str | Mapping[str, Any]

METRICS = "BartModelHandler"
BATCH_TOKENS = 1 << 16  # 1,600 headlines or 80 long articles: minutes of work at most
LONGEST = 1 << 10  # tokens that BART reads at most
TOKEN = 4  # characters of English text


class BartModelHandler(ModelHandler[Element, PredictionResult, Generator]):
    """Generates from texts with `RunInference`, one model in each worker process.

    An element is a text, or a mapping with a "text"; its other items, such as an id, stay in the
    prediction's `example`. A prediction's `inference` is a `Result`, its `model_id` the location.
    `RunInference(..., inference_args=…)` takes the parameters of `Generator.generate`.

    `share_model_across_processes` is False: Beam would send the batches of all worker processes to
    one. The processes already share the weights, which are mapped from one file.

    Args:
        location: the artifact: a directory of each worker, hf://org/name, or a URL.
        revision, recipe, engine: see `Generator.from_artifact`.
        memory_budget: bytes for the decoder's inputs and outputs.
        num_threads: threads of each worker process's engine; runners start a process per core.
        batch_tokens: source tokens of a batch, estimated from the length of its texts. The
            generator sorts a batch by length and decodes its texts together, so a batch should have
            many more texts than fit together.

    Raises:
        ConfigurationError: if `batch_tokens` is out of range.
    """

    def __init__(
        self,
        location: str | os.PathLike[str],
        *,
        revision: str | None = None,
        recipe: str | None = None,
        engine: str | None = None,
        num_threads: int = 1,
        memory_budget: int = MEMORY_BUDGET,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        accepted = is_whole(batch_tokens) and batch_tokens >= LONGEST
        require(accepted, "batch_tokens", f"an integer of at least {LONGEST}", batch_tokens)
        # Beam's length buckets need `max_batch_duration_secs`, which shuffles the texts by key and
        # counts texts rather than tokens. A fixed size does not depend on measured times.
        super().__init__(
            min_batch_size=batch_tokens,
            max_batch_size=batch_tokens,
            element_size_fn=estimated_tokens,
        )
        self.location = check_path("location", location)
        self.revision = revision
        self.recipe = recipe
        self.engine = engine
        self.num_threads = num_threads
        self.memory_budget = memory_budget

    def load_model(self) -> Generator:
        """Open the artifact; errors are those of `Generator.from_artifact`."""
        return Generator.from_artifact(
            self.location,
            revision=self.revision,
            recipe=self.recipe,
            engine=self.engine,
            num_threads=self.num_threads,
            memory_budget=self.memory_budget,
        )

    def update_model_path(self, model_path: str | None = None) -> None:
        """Use another artifact from the next `load_model` on, for Beam's model refresh."""
        if model_path is not None:
            self.location = check_path("model_path", model_path) or self.location

    def validate_inference_args(self, inference_args: Mapping[str, Any] | None) -> None:
        """Refuse invalid parameters where the pipeline is constructed, before a worker has them.

        Raises:
            ConfigurationError: if one is unknown, or has a value that no artifact accepts.
        """
        check_parameters({} if inference_args is None else inference_args)

    def run_inference(
        self,
        batch: Sequence[Element],
        model: Generator,
        inference_args: Mapping[str, Any] | None = None,
    ) -> list[PredictionResult]:
        """Return a prediction for each element, in order; a refused one has an InputError.

        Raises:
            ConfigurationError: if a parameter in `inference_args` is unknown or out of range.
            EngineError: if the engine fails.
        """
        texts = (text_of(element) for element in batch)
        parameters = {} if inference_args is None else inference_args
        answers = results_or_refusals(model, texts, parameters)
        results = [answer for answer in answers if isinstance(answer, Result)]
        tokens = sum(result.timings.tokens for result in results)
        Metrics.counter(METRICS, "generated_tokens").inc(tokens)
        Metrics.counter(METRICS, "refused_texts").inc(len(answers) - len(results))
        return [
            PredictionResult(element, answer, redacted_url(self.location))
            for element, answer in zip(batch, answers, strict=True)
        ]

    def get_postprocess_fns(self) -> list[Callable[[PredictionResult], PredictionResult]]:
        """Return the function that raises the error of a refused text."""
        return [raise_refused]

    def get_metrics_namespace(self) -> str:
        """Return the namespace of Beam's counters and of `generated_tokens`, `refused_texts`."""
        return METRICS


def text_of(element: Element) -> object:
    """Return an element's text, or None if it has none."""
    return element.get("text") if isinstance(element, Mapping) else element


def estimated_tokens(element: Element) -> int:
    """Return about how many source tokens an element has."""
    text = text_of(element)
    return min(len(text) // TOKEN + 1, LONGEST) if isinstance(text, str) else 1


def raise_refused(prediction: PredictionResult) -> PredictionResult:
    """Return a prediction, or raise the error that it has instead of a result."""
    if isinstance(prediction.inference, InputError):
        raise prediction.inference
    return prediction


def result_row(prediction: PredictionResult) -> Row:
    """Return a prediction as the row that `bart-export generate --output` writes."""
    return {**row_of(prediction.example), **prediction.inference.to_dict()}


def error_rows(failure: tuple[Any, tuple[type, str, Iterable[str]]]) -> list[Row]:
    """Return a row with an "error" for each text of an element of a dead-letter output.

    An element of `failed_postprocessing` has one text, one of `failed_inferences` a batch.
    """
    failed, (_, error, _) = failure
    if isinstance(failed, PredictionResult):
        return [{**row_of(failed.example), "error": str(failed.inference)}]
    elements = failed if isinstance(failed, list) else [failed]
    return [{**row_of(element), "error": error} for element in elements]


def row_of(element: Element) -> Row:
    """Return an element as a row without a result's fields."""
    row = element if isinstance(element, Mapping) else {"text": element}
    return {name: value for name, value in row.items() if name not in RESULT_FIELDS}
