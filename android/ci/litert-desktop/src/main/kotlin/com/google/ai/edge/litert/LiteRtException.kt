/*
 * What LiteRT's Kotlin API throws; the public declarations are those of LiteRT 2.2.0.
 *
 * A status of the C API and a line go in. Tests on the JVM see this class, an app LiteRT's own.
 */
package com.google.ai.edge.litert

/** A call that LiteRT refused or failed. */
class LiteRtException(private val status: Status, message: String) : Exception(message) {
    constructor(code: Int, message: String) : this(Status.fromCode(code), message)
}

/** Why LiteRT refused or failed; [code] is the C API's number. */
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
         * The status of a [code].
         *
         * @throws IllegalArgumentException for a number that is none
         */
        fun fromCode(code: Int): Status = requireNotNull(values().firstOrNull { it.code == code }) {
            "expected a status code of LiteRT, received $code"
        }
    }
}
