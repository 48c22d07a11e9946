/*
 * The offsets of entries in a ZIP file, from which Android maps assets; java.util.zip has no API
 * for them.
 */
package org.bartexport.apk

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

private const val END_SIGNATURE = 0x06054b50
private const val END_BYTES = 22
private const val CENTRAL_SIGNATURE = 0x02014b50
private const val CENTRAL_BYTES = 46
private const val LOCAL_SIGNATURE = 0x04034b50
private const val LOCAL_BYTES = 30

/** A ZIP file smaller than 2 GiB. */
internal class Archive(private val file: File) {
    private val bytes = ByteBuffer.wrap(file.readBytes()).order(ByteOrder.LITTLE_ENDIAN)

    /** An entry: whether it is [stored] uncompressed, and the [offset] of its data. */
    class Entry(val name: String, val stored: Boolean, val offset: Int, val size: Int)

    /** The entries by name. */
    val entries: Map<String, Entry> = readEntries().associateBy { it.name }

    /** Returns the raw bytes of an entry. */
    fun bytes(entry: Entry): ByteArray =
        bytes.array().copyOfRange(entry.offset, entry.offset + entry.size)

    private fun readEntries(): List<Entry> {
        val end = (bytes.limit() - END_BYTES downTo 0).first { bytes.getInt(it) == END_SIGNATURE }
        var position = bytes.getInt(end + 16)
        return List(short(end + 10)) {
            check(bytes.getInt(position) == CENTRAL_SIGNATURE) { "$file is not a ZIP file." }
            val nameBytes = short(position + 28)
            val name = String(bytes.array(), position + CENTRAL_BYTES, nameBytes)
            val local = bytes.getInt(position + 42)
            check(bytes.getInt(local) == LOCAL_SIGNATURE) { "$file has no entry $name." }
            val entry = Entry(
                name = name,
                stored = short(local + 8) == 0,
                offset = local + LOCAL_BYTES + short(local + 26) + short(local + 28),
                size = bytes.getInt(position + 24),
            )
            position += CENTRAL_BYTES + nameBytes + short(position + 30) + short(position + 32)
            entry
        }
    }

    private fun short(position: Int): Int = bytes.getShort(position).toInt() and 0xFFFF
}
