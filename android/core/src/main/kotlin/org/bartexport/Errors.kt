/*
 * Errors with a one-line message that tells a user what to do; mirrors bart_export/errors.py.
 */
package org.bartexport

/** The base class of this library's errors. */
public sealed class BartExportError(message: String, cause: Throwable? = null) :
    Exception(message, cause)

/** Invalid settings: a value out of range, or two that contradict each other. */
public class ConfigurationError(message: String) : BartExportError(message)

/** Invalid input: a text that is too long or not valid Unicode, or unknown token ids. */
public class InputError(message: String) : BartExportError(message)

/** Tokenizer files that are invalid or do not match each other. */
public class TokenizerError(message: String) : BartExportError(message)

/** An artifact that is missing, damaged or in another format. */
public class ArtifactError(message: String, cause: Throwable? = null) :
    BartExportError(message, cause)

/** A failure of the runtime to open or run a file. */
public class EngineError(message: String, cause: Throwable? = null) :
    BartExportError(message, cause)
