/*
 * The exception of LiteRT's Kotlin API, with the public API of LiteRT 2.2.0.
 *
 * Tests on the JVM use this class; an app uses LiteRT's own.
 */
package com.google.ai.edge.litert

/** A failed call of LiteRT. */
class LiteRtException(private val status: Status, message: String) : Exception(message) {
    constructor(code: Int, message: String) : this(Status.fromCode(code), message)
}

/** The reason of a failure; [code] is its number in the C API. */
enum class Status(val code: Int) {
    Ok(0),
    ErrorInvalidArgument(1),
    ErrorMemoryAllocationFailure(2),
    ErrorRuntimeFailure(3),
    ErrorMissingInputTensor(4),
    ErrorUnsupported(5),
    ErrorNotFound(6),
    ErrorTimeoutExpired(7),
    ErrorWrongVersion(8),
    ErrorUnknown(9),
    ErrorAlreadyExists(10),
    ErrorCancelled(11),
    ErrorFileIO(500),
    ErrorInvalidFlatbuffer(501),
    ErrorDynamicLoading(502),
    ErrorSerialization(503),
    ErrorCompilation(504),
    ErrorIndexOOB(1000),
    ErrorInvalidIrType(1001),
    ErrorInvalidGraphInvariant(1002),
    ErrorGraphModification(1003),
    ErrorInvalidToolConfig(1500),
    LegalizeNoMatch(2000),
    ErrorInvalidLegalization(2001),
    PatternNoMatch(3000),
    ErrorInvalidTransformation(3001),
    ErrorUnsupportedRuntimeVersion(4000),
    ErrorUnsupportedCompilerVersion(4001),
    ErrorIncompatibleByteCodeVersion(4002),
    ;

    companion object {
        /**
         * Returns the status with this [code].
         *
         * @throws IllegalArgumentException if there is none
         */
        fun fromCode(code: Int): Status = requireNotNull(values().firstOrNull { it.code == code }) {
            "expected a status code of LiteRT, received $code"
        }
    }
}
