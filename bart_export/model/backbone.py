"""`Backbone`: what a Keras model of this package has beside its layers, as KerasHub's class has it.

Presets in and out, weights by the names of `checkpoints.names`, and LoRA.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import keras
import numpy as np
import numpy.typing as npt

from bart_export import presets
from bart_export.checkpoints import formats, keras_preset, origin
from bart_export.checkpoints.checkpoint import Checkpoint
from bart_export.checkpoints.files import check_file
from bart_export.checkpoints.keras_json import KERAS_FIELDS
from bart_export.checkpoints.keras_weights import import_h5py
from bart_export.checkpoints.resolved import without_weights
from bart_export.config import BartConfig
from bart_export.errors import CheckpointError, ConfigurationError, TokenizerError
from bart_export.model.weights import WeightArrays, assign, weights_left_at_zero
from bart_export.text.tokenizer import BartTokenizer

LORA_SUFFIX = ".lora.h5"
AnyBackbone = TypeVar("AnyBackbone", bound="Backbone")


class Backbone(keras.Model):
    """A model without a head, of whichever architecture a preset has.

    Attributes:
        config: the architecture.
        presets: name -> metadata and handle of each known preset, in KerasHub's form.
        origin: what the preset that the model came from says beside its weights, None for a model
            that did not come from one. Its tokenizer, lengths and generation settings go with the
            model when it is saved.
    """

    config: BartConfig
    presets = {preset.name: preset.to_dict() for preset in presets.PRESETS.values()}
    origin: Checkpoint | None = None

    @classmethod
    def from_preset(
        cls: type[AnyBackbone], preset: str, load_weights: bool = True, **overrides: Any
    ) -> AnyBackbone:
        """Make a model of a preset: its architecture, its dtype policy and its weights.

        Called on `Backbone` itself, the preset's configuration says which class it is.

        Args:
            preset: a name of `presets`, `kaggle://…`, `hf://…`, or a directory that holds a Keras
                preset or a Hugging Face checkpoint.
            load_weights: False draws new weights and reads only the configuration.
            **overrides: `name`, `trainable`, `dtype` and `dropout`; without weights any argument
                of the constructor.

        Raises:
            PresetError: for a preset that is not found or is no BART.
            CheckpointError: for files that are damaged, or whose weights are not exactly those
                the architecture has.
            ConfigurationError: for an unknown argument, or one that the weights do not fit.
        """
        source = origin.resolve(preset)
        checkpoint = formats.read(source.directory, weights=load_weights, tokenizer=False)
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
        """Make a float32 model of a checkpoint that has been read."""
        arguments = {**constructor_arguments(checkpoint.config), "dtype": "float32"}
        return class_of(cls)._with_weights(arguments, checkpoint.weights)

    @classmethod
    def _with_weights(
        cls: type[AnyBackbone],
        arguments: dict[str, Any],
        weights: Mapping[str, npt.NDArray[Any]],
    ) -> AnyBackbone:
        with weights_left_at_zero():
            backbone = cls(**arguments)
        backbone.assign_weights(weights)
        return backbone

    def save_to_preset(
        self, preset_dir: str | os.PathLike[str], max_shard_size: float | None = 10
    ) -> None:
        """Write the model as a Keras preset, with all that belongs to the preset it came from.

        KerasHub loads the directory, unless the model uses an extension: then it refuses.
        Tokenizer, sequence lengths and generation settings are those of `origin`; of a model
        without one, those that lie in the directory stay. LoRA is merged into the weights.

        Args:
            preset_dir: the directory to make, or the preset to replace.
            max_shard_size: most gigabytes a weight file may have; more are split into several.
                None writes one.

        Raises:
            CheckpointError: when the directory is something else or cannot be written.
        """
        directory = Path(preset_dir)
        keras_preset.write(
            directory,
            self.config,
            WeightArrays(self.named_weights()),
            dtype=self.dtype_policy.name,
            max_shard_size=max_shard_size,
            **accompanying(self.origin or preset_there(directory)),
        )

    @property
    def tokenizer(self) -> BartTokenizer:
        """The tokenizer of the preset that the model came from.

        Raises:
            TokenizerError: where it came from none, or one without a tokenizer.
        """
        if self.origin is None or not self.origin.vocabulary:
            raise TokenizerError(
                "This model did not come from a preset with a tokenizer. Open one with "
                "bart_export.BartTokenizer.from_files(vocabulary_file, merges_file)."
            )
        return self.origin.tokenizer()

    def named_weights(self) -> dict[str, Any]:
        """Return the weights by their names in `checkpoints.names`, LoRA merged into them.

        Values are `keras.Variable` objects; those of layers with LoRA are tensors.
        """
        merged = {}
        for layer in self.lora_layers():
            name = "kernel" if hasattr(layer, "kernel") else "embeddings"
            merged[getattr(layer, f"_{name}").path] = getattr(layer, name)
        return {name: merged.get(name, variable) for name, variable in self._variables()}

    def _variables(self) -> Iterator[tuple[str, Any]]:
        """Yield the weights that a preset stores, in their order."""
        for variable in self.weights:
            if not variable.path.rpartition("/")[2].startswith("lora_"):
                yield variable.path, variable

    def assign_weights(self, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        """Set every weight by name, reading one array at a time.

        Raises:
            CheckpointError: naming all arrays that are missing or surplus, before any weight is
                set; or the first of another shape.
        """
        assign(dict(self._variables()), weights)

    def default_lora_layer_names(self) -> list[str]:
        """Return the names of the layers that LoRA changes: queries and values of attention."""
        return ["query_dense", "value_dense", "query", "value"]

    def enable_lora(self, rank: int, target_layer_names: Sequence[str] | None = None) -> None:
        """Freeze the model, and train a low-rank change of some layers' matrices instead.

        See E. J. Hu et al. 2021, https://arxiv.org/abs/2106.09685. As in KerasHub, biases of these
        layers are trained as well.

        Args:
            rank: of each change.
            target_layer_names: which layers, by the last part of their name; None for
                `default_lora_layer_names()`.

        Raises:
            ConfigurationError: for a rank below 1, or names that no such layer has.
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

    def lora_layers(self) -> list[Any]:
        """Return the layers that have LoRA."""
        return [layer for layer in self._weighted_layers() if getattr(layer, "lora_enabled", False)]

    def _weighted_layers(self) -> list[Any]:
        """Return all layers that have weights, in the order by which a LoRA file counts them."""
        return [layer for layer in self._flatten_layers(include_self=False) if layer.weights]

    def save_lora_weights(self, filepath: str | os.PathLike[str]) -> None:
        """Write the low-rank changes alone, into a file `*.lora.h5`.

        Raises:
            ConfigurationError: without LoRA, or for another suffix.
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
        """Read what `save_lora_weights` or KerasHub wrote, enabling LoRA where it is not.

        Raises:
            ConfigurationError: for a model that has LoRA of another rank.
            CheckpointError: for a file that is no LoRA of this model.
        """
        path = Path(filepath)
        check_file(path)
        h5py = import_h5py()
        try:
            with h5py.File(path, "r") as file:
                rank = int(file["lora/vars/rank"][()])
                values = {
                    int(number): {name: one[()] for name, one in group["vars"].items()}
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


def class_of(asked: type[AnyBackbone]) -> type[AnyBackbone]:
    """Return the class to make: the one that was asked, or that of the one architecture read."""
    if asked is not Backbone:
        return asked
    from bart_export.model.bart_backbone import BartBackbone

    return cast("type[AnyBackbone]", BartBackbone)


def constructor_arguments(config: BartConfig) -> dict[str, Any]:
    """Return KerasHub's arguments of the constructor, and of the extensions those in use."""
    return {
        **{field: getattr(config, field) for field in KERAS_FIELDS},
        **config.extensions(),
    }


def lora_variables(layer: Any) -> dict[str, Any]:
    """Return the low-rank matrices of a layer by name."""
    names = [name for name in vars(layer) if name.startswith(("lora_kernel_", "lora_embeddings_"))]
    return {name: getattr(layer, name) for name in sorted(names)}


def preset_there(directory: Path) -> Checkpoint | None:
    """Return what a preset in a directory says beside its weights, None where there is none."""
    if not (directory / "tokenizer.json").is_file():
        return None
    return formats.read(directory, weights=False)


def accompanying(origin: Checkpoint | None) -> dict[str, Any]:
    """Return what a preset keeps beside the model, as arguments of `keras_preset.write`."""
    if origin is None:
        return {}
    kept = {"generation": origin.settings}
    if origin.vocabulary:
        kept |= {name: getattr(origin, name) for name in TOKENIZER}
    return kept


# Of a checkpoint, what belongs to its tokenizer and preprocessor.
TOKENIZER = (
    "vocabulary",
    "merges",
    "added_tokens",
    "add_prefix_space",
    "encoder_sequence_length",
    "decoder_sequence_length",
)
