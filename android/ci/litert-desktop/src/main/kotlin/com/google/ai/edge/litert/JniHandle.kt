/*
 * Accelerators, and the base class of handles, with the public API of LiteRT 2.2.0.
 */
package com.google.ai.edge.litert

import java.util.concurrent.atomic.AtomicBoolean

/** A processor that can run a model; [value] is its number in LiteRT's Kotlin API. */
enum class Accelerator(val value: Int) {
    NONE(0),
    CPU(1),
    GPU(2),
    NPU(3),
}

/** A LiteRT object at address [handle], freed by [close]. */
abstract class JniHandle internal constructor(internal val handle: Long) : AutoCloseable {
    private val destroyed = AtomicBoolean(false)

    /** The [handle] for a call. Throws after [close], where LiteRT would use freed memory. */
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

    /** Frees the object at [handle]. */
    protected abstract fun destroy()

    /** Frees the object; a second call does nothing. */
    final override fun close() {
        if (destroyed.compareAndSet(false, true)) destroy()
    }
}
