"""The conversion of a model to a float32 `.tflite` file.

The converter never sees the matrices: they are arguments during the conversion, which therefore
takes seconds and little memory for any model size. Afterwards each argument is bound to a constant
buffer, one per matrix, which all operators and signatures share. Lookups in constant tables become
`EMBEDDING_LOOKUP`, which the quantizer supports, so that the tied table is stored once.
"""

import errno
import os
import pathlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence

import flatbuffers
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from bart_export import contract
from bart_export.checkpoints.weight_names import layer_name
from bart_export.contract import StaticShapes
from bart_export.errors import BartExportError
from bart_export.graph import tflite_signatures
from bart_export.graph.layers import Tensors
from bart_export.graph.parameters import FloatArray, InferenceParameters
from bart_export.quiet import native_stderr_silenced

FILE_IDENTIFIER = b"TFL3"
ALIGNMENT = 16  # bytes; the schema requires it for every buffer


def write_float(
    parameters: InferenceParameters, path: pathlib.Path, shapes: StaticShapes | None = None
) -> None:
    """Write a float32 `.tflite` file: static if `shapes` are given, or else dynamic."""
    write_signatures(parameters, contract.tflite_buckets(parameters.config, shapes), path)


def write_signatures(
    parameters: InferenceParameters, signatures: Sequence[contract.Bucket], path: pathlib.Path
) -> None:
    """Write a float32 `.tflite` file with these signatures; see `write_float`."""
    model = convert(parameters, signatures, path.parent)
    bind_weights(model, parameters)
    use_embedding_lookups(model)
    round_inputs_asymmetrically(model)
    refuse_foreign_operators(model)
    size = 4 * sum(int(np.prod(parameters.shape(name))) for name in parameters)
    builder = flatbuffers.Builder(size + (1 << 20))  # growing would copy the whole buffer
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    with path.open("wb") as file:
        file.write(memoryview(builder.Bytes)[builder.Head() :])


def convert(
    parameters: InferenceParameters, buckets: Sequence[contract.Bucket], scratch: pathlib.Path
) -> schema.ModelT:
    """Convert signatures; every matrix becomes an argument named after its weight.

    `scratch` is a directory for the converter's input, which is a few hundred kilobytes.
    """
    vectors = {name: parameters[name] for name in parameters if not is_matrix(parameters, name)}
    functions = {bucket.name: signature_function(parameters, vectors, bucket) for bucket in buckets}
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
    """Return a signature's concrete function; the matrices it reads are arguments.

    To find those matrices, the function is first traced with all of them.
    """
    config, signature = parameters.config, bucket.signature
    sizes = {**contract.sizes(config), **bucket.sizes}
    inputs = {
        tensor.name: tf.TensorSpec(tensor.shape(sizes), tensor.dtype, name=tensor.name)
        for tensor in signature.inputs
    }
    read: set[str] = set()

    def trace(matrices: Iterable[str]) -> tf.types.experimental.ConcreteFunction:
        specs = inputs | {
            name: tf.TensorSpec(parameters.shape(name), tf.float32, name=argument_name(name))
            for name in matrices
        }

        def call(*tensors: tf.Tensor) -> Tensors:
            arguments = dict(zip(specs, tensors, strict=True))
            weights = TracedParameters(vectors, arguments, read)
            computed = tflite_signatures.FUNCTIONS[signature.name](config, weights, arguments)
            return {tensor.name: computed[tensor.name] for tensor in signature.outputs}

        function = tf.function(call, autograph=False, input_signature=list(specs.values()))
        return function.get_concrete_function()

    trace(name for name in parameters if is_matrix(parameters, name))
    return trace(name for name in parameters if name in read)


class TracedParameters(dict[str, tf.Tensor]):
    """The parameters during tracing: matrices are arguments, vectors become constants.

    Names of matrices are added to `read` when they are looked up.
    """

    def __init__(
        self, vectors: Mapping[str, FloatArray], arguments: Mapping[str, tf.Tensor], read: set[str]
    ) -> None:
        super().__init__(arguments)
        self.vectors, self.read = vectors, read

    def __getitem__(self, name: str) -> tf.Tensor:
        if name in self.vectors:
            return tf.constant(self.vectors[name])
        self.read.add(name)
        return super().__getitem__(name)


def is_matrix(parameters: InferenceParameters, name: str) -> bool:
    """Return whether a weight is a matrix; vectors become constants, to be fused into operators."""
    return len(parameters.shape(name)) == 2


def argument_name(name: str) -> str:
    """Return the name of a weight's argument, which cannot contain a slash."""
    return name.replace("/", ".")


def bind_weights(model: schema.ModelT, parameters: InferenceParameters) -> None:
    """Turn the arguments for weights into constants, with one buffer per weight."""
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
    """Name a matrix, and the outputs of the operators that read it, after its layer.

    The names are unique in a file; the quantizer selects operators by them.
    """
    subgraph.tensors[matrix].name = f"{layer}/weights".encode()
    for operator in subgraph.operators:
        if matrix in operator.inputs:
            # The tied table is the first input of a lookup, and the second of the logits operator.
            result = "output" if operator.inputs[0] != matrix else "lookup"
            subgraph.tensors[operator.outputs[0]].name = f"{layer}/{result}".encode()


class AlignedBuffer(schema.BufferT):
    """An aligned buffer that loads its weight only when it is written."""

    def __init__(self, parameters: InferenceParameters, name: str) -> None:
        super().__init__()
        self.parameters, self.name = parameters, name

    def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802
        """Write the weight, and return the buffer's offset."""
        data = self.parameters[self.name].reshape(-1).view(np.uint8)
        # Python's builder does not implement force_align, so the vector is aligned explicitly.
        builder.Prep(ALIGNMENT, data.nbytes)
        vector = builder.CreateNumpyVector(data)
        schema.BufferStart(builder)
        schema.BufferAddData(builder, vector)
        return int(schema.BufferEnd(builder))


def use_embedding_lookups(model: schema.ModelT) -> None:
    """Replace every `GATHER` of rows from a constant table with an `EMBEDDING_LOOKUP`.

    The quantizer produces the same integers for an `EMBEDDING_LOOKUP` and a `FULLY_CONNECTED` with
    the same table, so the tied embedding remains one buffer; a `GATHER` would keep a float copy.
    """
    lookup = schema.OperatorCodeT()
    lookup.builtinCode = lookup.deprecatedBuiltinCode = schema.BuiltinOperator.EMBEDDING_LOOKUP
    lookup.version = 1
    model.operatorCodes.append(lookup)
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            if builtin_code(model, operator) != schema.BuiltinOperator.GATHER:
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
    """Make every `FULLY_CONNECTED` with integer weights quantize its inputs asymmetrically.

    XNNPACK always does so. Other kernels quantize symmetrically by default, less accurately.
    """
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            if builtin_code(model, operator) == schema.BuiltinOperator.FULLY_CONNECTED:
                operator.builtinOptions.asymmetricQuantizeInputs = True


def builtin_code(model: schema.ModelT, operator: schema.OperatorT) -> int:
    """Return an operator's builtin code; codes up to 127 may be in the deprecated field."""
    code = model.operatorCodes[operator.opcodeIndex]
    return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))


def refuse_foreign_operators(model: schema.ModelT) -> None:
    """Check that a file needs neither Flex nor custom operators, which phones do not have."""
    foreign = sorted(
        {
            model.operatorCodes[operator.opcodeIndex].customCode.decode()
            for subgraph in model.subgraphs
            for operator in subgraph.operators
            if builtin_code(model, operator) == schema.BuiltinOperator.CUSTOM
        }
    )
    if foreign:
        raise BartExportError(
            "The exported graph must consist of builtin operators, but contains "
            f"{', '.join(foreign)}."
        )
