"""`Backbone`: loading and saving presets, weights by name, and LoRA, as in KerasHub's class."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import keras
import numpy as np

from bart_export import presets
from bart_export.checkpoints import keras_preset, resolve
from bart_export.checkpoints.checkpoint import Checkpoint
from bart_export.checkpoints.files import JsonObject, require_file
from bart_export.checkpoints.keras_preset import KERAS_FIELDS
from bart_export.checkpoints.keras_weights import import_h5py
from bart_export.checkpoints.resolve import without_weights
from bart_export.checkpoints.weights import Array, LazyWeights, require_names
from bart_export.config import BartConfig
from bart_export.errors import CheckpointError, ConfigurationError, TokenizerError
from bart_export.model.layers import weights_left_at_zero
from bart_export.text.tokenizer import BartTokenizer

LORA_SUFFIX = ".lora.h5"
AnyBackbone = TypeVar("AnyBackbone", bound="Backbone")


class Backbone(keras.Model):
    """Base class of models without a head.

    Attributes:
        config: the architecture.
        presets: name → metadata and handle of each known preset, in KerasHub's form.
        origin: the preset that the model was loaded from, without its weights; None for a new
            model. Its tokenizer, lengths and generation settings are saved with the model.
    """

    config: BartConfig
    presets = {preset.name: preset.to_dict() for preset in presets.PRESETS.values()}
    origin: Checkpoint | None = None

    @classmethod
    def from_preset(
        cls: type[AnyBackbone], preset: str, load_weights: bool = True, **overrides: Any
    ) -> AnyBackbone:
        """Load a preset: its architecture, its dtype policy and its weights.

        `Backbone.from_preset` returns a model of the class that the preset's configuration names.

        Args:
            preset: a name of `presets`, `kaggle://…`, `hf://…`, or a directory with a Keras preset
                or a Hugging Face checkpoint.
            load_weights: False initializes new weights and reads only the configuration.
            **overrides: `name`, `trainable`, `dtype` and `dropout`; with load_weights=False any
                argument of the constructor.

        Raises:
            PresetError: for a preset that is not found or is not a BART.
            CheckpointError: for damaged files, or weights that are not exactly those of the
                architecture.
            ConfigurationError: for an unknown argument, or one that does not fit the weights.
        """
        source = resolve.find(preset)
        checkpoint = resolve.read(source.directory, weights=load_weights, tokenizer=False)
        arguments = {
            **constructor_arguments(checkpoint.config),
            "dtype": checkpoint.dtype,
            **overrides,
        }
        made = class_of(cls)
        if load_weights:
            for name, stored in checkpoint.config.to_dict().items():
                if name != "dropout" and overrides.get(name, stored) != stored:
                    raise ConfigurationError(
                        f"The weights of {preset} are made for {name}={stored!r}, received "
                        f"{name}={overrides[name]!r}. Leave {name} out, or use load_weights=False."
                    )
            backbone = made._with_weights(arguments, checkpoint.weights)
        else:
            backbone = made(**arguments)
        backbone.origin = without_weights(source, checkpoint)
        return backbone

    @classmethod
    def from_checkpoint(cls: type[AnyBackbone], checkpoint: Checkpoint) -> AnyBackbone:
        """Return a float32 model with the weights of a checkpoint."""
        arguments = {**constructor_arguments(checkpoint.config), "dtype": "float32"}
        return class_of(cls)._with_weights(arguments, checkpoint.weights)

    @classmethod
    def _with_weights(
        cls: type[AnyBackbone],
        arguments: JsonObject,
        weights: Mapping[str, Array],
    ) -> AnyBackbone:
        with weights_left_at_zero():
            backbone = cls(**arguments)
        backbone.assign_weights(weights)
        return backbone

    def save_to_preset(
        self, preset_dir: str | os.PathLike[str], max_shard_size: float | None = 10
    ) -> None:
        """Write the model as a Keras preset.

        KerasHub can load the directory unless the model uses an extension. Tokenizer, sequence
        lengths and generation settings are those of `origin`. If the model has none, those that are
        already in the directory stay. LoRA is merged into the weights.

        Args:
            preset_dir: the directory to make, or the preset to replace.
            max_shard_size: maximum size of a weight file in gigabytes; larger weights are split
                into several files. None writes one.

        Raises:
            CheckpointError: if the directory is something else or cannot be written.
        """
        directory = Path(preset_dir)
        earlier = None
        if self.origin is None and (directory / "tokenizer.json").is_file():
            earlier = resolve.read(directory, weights=False)
        weights = self.named_weights()
        keras_preset.write(
            directory,
            self.config,
            LazyWeights(weights, lambda name: np.asarray(weights[name])),
            dtype=self.dtype_policy.name,
            max_shard_size=max_shard_size,
            **accompanying(self.origin or earlier),
        )

    @property
    def tokenizer(self) -> BartTokenizer:
        """The tokenizer of the preset that the model was loaded from.

        Raises:
            TokenizerError: if there is no such preset, or it has no tokenizer.
        """
        if self.origin is None or not self.origin.vocabulary:
            raise TokenizerError(
                "This model did not come from a preset with a tokenizer. Open one with "
                "bart_export.BartTokenizer.from_files(vocabulary_file, merges_file)."
            )
        return self.origin.tokenizer()

    def named_weights(self) -> dict[str, keras.Variable]:
        """Return the weights by their names in `checkpoints.weight_names`, with LoRA merged.

        Values are `keras.Variable` objects; those of layers with LoRA are tensors.
        """
        merged = {}
        for layer in self.lora_layers():
            name = "kernel" if hasattr(layer, "kernel") else "embeddings"
            merged[getattr(layer, f"_{name}").path] = getattr(layer, name)
        return {name: merged.get(name, variable) for name, variable in self._variables()}

    def _variables(self) -> Iterator[tuple[str, keras.Variable]]:
        """Yield the weights that a preset stores, in their order."""
        for variable in self.weights:
            if not variable.path.rpartition("/")[2].startswith("lora_"):
                yield variable.path, variable

    def assign_weights(self, weights: Mapping[str, Array]) -> None:
        """Set every weight by name, reading one array at a time.

        Raises:
            CheckpointError: before any weight is set, with the names of all missing and surplus
                arrays; or for the first array of another shape.
        """
        assign(dict(self._variables()), weights)

    def default_lora_layer_names(self) -> list[str]:
        """Return the names of the layers that LoRA changes: attention queries and values."""
        return ["query_dense", "value_dense", "query", "value"]

    def enable_lora(self, rank: int, target_layer_names: Sequence[str] | None = None) -> None:
        """Freeze the model, and train low-rank updates of some layers' matrices instead.

        See E. J. Hu et al. 2021, https://arxiv.org/abs/2106.09685. As in KerasHub, the biases of
        these layers are trained as well.

        Args:
            rank: rank of each update.
            target_layer_names: the last part of the names of the layers; None means
                `default_lora_layer_names()`.

        Raises:
            ConfigurationError: for a rank below 1, or if no such layer supports LoRA.
        """
        names = target_layer_names
        if names is None:
            names = self.default_lora_layer_names()
        targets = [
            layer
            for layer in self._weighted_layers()
            if layer.name in names and hasattr(layer, "enable_lora")
        ]
        if rank < 1 or not targets:
            raise ConfigurationError(
                "enable_lora needs a rank of at least 1 and names of layers that have LoRA, "
                f"received rank={rank} and {', '.join(names)}."
            )
        self.trainable = True
        for layer in self._flatten_layers(include_self=False):
            layer.trainable = False
        for layer in targets:
            layer.trainable = True
            layer.enable_lora(rank)

    def lora_layers(self) -> list[keras.layers.Layer]:
        """Return the layers that have LoRA."""
        return [layer for layer in self._weighted_layers() if getattr(layer, "lora_enabled", False)]

    def _weighted_layers(self) -> list[keras.layers.Layer]:
        """Return all layers that have weights, in the order by which a LoRA file counts them."""
        return [layer for layer in self._flatten_layers(include_self=False) if layer.weights]

    def save_lora_weights(self, filepath: str | os.PathLike[str]) -> None:
        """Write only the low-rank updates, to a file `*.lora.h5`.

        Raises:
            ConfigurationError: if LoRA is not enabled, or for another suffix.
        """
        changed = self.lora_layers()
        if not changed or not str(filepath).endswith(LORA_SUFFIX):
            raise ConfigurationError(
                f"LoRA weights are written into a file *{LORA_SUFFIX} after enable_lora(rank), "
                f"received {filepath} and {len(changed)} layers with LoRA."
            )
        h5py = import_h5py()
        with h5py.File(filepath, "w") as file:
            file["lora/vars/rank"] = changed[0].lora_rank
            for number, layer in enumerate(self._weighted_layers()):
                if getattr(layer, "lora_enabled", False):
                    for name, variable in lora_variables(layer).items():
                        file[f"lora/{number}/vars/{name}"] = np.asarray(variable)

    def load_lora_weights(self, filepath: str | os.PathLike[str]) -> None:
        """Read a file of `save_lora_weights` or of KerasHub, and enable LoRA if necessary.

        Raises:
            ConfigurationError: if the model has LoRA of another rank.
            CheckpointError: for a file that does not have LoRA weights of this model.
        """
        path = Path(filepath)
        require_file(path)
        h5py = import_h5py()
        try:
            with h5py.File(path, "r") as file:
                rank = int(file["lora/vars/rank"][()])
                values = {
                    int(number): {name: array[()] for name, array in group["vars"].items()}
                    for number, group in file["lora"].items()
                    if number != "vars"
                }
        except Exception as error:  # h5py raises OSError, RuntimeError, KeyError and others
            raise CheckpointError(f"{path} is no file of LoRA weights: {error}.") from error
        if not self.lora_layers():
            self.enable_lora(rank)
        layers = self._weighted_layers()
        mine = {number for number, layer in enumerate(layers) if layer in self.lora_layers()}
        ranks = {layer.lora_rank for layer in self.lora_layers()}
        if ranks != {rank} or values.keys() != mine:
            raise ConfigurationError(
                f"{path} has LoRA of rank {rank} for {len(values)} layers of a model, and this "
                f"model has rank {', '.join(map(str, sorted(ranks)))} for {len(mine)} layers. "
                "Enable LoRA as it was when the file was written."
            )
        for number, arrays in values.items():
            assign(lora_variables(layers[number]), arrays)


def assign(variables: Mapping[str, keras.Variable], weights: Mapping[str, Array]) -> None:
    """Set every variable by name, reading one array at a time; raises as `assign_weights`."""
    require_names(variables, weights)
    for name, variable in variables.items():
        array = weights[name]
        if array.shape != tuple(variable.shape):
            raise CheckpointError(
                f"{name} must have shape {tuple(variable.shape)}, received {array.shape}."
            )
        variable.assign(array)


def class_of(asked: type[AnyBackbone]) -> type[AnyBackbone]:
    """Return the class to make: the one that was asked, or that of the one architecture read."""
    if asked is not Backbone:
        return asked
    from bart_export.model.bart_backbone import BartBackbone

    return cast("type[AnyBackbone]", BartBackbone)


def constructor_arguments(config: BartConfig) -> JsonObject:
    """Return KerasHub's arguments of the constructor, and of the extensions those in use."""
    return {
        **{field: getattr(config, field) for field in KERAS_FIELDS},
        **config.extensions(),
    }


def lora_variables(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Return the low-rank matrices of a layer by name."""
    names = [name for name in vars(layer) if name.startswith(("lora_kernel_", "lora_embeddings_"))]
    return {name: getattr(layer, name) for name in sorted(names)}


def accompanying(origin: Checkpoint | None) -> JsonObject:
    """Return what a preset keeps beside the model, as arguments of `keras_preset.write`."""
    if origin is None:
        return {}
    names = TOKENIZER if origin.vocabulary else ()
    return {"generation": origin.settings, **{name: getattr(origin, name) for name in names}}


# Of a checkpoint, what belongs to its tokenizer and preprocessor.
TOKENIZER = (
    "vocabulary",
    "merges",
    "added_tokens",
    "add_prefix_space",
    "encoder_sequence_length",
    "decoder_sequence_length",
)
