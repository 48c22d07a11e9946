package org.bartexport.text

import java.security.MessageDigest
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlinx.serialization.Serializable
import kotlinx.serialization.json.Json
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.CsvSource

class Utf8DecoderTest {
    @Serializable
    private class Digests(val octets: List<Int>, val longest: Int, val digests: List<String>)

    private val decoder = Utf8Decoder()

    /** Returns the text of each byte, and of the end. */
    private fun pieces(octets: List<Int>): List<String> {
        val completed = octets.map { octet ->
            StringBuilder().also { decoder.decode(byteArrayOf(octet.toByte()), it) }.toString()
        }
        return completed + StringBuilder().also(decoder::finish).toString()
    }

    // CPython's results, with a bar after each byte and "?" for U+FFFD.
    @ParameterizedTest
    @CsvSource(
        "41, A|",
        "c3 a9, |é|",
        "e2 82 ac, ||€|",
        "f0 9f 9a 80, |||🚀|",
        "f4 8f bf bf, |||\udbff\udfff|",
        "e2 82, ||?",
        "e2 82 41, ||?A|",
        "e2 82 e2 82 ac, ||?||€|",
        "80, ?|",
        "c0 80, ?|?|",
        "c1 bf, ?|?|",
        "e0 9f bf, |??|?|",
        "ed a0, ||??",
        "ed a0 80, ||???|",
        "ed bf 41, ||??A|",
        "ed a0 ed a0, ||??||??",
        "ed 9f bf, ||\ud7ff|",
        "f0 8f bf bf, |??|?|?|",
        "f4 90 80 80, |??|?|?|",
        "f5 80, ?|?|",
        "ff fe, ?|?|",
        "f0 9f 9a c3 a9, |||?|é|",
        "f0 9f c3 41, ||?|?A|",
    )
    fun `damaged bytes become what CPython makes of them`(octets: String, expected: String) {
        val pieces = pieces(octets.split(' ').map { it.toInt(16) })
        assertEquals(expected, pieces.joinToString("|").replace('\ufffd', '?'))
    }

    @Test
    fun `every sequence of four kinds of bytes becomes what CPython makes of it`() {
        val python = Json.decodeFromString<Digests>(resource("utf8.json"))
        assertEquals(python.octets.size, python.digests.size)
        for ((first, expected) in python.octets zip python.digests) {
            val digest = MessageDigest.getInstance("SHA-256")
            for (rest in products(python.octets, python.longest - 1)) {
                val text = (pieces(listOf(first) + rest) + "").joinToString("") { "$it\n" }
                digest.update(text.toByteArray())
            }
            val actual = digest.digest().joinToString("") { "%02x".format(it) }
            assertEquals(expected, actual, "sequences that begin with ${first.toString(16)}")
        }
    }

    private fun products(items: List<Int>, length: Int): Sequence<List<Int>> = if (length == 0) {
        sequenceOf(emptyList())
    } else {
        items.asSequence().flatMap { item ->
            products(items, length - 1).map { listOf(item) + it }
        }
    }
}
