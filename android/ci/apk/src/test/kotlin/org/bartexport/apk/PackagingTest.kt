/*
 * Tests that the app can be packaged as a valid APK.
 *
 * The APK is never run, and Android Studio's is built by other tools and contains LiteRT. Without
 * the tools the tests are skipped, unless -Dbart_export.require_apk=true is set.
 */
package org.bartexport.apk

import java.io.File
import java.net.URLClassLoader
import kotlin.test.assertContains
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import org.junit.jupiter.api.Assumptions.assumeTrue
import org.junit.jupiter.api.BeforeAll
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestInstance

@TestInstance(TestInstance.Lifecycle.PER_CLASS)
class PackagingTest {
    private val sources = Sources(File(setting("apk.android")).canonicalFile)
    private val bundle = File(setting("bart_export.build"), "bart_mini_en")
    private val program = setting("apk.program").split(File.pathSeparator).map(::File)
    private val packaging = Packaging(
        sources,
        File(setting("apk.app")),
        program,
        File(setting("apk.framework")),
        bundle,
        File(setting("apk.work")),
    )
    private val apk by lazy { packaging.make() }
    private val archive by lazy { Archive(apk) }
    private val code by lazy { run("dexdump", "-d", apk.path).lines() }
    private val classes by lazy {
        code.filter {
            "Class descriptor" in it
        }.map { it.substringAfter("'L").substringBefore(";'") }
    }
    private val manifest by lazy { run(packaging.aapt2, "dump", "badging", apk.path).lines() }

    @BeforeAll
    fun `the tools are there`() {
        val missing = missingPackages()
        if (missing.isNotEmpty()) {
            val reason = "No APK can be made: install the Debian packages ${missing.joinToString(
                " ",
            )}."
            check(!setting("bart_export.require_apk").toBoolean()) { reason }
            assumeTrue(false, reason)
        }
        check(bundle.isDirectory) { "Expected a bundle in $bundle. Run `make test-android`." }
    }

    @Test
    fun `the signatures of schemes 2 and 3 hold`() {
        val verified = run("apksigner", "verify", "--verbose", apk.path).lines()
        for (scheme in listOf("v2", "v3")) {
            val line = verified.single { it.startsWith("Verified using $scheme scheme ") }
            assertTrue(line.endsWith(": true"), line)
        }
    }

    @Test
    fun `a model lies in the APK as it lies in the bundle, and can be mapped`() {
        val models = bundle.walk().filter { it.extension == "tflite" }.toList()
        assertTrue(models.isNotEmpty(), "no model in $bundle")
        for (model in models) {
            val entry = archive.entries.getValue("assets/bart/${model.relativeTo(bundle).path}")
            assertTrue(entry.stored, "${entry.name} is compressed")
            assertEquals(0, entry.offset % 4, "${entry.name} begins at ${entry.offset}")
            assertContentEquals(model.readBytes(), archive.bytes(entry), entry.name)
        }
    }

    @Test
    fun `the whole bundle is in the assets`() {
        // Packagers omit files whose names begin with a dot, which are readers' stamps.
        val expected = bundle.walk().onEnter { !it.name.startsWith(".") }
            .filter(File::isFile)
            .map { "assets/bart/${it.relativeTo(bundle)}" }
        assertEquals(emptySet(), expected.toSet() - archive.entries.keys)
    }

    @Test
    fun `the table of resources can be mapped, which Android 11 asks for`() {
        val table = archive.entries.getValue("resources.arsc")
        assertTrue(table.stored, "it is compressed")
        assertEquals(0, table.offset % 4, "it begins at ${table.offset}")
    }

    @Test
    fun `the manifest names the versions of Gradle's catalogue and asks for no permission`() {
        val name = sources.applicationId
        assertTrue(manifest.first().startsWith("package: name='$name' "), manifest.first())
        assertContains(manifest, "minSdkVersion:'${sources.version("minSdk")}'")
        assertContains(manifest, "targetSdkVersion:'${sources.version("targetSdk")}'")
        assertEquals(emptyList(), manifest.filter { it.startsWith("uses-permission") })
    }

    @Test
    fun `the app can be opened by itself and from the share sheet`() {
        val opened = manifest.single { it.startsWith("launchable-activity: ") }
        assertContains(opened, "name='$MAIN_ACTIVITY'")
        val tree =
            run(packaging.aapt2, "dump", "xmltree", "--file", "AndroidManifest.xml", apk.path)
        val share = tree.split("E: intent-filter").filter { "android.intent.action.SEND\"" in it }
        assertEquals(1, share.size, "filters for ACTION_SEND")
        assertContains(share.single(), "\"text/plain\"")
    }

    @Test
    fun `no instruction is in the dex that Android cannot link`() {
        assertTrue(code.size > 10_000, "dexdump wrote ${code.size} lines")
        assertEquals(emptyList(), code.filter { "invoke-custom" in it })
    }

    @Test
    fun `the dex has the app, the search and the serializers`() {
        val wanted = listOf(
            MAIN_ACTIVITY.replace('.', '/'),
            "org/bartexport/runtime/SearchKt",
            "org/bartexport/GenerationConfig\$\$serializer",
            "kotlinx/coroutines/android/AndroidDispatcherFactory",
        )
        assertEquals(emptySet(), wanted.toSet() - classes.toSet())
    }

    @Test
    fun `the dex has nothing that only a desktop has`() {
        val desktop = listOf("com/sun/", "com/google/ai/edge/", "android/", "org/robolectric/")
        assertEquals(emptyList(), classes.filter { name -> desktop.any { name.startsWith(it) } })
    }

    @Test
    fun `the ids that the app was compiled with are those of its resources`() {
        val line = Regex("""\s+resource (0x[0-9a-f]{8}) (\w+)/(\S+).*""")
        val ids = run(packaging.aapt2, "dump", "resources", apk.path).lines()
            .mapNotNull { line.matchEntire(it)?.destructured }
            .associate { (id, type, name) -> "$type/$name" to Integer.decode(id) }
        val loader = URLClassLoader(program.map { it.toURI().toURL() }.toTypedArray(), null)
        val compiled = listOf("layout", "string").flatMap { type ->
            loader.loadClass("${sources.applicationId}.R\$$type").fields
                .map { "$type/${it.name}" to it.getInt(null) }
        }
        assertTrue(compiled.isNotEmpty(), "no ids")
        assertEquals(compiled.toMap(), ids.filterKeys { it in compiled.toMap() })
    }

    private companion object {
        const val MAIN_ACTIVITY = "org.bartexport.app.MainActivity"
    }
}
