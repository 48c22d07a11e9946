/*
 * What owns something of LiteRT's, and what it may run on; declared as in LiteRT 2.2.0.
 *
 * The C API's pointers are numbers here. Who made one and how it is freed, a subclass knows.
 */
package com.google.ai.edge.litert

import java.util.concurrent.atomic.AtomicBoolean

/** What a model may be computed on; [value] is the number that LiteRT's Kotlin API gives it. */
enum class Accelerator(val value: Int) {
    NONE(0),
    CPU(1),
    GPU(2),
    NPU(3),
}

/** Something of LiteRT's at address [handle], freed by [close] once. */
abstract class JniHandle internal constructor(internal val handle: Long) : AutoCloseable {
    private val destroyed = AtomicBoolean(false)

    /** [handle] for a call; unlike LiteRT, which would follow a closed one, refuses it. */
    internal val address: Long
        get() {
            assertNotDestroyed()
            return handle
        }

    /** Throws an [IllegalStateException] after [close]. */
    protected fun assertNotDestroyed() {
        check(!destroyed.get()) {
            "expected an open ${javaClass.simpleName}, received a closed one"
        }
    }

    /** Frees what [handle] points to. */
    protected abstract fun destroy()

    /** Frees it; a second call does nothing. */
    final override fun close() {
        if (destroyed.compareAndSet(false, true)) destroy()
    }
}
