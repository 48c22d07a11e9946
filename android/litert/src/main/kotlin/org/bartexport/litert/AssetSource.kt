/*
 * A bundle in an app's assets.
 *
 * The only file of this library that knows Android: everything else also runs on a desktop's JVM.
 */
package org.bartexport.litert

import android.content.res.AssetManager
import java.io.InputStream

/**
 * A bundle in a [directory] of an app's [assets], where `bart-export --android` puts it.
 *
 * LiteRT would read a model out of the assets into the heap, whole; installed, it is mapped.
 */
public class AssetSource(private val assets: AssetManager, private val directory: String) :
    BundleSource {
    override fun open(name: String): InputStream =
        assets.open("$directory/$name", AssetManager.ACCESS_STREAMING)

    override fun toString(): String = "assets/$directory"
}
