"""Layer names: how a person, a recipe file and a report call the matrices of a BART.

A configuration goes in, a name for every matrix comes out, with the name of its weight in
`checkpoints.names`: `decoder/layer_3/feedforward_output` for
`transformer_decoder_layer_3/feedforward_output_dense/kernel`. These names are also those of tensors
in a `.tflite` file. How a matrix is stored is not known here.
"""

import re

from bart_export.checkpoints import names
from bart_export.config import BartConfig

TOKEN_EMBEDDING = "token_embedding"
KERNEL = re.compile(r"transformer_(encoder|decoder)_layer_(\d+)/(.*)/kernel")
# The sub-layers' words in Keras -> in a layer name.
WORDS = (
    ("self_attention_layer", "self_attention"),
    ("/attention_output", "_output"),
    ("/", "_"),
    ("_dense", ""),
)


def layer_names(config: BartConfig) -> dict[str, str]:
    """Return layer name -> weight name of every matrix, in the order of `names.weights`."""
    return {
        layer_name(weight.name): weight.name
        for weight in names.weights(config)
        if weight.name.endswith(("/kernel", "/embeddings"))
    }


def layer_name(weight: str) -> str:
    """Return the layer name of a matrix's weight name."""
    if weight == names.TOKEN_EMBEDDING:
        return TOKEN_EMBEDDING
    kernel = KERNEL.fullmatch(weight)
    if kernel is None:
        side, _, _ = weight.partition("_")
        return f"{side}/position_embedding"
    side, number, projection = kernel.groups()
    for keras, word in WORDS:
        projection = projection.replace(keras, word)
    return f"{side}/layer_{number}/{projection}"
