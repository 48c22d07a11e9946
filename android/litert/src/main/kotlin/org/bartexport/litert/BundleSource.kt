/*
 * Sources of a bundle's files; see AssetSource.kt for an app's assets.
 */
package org.bartexport.litert

import java.io.File
import java.io.FileNotFoundException
import java.io.FilterInputStream
import java.io.IOException
import java.io.InputStream
import java.util.zip.ZipFile

/** A bundle that can be installed: an artifact directory in some storage. */
public interface BundleSource {
    /**
     * Opens a file of the bundle; the caller closes it.
     *
     * @param name the path relative to the bundle, with `/` as the separator
     * @throws IOException if the file is missing or cannot be read
     */
    public fun open(name: String): InputStream
}

/** A bundle in a directory, such as an export or files pushed to the device. */
public class DirectorySource(private val directory: File) : BundleSource {
    override fun open(name: String): InputStream {
        val file = File(directory, name)
        // Opening a named pipe would block.
        if (!file.isFile) throw FileNotFoundException("$file is not a regular file")
        return file.inputStream()
    }

    override fun toString(): String = directory.path
}

/** A bundle in a ZIP file, with `manifest.json` at its root. */
public class ZipSource(private val file: File) : BundleSource {
    override fun open(name: String): InputStream {
        val zip = ZipFile(file)
        try {
            val entry = zip.getEntry(name) ?: throw FileNotFoundException("$file has no $name")
            return Closing(zip.getInputStream(entry), zip)
        } catch (error: IOException) {
            zip.close()
            throw error
        }
    }

    override fun toString(): String = file.path

    /** The stream of an entry, which closes the ZIP file too. */
    private class Closing(entry: InputStream, private val zip: ZipFile) :
        FilterInputStream(entry) {
        override fun close() {
            super.close()
            zip.close()
        }
    }
}
