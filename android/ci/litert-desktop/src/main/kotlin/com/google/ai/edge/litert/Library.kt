/*
 * Bindings of LiteRT's C API in libLiteRt.so of the Python package ai-edge-litert.
 *
 * Handles and size_t are Longs, so this requires a 64-bit machine. Layouts and arguments are those
 * of one version; others are rejected.
 */
package com.google.ai.edge.litert

import com.sun.jna.FunctionMapper
import com.sun.jna.Library
import com.sun.jna.Native
import com.sun.jna.NativeLibrary
import com.sun.jna.Pointer
import java.io.File

private const val VERSION = "2.3.0"
private const val BUILD = "bart_export.build"
private const val LOCATION = "libLiteRt.path"
private const val REMEDY = "run tools/android_fixtures.py"

/**
 * Returns the library's path, from a file with the path and the version on two lines.
 *
 * @throws UnsatisfiedLinkError if the file is missing or names another version
 */
internal fun libraryPath(build: String?): String {
    val location =
        File(build ?: throw UnsatisfiedLinkError("expected the property $BUILD"), LOCATION)
    if (!location.isFile) throw UnsatisfiedLinkError("expected $location, found none: $REMEDY")
    val lines = location.readLines()
    val version = lines.getOrNull(1)
    if (version != VERSION) {
        throw UnsatisfiedLinkError(
            "expected ai-edge-litert $VERSION, $location names ${version ?: "no version"}: $REMEDY",
        )
    }
    return lines[0]
}

/** The C functions, without their prefix; those with a result return a status. */
internal object LiteRt {
    init {
        val names = FunctionMapper { _, method ->
            "LiteRt" + method.name.replaceFirstChar(Char::uppercase)
        }
        val options =
            mapOf(
                Library.OPTION_FUNCTION_MAPPER to names,
                Library.OPTION_STRING_ENCODING to "UTF-8",
            )
        val path = libraryPath(System.getProperty(BUILD))
        Native.register(LiteRt::class.java, NativeLibrary.getInstance(path, options))
    }

    @JvmStatic external fun createEnvironment(count: Int, options: Pointer, made: LongArray): Int

    @JvmStatic external fun destroyEnvironment(environment: Long)

    @JvmStatic external fun getNumAccelerators(environment: Long, count: LongArray): Int

    @JvmStatic external fun getAccelerator(environment: Long, at: Long, found: LongArray): Int

    @JvmStatic external fun getAcceleratorHardwareSupport(accelerator: Long, bits: IntArray): Int

    @JvmStatic external fun createModelFromFile(environment: Long, path: String, to: LongArray): Int

    @JvmStatic external fun destroyModel(model: Long)

    @JvmStatic external fun getNumModelSignatures(model: Long, count: LongArray): Int

    @JvmStatic external fun getModelSignature(model: Long, index: Long, signature: LongArray): Int

    @JvmStatic external fun getSignatureKey(signature: Long, key: LongArray): Int

    @JvmStatic external fun getNumSignatureInputs(signature: Long, count: LongArray): Int

    @JvmStatic external fun getNumSignatureOutputs(signature: Long, count: LongArray): Int

    @JvmStatic external fun getSignatureInputName(signature: Long, at: Long, name: LongArray): Int

    @JvmStatic external fun getSignatureOutputName(signature: Long, at: Long, name: LongArray): Int

    @JvmStatic external fun getSignatureInputTensorByIndex(
        signature: Long,
        index: Long,
        tensor: LongArray,
    ): Int

    @JvmStatic external fun getSignatureOutputTensorByIndex(
        signature: Long,
        index: Long,
        tensor: LongArray,
    ): Int

    @JvmStatic external fun getRankedTensorType(tensor: Long, type: IntArray): Int

    @JvmStatic external fun createOptions(options: LongArray): Int

    @JvmStatic external fun destroyOptions(options: Long)

    @JvmStatic external fun setOptionsHardwareAccelerators(options: Long, accelerators: Int): Int

    @JvmStatic external fun createOpaqueOptions(
        identifier: String,
        payload: Pointer,
        destructor: Pointer,
        options: LongArray,
    ): Int

    @JvmStatic external fun addOpaqueOptions(options: Long, opaque: Long): Int

    @JvmStatic external fun createCompiledModel(
        environment: Long,
        model: Long,
        options: Long,
        compiled: LongArray,
    ): Int

    @JvmStatic external fun destroyCompiledModel(compiled: Long)

    @JvmStatic external fun getCompiledModelInputBufferRequirements(
        compiled: Long,
        signature: Long,
        index: Long,
        requirements: LongArray,
    ): Int

    @JvmStatic external fun getCompiledModelOutputBufferRequirements(
        compiled: Long,
        signature: Long,
        index: Long,
        requirements: LongArray,
    ): Int

    @JvmStatic external fun runCompiledModel(
        compiled: Long,
        signature: Long,
        inputCount: Long,
        inputs: LongArray,
        outputCount: Long,
        outputs: LongArray,
    ): Int

    @JvmStatic external fun createManagedTensorBufferFromRequirements(
        environment: Long,
        type: IntArray,
        requirements: Long,
        buffer: LongArray,
    ): Int

    @JvmStatic external fun lockTensorBuffer(buffer: Long, address: LongArray, mode: Int): Int

    @JvmStatic external fun unlockTensorBuffer(buffer: Long): Int

    @JvmStatic external fun destroyTensorBuffer(buffer: Long)
}

/**
 * Checks the [status] of a call; [what] begins the error message.
 *
 * @throws LiteRtException if the call failed
 */
internal inline fun succeeded(status: Int, what: () -> String) {
    if (status == Status.Ok.code) return
    val known = Status.values().firstOrNull { it.code == status } ?: Status.ErrorUnknown
    throw LiteRtException(known, "${what()}: LiteRT says $known ($status)")
}

/** Returns the value that [call] writes to its output argument. */
internal inline fun produced(what: () -> String, call: (LongArray) -> Int): Long {
    val place = LongArray(1)
    succeeded(call(place), what)
    return place[0]
}
