/* Tests of the engine's options and of the LiteRT version. */
package org.bartexport.litert

import java.io.File
import kotlin.test.assertContains
import kotlin.test.assertFailsWith
import org.bartexport.ConfigurationError
import org.junit.jupiter.api.Test

class EngineOptionsTest {
    @Test
    fun `an engine has threads`() {
        val error = assertFailsWith<ConfigurationError> { EngineOptions(numThreads = 0) }
        assertContains(error.message.orEmpty(), "received 0")
    }

    @Test
    fun `the version in a cache's name is the one that Gradle packs`() {
        // Maven runs this in android/ci/litert, Gradle in android/litert.
        val catalogue = listOf("../../gradle", "../gradle")
            .map { File(it, "libs.versions.toml") }
            .first(File::exists)
        assertContains(catalogue.readText(), "litert = \"$LITERT_VERSION\"")
    }
}
