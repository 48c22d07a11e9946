"""The conversion to TFLite: a model's graphs and weights as a float32 `.tflite`.

The converter never sees the big weights. Every matrix is an *argument* while the graph is
converted, which takes seconds and little memory whatever the model's size; afterwards each such
argument is bound to a constant buffer in the flatbuffer, one buffer per matrix however many
operators and signatures read it. Lookups in constant tables then become `EMBEDDING_LOOKUP`, which
the quantizer knows, so that the tied table is stored once.
"""

import errno
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence

import flatbuffers
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from bart_export import contract
from bart_export.checkpoints.names import layer_name
from bart_export.config import BartConfig
from bart_export.contract import StaticShapes
from bart_export.errors import BartExportError
from bart_export.graph import steps
from bart_export.graph.layers import Tensors
from bart_export.graph.parameters import FloatArray, InferenceParameters
from bart_export.quiet import native_stderr_silenced

FILE_IDENTIFIER = b"TFL3"
ALIGNMENT = 16  # bytes; the schema asks it of every buffer


def write_float(
    parameters: InferenceParameters, path: pathlib.Path, shapes: StaticShapes | None = None
) -> None:
    """Write a BART as a float32 `.tflite`: the dynamic build, or the static one of some shapes.

    Raises:
        BartExportError: if the converter produced an operator that is not a builtin.
        ConfigurationError: for shapes that the model has no positions for.
    """
    write_signatures(parameters, buckets(parameters.config, shapes), path)


def buckets(config: BartConfig, shapes: StaticShapes | None) -> Sequence[contract.Bucket]:
    """Return the signatures to write; those of the dynamic build have no size fixed."""
    if shapes is None:
        return dynamic_buckets(contract.tflite_signatures(config))
    return contract.static_buckets(config, **vars(shapes))


def dynamic_buckets(signatures: Sequence[contract.Signature]) -> list[contract.Bucket]:
    """Return signatures of which no size is fixed."""
    return [contract.Bucket(signature.name, signature, {}) for signature in signatures]


def write_signatures(
    parameters: InferenceParameters, wanted: Sequence[contract.Bucket], path: pathlib.Path
) -> None:
    """Write some signatures over a model's weights as a float32 `.tflite`; see `write_float`."""
    model = convert(parameters, wanted, path.parent)
    bind(model, parameters)
    share_tables(model)
    round_inputs_asymmetrically(model)
    refuse_foreign_operators(model)
    size = 4 * sum(int(np.prod(parameters.shape(name))) for name in parameters)
    builder = flatbuffers.Builder(size + (1 << 20))  # growing would copy everything each time
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    with path.open("wb") as file:
        file.write(memoryview(builder.Bytes)[builder.Head() :])


def convert(
    parameters: InferenceParameters, wanted: Sequence[contract.Bucket], scratch: pathlib.Path
) -> schema.ModelT:
    """Convert some signatures, every matrix an argument named like its weight.

    `scratch` is a directory for what the converter reads, some hundred kilobytes.
    """
    vectors = {name: parameters[name] for name in parameters if not is_matrix(parameters, name)}
    functions = {bucket.name: signature_function(parameters, vectors, bucket) for bucket in wanted}
    with tempfile.TemporaryDirectory(dir=scratch) as directory, native_stderr_silenced():
        try:
            tf.saved_model.save(tf.Module(), directory, signatures=functions)
        except tf.errors.ResourceExhaustedError as error:
            if os.strerror(errno.ENOSPC) not in error.message:
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), directory) from error
        converter = tf.lite.TFLiteConverter.from_saved_model(
            directory, signature_keys=list(functions)
        )
        content = converter.convert()
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))


def signature_function(
    parameters: InferenceParameters, vectors: Mapping[str, FloatArray], bucket: contract.Bucket
) -> tf.types.experimental.ConcreteFunction:
    """Return the concrete function of one signature, with the matrices it reads as arguments."""
    config, signature = parameters.config, bucket.signature
    step = steps.STEPS[signature.name]
    sizes = {**contract.sizes(config), **bucket.sizes}
    specs = {
        tensor.name: tf.TensorSpec(tensor.shape(sizes), tensor.dtype, name=tensor.name)
        for tensor in signature.inputs
    }
    matrices = matrices_read(step, config, parameters, vectors, specs)
    specs |= {
        name: tf.TensorSpec(parameters.shape(name), tf.float32, name=argument_name(name))
        for name in matrices
    }

    def call(*tensors: tf.Tensor) -> Tensors:
        given = dict(zip(specs, tensors, strict=True))
        computed = step(config, Arguments(vectors, given), given)
        return {tensor.name: computed[tensor.name] for tensor in signature.outputs}

    function = tf.function(call, autograph=False, input_signature=list(specs.values()))
    return function.get_concrete_function()


class Arguments(dict[str, tf.Tensor]):
    """Parameters for tracing: matrices are the function's arguments, vectors become constants."""

    def __init__(
        self, vectors: Mapping[str, FloatArray], matrices: Mapping[str, tf.Tensor]
    ) -> None:
        super().__init__(matrices)
        self.vectors = vectors
        self.read: list[str] = []

    def __getitem__(self, name: str) -> tf.Tensor:
        if name in self.vectors:
            return tf.constant(self.vectors[name])
        self.read.append(name)
        return super().__getitem__(name)


def matrices_read(
    step: Callable[..., Tensors],
    config: BartConfig,
    parameters: InferenceParameters,
    vectors: Mapping[str, FloatArray],
    specs: Mapping[str, tf.TensorSpec],
) -> list[str]:
    """Return the names of the matrices that `step` reads, found by tracing it once."""
    with tf.Graph().as_default():
        given = {
            name: tf.compat.v1.placeholder(spec.dtype, spec.shape) for name, spec in specs.items()
        }
        given |= {
            name: tf.compat.v1.placeholder(tf.float32, parameters.shape(name))
            for name in parameters
            if is_matrix(parameters, name)
        }
        arguments = Arguments(vectors, given)
        step(config, arguments, given)
    return [name for name in parameters if name in arguments.read]


def is_matrix(parameters: InferenceParameters, name: str) -> bool:
    """Return whether a weight is big: vectors stay in the graph, where they fuse into operators."""
    return len(parameters.shape(name)) == 2


def argument_name(name: str) -> str:
    """Return the signature argument that stands for a weight (a name cannot hold a slash)."""
    return name.replace("/", ".")


def bind(model: schema.ModelT, parameters: InferenceParameters) -> None:
    """Make constants of the arguments that stand for weights, one buffer a weight."""
    matrices = {
        argument_name(name).encode(): name for name in parameters if is_matrix(parameters, name)
    }
    buffers: dict[bytes, int] = {}
    for signature in model.signatureDefs:
        subgraph = model.subgraphs[signature.subgraphIndex]
        bound = {entry.tensorIndex for entry in signature.inputs if entry.name in matrices}
        for entry in signature.inputs:
            if entry.name not in matrices:
                continue
            if entry.name not in buffers:
                buffers[entry.name] = len(model.buffers)
                model.buffers.append(AlignedBuffer(parameters, matrices[entry.name]))
            subgraph.tensors[entry.tensorIndex].buffer = buffers[entry.name]
            layer = f"{signature.signatureKey.decode()}/{layer_name(matrices[entry.name])}"
            name_tensors(subgraph, entry.tensorIndex, layer)
        signature.inputs = [entry for entry in signature.inputs if entry.tensorIndex not in bound]
        subgraph.inputs = [index for index in subgraph.inputs if index not in bound]


def name_tensors(subgraph: schema.SubGraphT, matrix: int, layer: str) -> None:
    """Name a matrix and the results of the operators that read it after their layer.

    Names are unique in a file, and recipes find the operators by them.
    """
    subgraph.tensors[matrix].name = f"{layer}/weights".encode()
    for operator in subgraph.operators:
        if matrix in operator.inputs:
            # The tied table is the first input of a lookup and the second of the logits.
            result = "output" if operator.inputs[0] != matrix else "lookup"
            subgraph.tensors[operator.outputs[0]].name = f"{layer}/{result}".encode()


class AlignedBuffer(schema.BufferT):
    """A buffer that reads its weight only when it is written, and starts at an aligned offset."""

    def __init__(self, parameters: InferenceParameters, name: str) -> None:
        super().__init__()
        self.parameters, self.name = parameters, name

    def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802
        """Write the weight's bytes and return the buffer's offset."""
        data = self.parameters[self.name].reshape(-1).view(np.uint8)
        # Python's builder knows no force_align: make the vector's first byte land on a boundary.
        builder.Prep(ALIGNMENT, data.nbytes)
        vector = builder.CreateNumpyVector(data)
        schema.BufferStart(builder)
        schema.BufferAddData(builder, vector)
        return int(schema.BufferEnd(builder))


def share_tables(model: schema.ModelT) -> None:
    """Turn every `GATHER` of rows of a constant table into `EMBEDDING_LOOKUP`.

    The quantizer gives a lookup and a `FULLY_CONNECTED` over the same table the same rows of
    integers, so the tied embedding stays one buffer; a `GATHER` would keep a float copy.
    """
    lookup = schema.OperatorCodeT()
    lookup.builtinCode = lookup.deprecatedBuiltinCode = schema.BuiltinOperator.EMBEDDING_LOOKUP
    lookup.version = 1
    model.operatorCodes.append(lookup)
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            if builtin(model, operator) != schema.BuiltinOperator.GATHER:
                continue
            table, ids = operator.inputs
            constant = isinstance(model.buffers[subgraph.tensors[table].buffer], AlignedBuffer)
            rows = operator.builtinOptions.axis == 0 and len(subgraph.tensors[ids].shape) == 1
            if constant and rows:
                operator.opcodeIndex = len(model.operatorCodes) - 1
                operator.inputs = [ids, table]
                operator.builtinOptions = None
                operator.builtinOptionsType = schema.BuiltinOptions.NONE


def round_inputs_asymmetrically(model: schema.ModelT) -> None:
    """Have every `FULLY_CONNECTED` with integer weights quantize its inputs from min to max.

    XNNPACK does so whatever the file says. The kernels of runtimes without it round to a range
    about zero unless told otherwise, and end further from the float model.
    """
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            if builtin(model, operator) == schema.BuiltinOperator.FULLY_CONNECTED:
                operator.builtinOptions.asymmetricQuantizeInputs = True


def builtin(model: schema.ModelT, operator: schema.OperatorT) -> int:
    """Return the builtin code of an operator; old codes live in a field of their own."""
    code = model.operatorCodes[operator.opcodeIndex]
    return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))


def refuse_foreign_operators(model: schema.ModelT) -> None:
    """Fail if the file would need Flex or a custom operator, which phones do not have."""
    foreign = sorted(
        {
            model.operatorCodes[operator.opcodeIndex].customCode.decode()
            for subgraph in model.subgraphs
            for operator in subgraph.operators
            if builtin(model, operator) == schema.BuiltinOperator.CUSTOM
        }
    )
    if foreign:
        raise BartExportError(
            f"The exported graph must hold builtin operators only, but holds {', '.join(foreign)}."
        )
