/*
 * The signatures and tensors of a model by name, where LiteRT's C API uses indices.
 */
package com.google.ai.edge.litert

import com.sun.jna.Pointer

/** The inputs or outputs of a signature, with the C functions for each. */
internal enum class Side(
    val word: String,
    val count: (Long, LongArray) -> Int,
    val nameAt: (Long, Long, LongArray) -> Int,
    val tensorAt: (Long, Long, LongArray) -> Int,
    val requirements: (Long, Long, Long, LongArray) -> Int,
) {
    INPUT(
        "input",
        LiteRt::getNumSignatureInputs,
        LiteRt::getSignatureInputName,
        LiteRt::getSignatureInputTensorByIndex,
        LiteRt::getCompiledModelInputBufferRequirements,
    ),
    OUTPUT(
        "output",
        LiteRt::getNumSignatureOutputs,
        LiteRt::getSignatureOutputName,
        LiteRt::getSignatureOutputTensorByIndex,
        LiteRt::getCompiledModelOutputBufferRequirements,
    ),
}

/** The tensors of one [side] of the signature [key], in LiteRT's order. */
internal class Tensors(private val side: Side, private val key: String, signature: Long) {
    private val names: List<String>
    private val types: List<RankedType>

    /** The argument of a run, reused so that a step allocates nothing. */
    private val addresses: LongArray

    init {
        val what = { "cannot read the ${side.word}s of signature $key" }
        val positions = 0 until produced(what) { side.count(signature, it) }
        names = positions.map { at -> text(produced(what) { side.nameAt(signature, at, it) }) }
        types =
            positions.map { index ->
                val tensor = produced(what) { side.tensorAt(signature, index, it) }
                RankedType().also {
                    succeeded(LiteRt.getRankedTensorType(tensor, it.words), what)
                }
            }
        addresses = LongArray(names.size)
    }

    /**
     * Returns the addresses of [buffers] in LiteRT's order; there must be one for each tensor.
     *
     * Sizes are checked, because LiteRT crashes if an output buffer is too small.
     */
    fun addresses(buffers: Map<String, TensorBuffer>): LongArray {
        for (position in names.indices) {
            val buffer = buffers[names[position]] ?: missing(names[position])
            if (!fits(buffer.type, types[position])) mismatched(position, buffer.type)
            addresses[position] = buffer.address
        }
        if (buffers.size != names.size) unknown((buffers.keys - names.toSet()).first())
        return addresses
    }

    /** Creates a buffer for the tensor [name] of signature [number] of the model at [compiled]. */
    fun buffer(environment: Long, compiled: Long, number: Long, name: String): TensorBuffer {
        val position = names.indexOf(name)
        if (position < 0) unknown(name)
        val what = { "cannot create a buffer for ${side.word} $name of signature $key" }
        val requirements =
            produced(what) { side.requirements(compiled, number, position.toLong(), it) }
        val handle =
            produced(what) {
                LiteRt.createManagedTensorBufferFromRequirements(
                    environment,
                    types[position].words,
                    requirements,
                    it,
                )
            }
        return TensorBuffer(handle, types[position], "${side.word} $name of signature $key")
    }

    private fun fits(given: RankedType, own: RankedType) =
        given === own || (given.code == own.code && given.elements == own.elements)

    private fun mismatched(position: Int, given: RankedType): Nothing {
        val own = types[position]
        invalid(
            "${side.word} ${names[position]} of signature $key must have ${own.elements} " +
                "elements of type ${own.code}, received ${given.elements} of type ${given.code}",
        )
    }

    private fun missing(name: String): Nothing =
        invalid("${side.word} $name of signature $key has no buffer")

    private fun unknown(name: String): Nothing = throw LiteRtException(
        Status.ErrorNotFound,
        "signature $key has no ${side.word} $name, but ${names.joinToString()}",
    )
}

/** One signature of a model: its [number], its [key] and its tensors. */
internal class Signature(val number: Long, val key: String, address: Long) {
    private val inputs = Tensors(Side.INPUT, key, address)
    private val outputs = Tensors(Side.OUTPUT, key, address)

    /** The tensors of one [side]. */
    operator fun get(side: Side): Tensors = if (side == Side.INPUT) inputs else outputs
}

/** The signatures of the model at [model]; the first one is the default. */
internal class Signatures(model: Long) {
    private val byKey: Map<String, Signature>

    init {
        val what = { "cannot read the signatures" }
        byKey =
            (0 until produced(what) { LiteRt.getNumModelSignatures(model, it) })
                .map { number ->
                    val address = produced(what) { LiteRt.getModelSignature(model, number, it) }
                    val key = text(produced(what) { LiteRt.getSignatureKey(address, it) })
                    Signature(number, key, address)
                }.associateBy { it.key }
    }

    /**
     * Returns the signature [key].
     *
     * @throws LiteRtException if the model has no such signature
     */
    operator fun get(key: String?): Signature =
        (if (key == null) byKey.values.firstOrNull() else byKey[key])
            ?: throw LiteRtException(
                Status.ErrorNotFound,
                "the model has no signature $key, but ${byKey.keys.joinToString()}",
            )
}

private fun text(address: Long): String = Pointer(address).getString(0, "UTF-8")
