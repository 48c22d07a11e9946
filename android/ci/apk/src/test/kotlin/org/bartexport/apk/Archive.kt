/*
 * Where the entries of a zip file really lie: the positions by which Android maps an asset.
 *
 * Reads the central directory and the local headers itself, since java.util.zip tells no offsets.
 * Knows nothing of what is in an APK.
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

/** A zip file of less than 2 GiB. */
internal class Archive(private val file: File) {
    private val bytes = ByteBuffer.wrap(file.readBytes()).order(ByteOrder.LITTLE_ENDIAN)

    /** One entry: whether its bytes are [stored] as they are, and the [offset] of the first. */
    class Entry(val name: String, val stored: Boolean, val offset: Int, val size: Int)

    /** Every entry, by its name. */
    val entries: Map<String, Entry> = readEntries().associateBy { it.name }

    /** The bytes of an entry as they lie in the file. */
    fun bytes(entry: Entry): ByteArray =
        bytes.array().copyOfRange(entry.offset, entry.offset + entry.size)

    private fun readEntries(): List<Entry> {
        val end = (bytes.limit() - END_BYTES downTo 0).first { bytes.getInt(it) == END_SIGNATURE }
        var position = bytes.getInt(end + 16)
        return List(short(end + 10)) {
            check(bytes.getInt(position) == CENTRAL_SIGNATURE) { "$file is no zip file." }
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
