"""`Backbone`: presets, named weights and LoRA, with the API of KerasHub's `Backbone`."""

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
from bart_export.config import (
    BartConfig,
    check_flag,
    check_path,
    is_number,
    is_whole,
    require,
)
from bart_export.errors import CheckpointError, ConfigurationError, TokenizerError, shown
from bart_export.model.layers import weights_left_at_zero
from bart_export.text.tokenizer import BartTokenizer

LORA_SUFFIX = ".lora.h5"
AnyBackbone = TypeVar("AnyBackbone", bound="Backbone")


class Backbone(keras.Model):
    """Base class of models without a head.

    Attributes:
        config: the architecture.
        presets: name → metadata and handle of each known preset, in KerasHub's form.
        origin: the model's preset without weights, or None for a new model. Its tokenizer, sequence
            lengths and generation settings are saved with the model.
    """

    config: BartConfig
    presets = {preset.name: preset.to_dict() for preset in presets.PRESETS.values()}
    origin: Checkpoint | None = None

    @classmethod
    def from_preset(
        cls: type[AnyBackbone], preset: str, load_weights: bool = True, **overrides: Any
    ) -> AnyBackbone:
        """Load a preset's architecture, dtype policy and weights.

        `Backbone.from_preset` returns a model of the preset's class.

        Args:
            preset: a name in `presets`, `kaggle://…`, `hf://…`, or a directory with a Keras preset
                or a Hugging Face checkpoint.
            load_weights: if False, weights are initialized, and only the configuration is read.
            **overrides: `name`, `trainable`, `dtype` and `dropout`; with load_weights=False, any
                argument of the constructor.

        Raises:
            PresetError: if the preset is not found or is not a BART model.
            CheckpointError: if files are damaged, or the weights do not match the architecture.
            ConfigurationError: for an unknown argument, or one that does not fit the weights.
        """
        check_flag("load_weights", load_weights)
        source = resolve.find(preset)
        checkpoint = resolve.read(source.directory, weights=load_weights, tokenizer=False)
        arguments = {
            **constructor_arguments(checkpoint.config),
            "dtype": checkpoint.dtype,
            **overrides,
        }
        model_class = class_of(cls)
        if load_weights:
            for name, stored in checkpoint.config.to_dict().items():
                if name != "dropout" and overrides.get(name, stored) != stored:
                    raise ConfigurationError(
                        f"The weights of {preset} require {name}={stored!r}, received "
                        f"{name}={overrides[name]!r}. Omit {name}, or use load_weights=False."
                    )
            backbone = model_class._with_weights(arguments, checkpoint.weights)
        else:
            backbone = model_class(**arguments)
        backbone.origin = without_weights(source, checkpoint)
        return backbone

    @classmethod
    def from_checkpoint(cls: type[AnyBackbone], checkpoint: Checkpoint) -> AnyBackbone:
        """Return a float32 model with a checkpoint's weights."""
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

        KerasHub can load it unless the model uses an extension. LoRA is merged into the weights.
        The tokenizer, sequence lengths and generation settings come from `origin`; for a model
        without one, those already in the directory are kept.

        Args:
            preset_dir: the directory to create, or the preset to replace.
            max_shard_size: maximum size of a weight file in gigabytes; None writes a single file.

        Raises:
            CheckpointError: if the directory has other contents or cannot be written.
            ConfigurationError: if an argument has another type.
        """
        directory = Path(check_path("preset_dir", preset_dir))
        accepted = max_shard_size is None or (is_number(max_shard_size) and max_shard_size >= 0)
        require(accepted, "max_shard_size", "a number of gigabytes", max_shard_size)
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
            **preset_extras(self.origin or earlier),
        )

    @property
    def tokenizer(self) -> BartTokenizer:
        """The tokenizer of the model's preset.

        Raises:
            TokenizerError: if the model has no preset, or the preset has no tokenizer.
        """
        if self.origin is None or not self.origin.vocabulary:
            raise TokenizerError(
                "Expected a model from a preset with a tokenizer. Load a tokenizer with "
                "bart_export.BartTokenizer.from_files(vocabulary_file, merges_file)."
            )
        return self.origin.tokenizer()

    def named_weights(self) -> dict[str, keras.Variable]:
        """Return the weights by their names in `checkpoints.weight_names`, with LoRA merged.

        Values are `keras.Variable` objects, or tensors for layers with LoRA.
        """
        merged = {}
        for layer in self.lora_layers():
            name = "kernel" if hasattr(layer, "kernel") else "embeddings"
            merged[getattr(layer, f"_{name}").path] = getattr(layer, name)
        return {name: merged.get(name, variable) for name, variable in self._variables()}

    def _variables(self) -> Iterator[tuple[str, keras.Variable]]:
        """Yield the weights of a preset with their names, in order."""
        for variable in self.weights:
            if not variable.path.rpartition("/")[2].startswith("lora_"):
                yield variable.path, variable

    def assign_weights(self, weights: Mapping[str, Array]) -> None:
        """Set all weights by name, reading one array at a time.

        Raises:
            CheckpointError: if names are missing or unexpected, in which case no weight is set, or
                if an array has the wrong shape.
        """
        assign(dict(self._variables()), weights)

    def default_lora_layer_names(self) -> list[str]:
        """Return the names of LoRA's default layers: attention queries and values."""
        return ["query_dense", "value_dense", "query", "value"]

    def enable_lora(self, rank: int, target_layer_names: Sequence[str] | None = None) -> None:
        """Freeze the model except for low-rank updates of some layers.

        See E. J. Hu et al. 2021, https://arxiv.org/abs/2106.09685. As in KerasHub, the biases of
        these layers are trained too.

        Args:
            rank: rank of the updates.
            target_layer_names: names of the layers without their parents' names, by default
                `default_lora_layer_names()`.

        Raises:
            ConfigurationError: if the rank is below 1, or no such layer supports LoRA.
        """
        names = target_layer_names
        if names is None:
            names = self.default_lora_layer_names()
        listed = isinstance(names, (list, tuple, set)) and all(isinstance(n, str) for n in names)
        require(listed, "target_layer_names", "a list of names", names)
        targets = [
            layer
            for layer in self._weighted_layers()
            if layer.name in names and hasattr(layer, "enable_lora")
        ]
        if not is_whole(rank) or rank < 1 or not targets:
            raise ConfigurationError(
                "enable_lora needs a rank of at least 1 and names of layers that support LoRA, "
                f"received rank={shown(rank)} and {', '.join(names)}."
            )
        self.trainable = True
        for layer in self._flatten_layers(include_self=False):
            layer.trainable = False
        for layer in targets:
            layer.trainable = True
            layer.enable_lora(rank)

    def lora_layers(self) -> list[keras.layers.Layer]:
        """Return the layers with LoRA enabled."""
        return [layer for layer in self._weighted_layers() if getattr(layer, "lora_enabled", False)]

    def _weighted_layers(self) -> list[keras.layers.Layer]:
        """Return all layers with weights; a LoRA file numbers them in this order."""
        return [layer for layer in self._flatten_layers(include_self=False) if layer.weights]

    def save_lora_weights(self, filepath: str | os.PathLike[str]) -> None:
        """Write the low-rank updates to a file `*.lora.h5`.

        Raises:
            ConfigurationError: if LoRA is not enabled, or the file name has a different suffix.
        """
        changed, path = self.lora_layers(), check_path("filepath", filepath)
        if not changed or not path.endswith(LORA_SUFFIX):
            raise ConfigurationError(
                f"save_lora_weights needs a file name that ends in {LORA_SUFFIX} and a model with "
                f"LoRA enabled, received {path} and {len(changed)} layers with LoRA."
            )
        h5py = import_h5py()
        with h5py.File(path, "w") as file:
            file["lora/vars/rank"] = changed[0].lora_rank
            for number, layer in enumerate(self._weighted_layers()):
                if getattr(layer, "lora_enabled", False):
                    for name, variable in lora_variables(layer).items():
                        file[f"lora/{number}/vars/{name}"] = np.asarray(variable)

    def load_lora_weights(self, filepath: str | os.PathLike[str]) -> None:
        """Read a file from `save_lora_weights`, here or in KerasHub, enabling LoRA if necessary.

        Raises:
            ConfigurationError: if the model's LoRA has a different rank or different layers.
            CheckpointError: if the file is not a LoRA weights file, or does not fit the model.
        """
        path = Path(check_path("filepath", filepath))
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
            raise CheckpointError(f"{path} is not a LoRA weights file: {error}.") from error
        if not self.lora_layers():
            self.enable_lora(rank)
        layers = self._weighted_layers()
        numbers = {number for number, layer in enumerate(layers) if layer in self.lora_layers()}
        ranks = {layer.lora_rank for layer in self.lora_layers()}
        if ranks != {rank} or values.keys() != numbers:
            raise ConfigurationError(
                f"{path} has LoRA weights of rank {rank} for {len(values)} layers, but this model "
                f"has rank {', '.join(map(str, sorted(ranks)))} for {len(numbers)} layers. Enable "
                "LoRA as it was when the file was written."
            )
        for number, arrays in values.items():
            assign(lora_variables(layers[number]), arrays)


def assign(variables: Mapping[str, keras.Variable], weights: Mapping[str, Array]) -> None:
    """Set all variables by name, reading one array at a time; see `Backbone.assign_weights`."""
    require_names(variables, weights)
    for name, variable in variables.items():
        array = weights[name]
        if array.shape != tuple(variable.shape):
            raise CheckpointError(
                f"{name} must have shape {tuple(variable.shape)}, received {array.shape}."
            )
        variable.assign(array)


def class_of(cls: type[AnyBackbone]) -> type[AnyBackbone]:
    """Return a concrete class: `BartBackbone` for `Backbone`, otherwise the class itself."""
    if cls is not Backbone:
        return cls
    from bart_export.model.bart_backbone import BartBackbone

    return cast("type[AnyBackbone]", BartBackbone)


def constructor_arguments(config: BartConfig) -> JsonObject:
    """Return the constructor's arguments: KerasHub's, and the extensions in use."""
    return {
        **{field: getattr(config, field) for field in KERAS_FIELDS},
        **config.extensions(),
    }


def lora_variables(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Return the low-rank matrices of a layer by name."""
    names = [name for name in vars(layer) if name.startswith(("lora_kernel_", "lora_embeddings_"))]
    return {name: getattr(layer, name) for name in sorted(names)}


def preset_extras(origin: Checkpoint | None) -> JsonObject:
    """Return a preset's settings and tokenizer as arguments of `keras_preset.write`."""
    if origin is None:
        return {}
    names = TOKENIZER if origin.vocabulary else ()
    return {"generation": origin.settings, **{name: getattr(origin, name) for name in names}}


# The fields of a checkpoint that belong to its tokenizer and preprocessor.
TOKENIZER = (
    "vocabulary",
    "merges",
    "added_tokens",
    "add_prefix_space",
    "encoder_sequence_length",
    "decoder_sequence_length",
)
