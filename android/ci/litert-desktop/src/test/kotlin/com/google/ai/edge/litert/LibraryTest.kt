/*
 * Tests of the choice of libLiteRt.so and its version.
 */
package com.google.ai.edge.litert

import java.nio.file.Path
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

class LibraryTest {
    @Test
    fun `the file names the library`(@TempDir build: Path) {
        build.resolve("libLiteRt.path").toFile().writeText("/somewhere/libLiteRt.so\n2.3.0\n")
        assertEquals("/somewhere/libLiteRt.so", libraryPath(build.toString()))
    }

    @Test
    fun `another version and a missing file are refused in one line`(@TempDir build: Path) {
        val refused = { property: String? ->
            assertFailsWith<UnsatisfiedLinkError> { libraryPath(property) }.message.orEmpty()
        }
        assertContains(refused(null), "bart_export.build")
        val location = build.resolve("libLiteRt.path")
        assertContains(refused(build.toString()), "expected $location, found none")
        for ((lines, said) in mapOf(
            "/so\n2.2.0\n" to "names 2.2.0",
            "/so\n" to "names no version",
        )) {
            location.toFile().writeText(lines)
            val message = refused(build.toString())
            assertContains(message, "expected ai-edge-litert 2.3.0")
            assertContains(message, said)
            assertEquals(1, message.lines().size)
        }
    }
}
