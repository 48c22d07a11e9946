/*
 * The state holder: performs the activities' commands and publishes a UiState.
 *
 * Its functions may be called from any thread and do not block. Commands that need the model run
 * one at a time; a new one cancels the one before.
 */
package org.bartexport.app

import android.os.Debug
import java.io.File
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.collectLatest
import kotlinx.coroutines.flow.combine
import kotlinx.coroutines.flow.filterIsInstance
import kotlinx.coroutines.flow.filterNotNull
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.onEach
import kotlinx.coroutines.flow.receiveAsFlow
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import org.bartexport.BartExportError
import org.bartexport.InputError
import org.bartexport.litert.BundleSource
import org.bartexport.litert.InstallEvent
import org.bartexport.litert.ModelInstaller
import org.bartexport.runtime.GenerationEvent

/**
 * The locations of the model.
 *
 * @property bundle the artifact packaged with the app
 * @property model directory to install it to
 * @property cache directory for packed weights, which the system may empty
 */
class Storage(val bundle: BundleSource, val model: File, val cache: File)

/** Installs and opens the model when constructed, then performs commands. */
class Summarizer(
    private val storage: Storage,
    private val settingsStore: SettingsStore,
    scope: CoroutineScope,
) {
    private val states = MutableStateFlow(UiState())
    private val texts = MutableStateFlow("")
    private val models = MutableStateFlow<LoadedModel?>(null)
    private val commands = Channel<Command>(Channel.UNLIMITED)

    /** The current state. */
    val state: StateFlow<UiState> = states.asStateFlow()

    init {
        ask(Command.Prepare)
        scope.launch {
            val settings = withContext(Dispatchers.IO) { settingsStore.read() }
            states.update { it.copy(settings = settings) }
            commands.receiveAsFlow().collectLatest(::perform)
        }
        scope.launch { countTokens() }
    }

    /** Counts the tokens of [text] after a short delay without changes. */
    fun count(text: String) {
        texts.value = text
    }

    /** Summarizes [text], truncated to the model's source length. */
    fun summarize(text: String) = ask(Command.Summarize(text))

    /** Stops the running summary or self-test. */
    fun stop() = ask(Command.Prepare)

    /** Tries again to install and open the model after a failure. */
    fun tryAgain() = ask(Command.Prepare)

    /** Compares the model's answers on this device with the recorded ones. */
    fun selfTest() = ask(Command.SelfTest)

    /** Changes and saves the settings; changed engine options reopen the model. */
    fun change(settings: Settings) {
        val before = state.value.settings
        if (settings == before) return
        states.update { it.copy(settings = settings) }
        settingsStore.write(settings)
        if (options(settings) != options(before)) ask(Command.Prepare)
    }

    private fun ask(command: Command) {
        commands.trySend(command)
    }

    private suspend fun perform(command: Command) {
        try {
            if (command is Command.Summarize) show(Summary.Waiting)
            val model = prepared() ?: return
            when (command) {
                is Command.Prepare -> Unit
                is Command.Summarize -> summarize(model, command.text)
                is Command.SelfTest -> selfTest(model)
            }
        } finally {
            states.update {
                it.copy(
                    summary = it.summary.interrupted(),
                    selfTest = it.selfTest.interrupted(),
                )
            }
        }
    }

    /** Returns the model, opened with the current settings, or null if that failed. */
    private suspend fun prepared(): LoadedModel? {
        val options = options(state.value.settings)
        models.value?.let { if (it.options == options) return it }
        return try {
            models.value?.close()
            models.value = null
            val directory = installed()
            show(Setup.Loading)
            // Published inside the block, because a cancellation after it would leak the model.
            withContext(Dispatchers.IO) {
                LoadedModel.open(directory, options).also {
                    models.value = it
                    show(Setup.Ready(it.facts))
                }
            }
        } catch (error: BartExportError) {
            show(Setup.Failed(error.line()))
            null
        }
    }

    /** Installs the artifact unless it is installed, and returns its directory. */
    private suspend fun installed(): File = ModelInstaller(storage.model).install(storage.bundle)
        .onEach { event ->
            if (event is InstallEvent.Progress) show(Setup.Installing(event.bytes, event.of))
        }
        .filterIsInstance<InstallEvent.Installed>()
        .first().directory

    private suspend fun summarize(model: LoadedModel, text: String) {
        val generation = state.value.settings.generation(model.facts)
        val written = StringBuilder()
        show(Summary.Reading)
        try {
            model.generator.generate(text, generation, truncate = true).collect { event ->
                when (event) {
                    is GenerationEvent.Encoded -> show(Summary.Writing(""))
                    is GenerationEvent.Text -> {
                        written.append(event.piece)
                        show(Summary.Writing(written.toString()))
                    }
                    is GenerationEvent.Finished ->
                        finish(Summary.Done(event.result.text, event.result.timings))
                }
            }
        } catch (error: BartExportError) {
            show(Summary.Failed(error.line()))
        }
    }

    /** Shows the complete summary, then its memory use, which takes a moment to measure. */
    private suspend fun finish(done: Summary.Done) {
        show(done)
        val bytes = withContext(Dispatchers.IO) { Debug.getPss() * KILOBYTE }
        if (bytes > 0) show(done.copy(memory = bytes))
    }

    private suspend fun selfTest(model: LoadedModel) = try {
        model.selfTest().collect(::show)
    } catch (error: BartExportError) {
        show(SelfTest.Failed(error.line()))
    }

    private suspend fun countTokens() {
        combine(texts, models.filterNotNull(), ::Pair).collectLatest { (text, model) ->
            delay(TYPING_MILLISECONDS)
            states.update { it.copy(count = count(model, text)) }
        }
    }

    private fun count(model: LoadedModel, text: String): TokenCount? {
        if (text.isBlank()) return null
        return try {
            TokenCount(model.generator.countTokens(text), model.facts.sourceLength)
        } catch (_: InputError) {
            // Half of a surrogate pair, while it is being typed or pasted.
            null
        }
    }

    private fun options(settings: Settings) = settings.engineOptions(storage.cache)

    private fun show(setup: Setup) = states.update { it.copy(setup = setup) }

    private fun show(summary: Summary) = states.update { it.copy(summary = summary) }

    private fun show(selfTest: SelfTest) = states.update { it.copy(selfTest = selfTest) }
}

/** A command that needs the model. */
private sealed interface Command {
    /** Opens the model and stops any other command. */
    data object Prepare : Command

    data class Summarize(val text: String) : Command

    data object SelfTest : Command
}

private fun BartExportError.line(): String = message.orEmpty()

private const val KILOBYTE = 1024L
private const val TYPING_MILLISECONDS = 150L
