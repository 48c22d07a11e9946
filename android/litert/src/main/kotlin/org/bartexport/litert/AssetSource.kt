/*
 * A bundle in an app's assets; the only file of this library that depends on Android.
 */
package org.bartexport.litert

import android.content.res.AssetManager
import java.io.InputStream

/**
 * A bundle in a [directory] of an app's [assets], where `bart-export --android` puts it.
 *
 * It must be installed, because LiteRT copies a model in the assets to the heap but maps a file.
 */
public class AssetSource(private val assets: AssetManager, private val directory: String) :
    BundleSource {
    override fun open(name: String): InputStream =
        assets.open("$directory/$name", AssetManager.ACCESS_STREAMING)

    override fun toString(): String = "assets/$directory"
}
