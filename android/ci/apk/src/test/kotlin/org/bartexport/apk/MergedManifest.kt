/*
 * An app's manifest as it lies in the APK: the few things that the Android Gradle plugin does to the
 * source, and that aapt2 needs done.
 *
 * Knows nothing of what the app declares.
 */
package org.bartexport.apk

import java.io.File
import javax.xml.parsers.DocumentBuilderFactory
import javax.xml.transform.TransformerFactory
import javax.xml.transform.dom.DOMSource
import javax.xml.transform.stream.StreamResult
import org.w3c.dom.Element

private const val TOOLS = "http://schemas.android.com/tools"

/** Writes [source] to [target] with its package's name and without what it asks to remove. */
internal fun mergeManifest(source: File, target: File, applicationId: String) {
    val factory = DocumentBuilderFactory.newInstance().apply { isNamespaceAware = true }
    val document = factory.newDocumentBuilder().parse(source)
    document.documentElement.setAttribute("package", applicationId)
    val elements = document.getElementsByTagName("*")
    (0 until elements.length)
        .map { elements.item(it) as Element }
        .filter { it.getAttributeNS(TOOLS, "node") == "remove" }
        .forEach { it.parentNode.removeChild(it) }
    TransformerFactory.newInstance().newTransformer()
        .transform(DOMSource(document), StreamResult(target))
}
