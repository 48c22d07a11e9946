/*
 * The errors a person can do something about; mirrors bart_export/errors.py.
 *
 * Each says in one line what was expected, what was received and what would be accepted. Nothing
 * here knows who shows the line.
 */
package org.bartexport

/** What every error of this library is. */
public sealed class BartExportError(message: String, cause: Throwable? = null) :
    Exception(message, cause)

/** Settings that cannot be: a value out of range, or two that contradict each other. */
public class ConfigurationError(message: String) : BartExportError(message)

/** A text or ids that cannot be taken: too long, no Unicode, not in the vocabulary. */
public class InputError(message: String) : BartExportError(message)

/** Tokenizer files that are damaged or do not belong together. */
public class TokenizerError(message: String) : BartExportError(message)

/** An artifact that is missing, damaged or of another format, with the name of the file. */
public class ArtifactError(message: String, cause: Throwable? = null) :
    BartExportError(message, cause)

/** A runtime that cannot open a file or fails to run it. */
public class EngineError(message: String, cause: Throwable? = null) :
    BartExportError(message, cause)
