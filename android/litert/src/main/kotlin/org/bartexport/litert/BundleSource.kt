/*
 * Where an installer finds the files of a bundle.
 *
 * Names are those of the manifest; Android's assets are in AssetSource.kt.
 */
package org.bartexport.litert

import java.io.File
import java.io.FileNotFoundException
import java.io.FilterInputStream
import java.io.IOException
import java.io.InputStream
import java.util.zip.ZipFile

/** A bundle that can be installed: an artifact directory, wherever it lies. */
public interface BundleSource {
    /**
     * Opens a file of the bundle, for the caller to close.
     *
     * @param name the file's, relative to the bundle, with slashes
     * @throws IOException if there is no such file, or it cannot be read
     */
    public fun open(name: String): InputStream
}

/** A bundle in a directory: an export, or what was pushed to the device. */
public class DirectorySource(private val directory: File) : BundleSource {
    override fun open(name: String): InputStream {
        val file = File(directory, name)
        // Opening a pipe would wait for its writer.
        if (!file.isFile) throw FileNotFoundException("$file is no file")
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

    /** An entry's bytes; the ZIP file is closed with them. */
    private class Closing(entry: InputStream, private val zip: ZipFile) :
        FilterInputStream(entry) {
        override fun close() {
            super.close()
            zip.close()
        }
    }
}
