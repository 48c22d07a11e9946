package org.bartexport.desktop

import java.io.File
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertTrue
import kotlinx.coroutines.flow.last
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import org.bartexport.Artifact
import org.bartexport.litert.DirectorySource
import org.bartexport.litert.InstallEvent
import org.bartexport.litert.ModelInstaller
import org.bartexport.quality.ReplayedCase
import org.bartexport.quality.accepted
import org.bartexport.quality.replay
import org.junit.jupiter.api.Assumptions.assumeTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.io.TempDir

/** Runs the app's self-test on this machine. */
class BundleReplayTest {
    private fun Model.replayed(artifact: Artifact = this.artifact): List<ReplayedCase> =
        runBlocking { replay(artifact, file, engine, tokenizer).toList() }

    @TestFactory
    fun `a bundle answers its golden questions as it did`(): List<DynamicTest> =
        (TINY + MINI + ONE_SOURCE).map { model ->
            dynamicTest("$model") {
                val cases = model.replayed()
                assertTrue(cases.isNotEmpty())
                for (case in cases) assertTrue(case.passed && case.tokenized, "$case")
                assertTrue(accepted(model.artifact, model.file, cases))
            }
        }

    @Test
    fun `what an export put into the app's assets installs and answers as it did`(
        @TempDir directory: File,
    ) {
        val assets = File(System.getProperty("bart_export.assets"))
        assumeTrue(assets.isDirectory, "bart-export --android writes $assets")
        val installation = ModelInstaller(directory).install(DirectorySource(assets))
        val installed = runBlocking { installation.last() } as InstallEvent.Installed
        val model = Model(installed.directory)
        model.engine.use {
            val cases = model.replayed()
            assertTrue(cases.isNotEmpty())
            for (case in cases) assertTrue(case.passed && case.tokenized, "$case")
        }
    }

    @Test
    fun `an answer that was edited is not given`(@TempDir directory: File) {
        val model = TINY.first()
        val golden = File(model.copyTo(directory), GOLDEN)
        golden.writeText(withOtherAnswer(json(golden.readText()), model.file).toString())
        reseal(directory, GOLDEN)
        val artifact = Artifact.open(directory)
        val cases = model.replayed(artifact)
        val failed = cases.single { !it.passed }
        assertEquals(failed.received.tokenIds + 0, failed.expected.tokenIds)
        assertFalse(accepted(artifact, model.file, cases))
    }

    /** Adds a token to the first answer of a file. */
    private fun withOtherAnswer(golden: JsonObject, file: String): JsonObject {
        val cases = golden.getValue("cases").jsonArray.map { it.jsonObject }
        val first = cases.indexOfFirst { file in it.getValue("files").jsonObject }
        val edited = cases.toMutableList()
        edited[first] = cases[first].at("files", file) { answer ->
            val tokenIds = answer.getValue("token_ids").jsonArray + JsonPrimitive(0)
            answer + ("token_ids" to JsonArray(tokenIds))
        }
        return JsonObject(golden + ("cases" to JsonArray(edited)))
    }
}
