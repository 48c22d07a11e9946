/*
 * LiteRT's environment: what the models of a process share; declared as in LiteRT 2.2.0.
 */
package com.google.ai.edge.litert

/** An environment, at [handle]; everything opened with it is closed before it. */
class Environment private constructor(handle: Long) : JniHandle(handle) {
    /** What an environment is told when it is made; [value] is the C API's tag. */
    enum class Option(val value: Int) {
        CompilerPluginLibraryDir(0),
        DispatchLibraryDir(1),
    }

    override fun destroy(): Unit = TODO()

    /** What LiteRT found to compute on. */
    @Throws(LiteRtException::class)
    fun getAvailableAccelerators(): Set<Accelerator> = TODO()

    companion object {
        /** A new environment, for the caller to close. */
        @Throws(LiteRtException::class)
        @JvmOverloads
        @JvmStatic
        fun create(options: Map<Option, String> = mapOf()): Environment = TODO("$options")
    }
}
