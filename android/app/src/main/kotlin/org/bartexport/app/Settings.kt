/*
 * What a person can set, and where it is kept.
 *
 * Settings are a value; what was never set is the model's own. They go into generation settings and
 * into options of the engine. Nothing here knows a view.
 */
package org.bartexport.app

import android.content.Context
import android.content.SharedPreferences
import java.io.File
import org.bartexport.GenerationConfig
import org.bartexport.litert.Accelerator
import org.bartexport.litert.EngineOptions

/**
 * What a person has set.
 *
 * @property numBeams null for the model's own, as are the lengths
 * @property maxLength most tokens of a summary, the start token included
 * @property minLength fewest tokens of a summary, counted likewise
 * @property numThreads threads of the CPU
 * @property accelerator what to compute on, where that is possible
 */
data class Settings(
    val numBeams: Int? = null,
    val maxLength: Int? = null,
    val minLength: Int? = null,
    val numThreads: Int = EngineOptions().numThreads,
    val accelerator: Accelerator = Accelerator.CPU,
) {
    /** How a summary is generated with these settings by a [model], which has its own limits. */
    fun generation(model: ModelFacts): GenerationConfig {
        val own = model.generation
        val beams = numBeams?.takeIf { it in model.numBeams }
            ?: model.numBeams.lastOrNull { it <= own.numBeams }
            ?: model.numBeams.first()
        val longest = (maxLength ?: own.maxLength).coerceIn(SHORTEST, model.targetLength)
        return own.copy(
            numBeams = beams,
            numReturnSequences = 1,
            doSample = own.doSample && beams == 1,
            maxLength = longest,
            minLength = (minLength ?: own.minLength).coerceIn(0, longest),
        )
    }

    /** How the engine is opened with these settings; packed weights go into [cache]. */
    fun engineOptions(cache: File): EngineOptions = EngineOptions(numThreads, accelerator, cache)

    companion object {
        /** The start token and one more: a summary has no fewer. */
        const val SHORTEST = 2
    }
}

/** Keeps [Settings] from one start of the app to the next. */
class SettingsStore(private val context: Context) {
    // Made when it is first asked for: that reads a file.
    private val preferences: SharedPreferences by lazy {
        context.getSharedPreferences("settings", Context.MODE_PRIVATE)
    }

    /** Returns what was written last. Reads a file the first time. */
    fun read(): Settings {
        val default = Settings()
        return Settings(
            numBeams = number(NUM_BEAMS),
            maxLength = number(MAX_LENGTH),
            minLength = number(MIN_LENGTH),
            numThreads = number(NUM_THREADS)?.coerceAtLeast(1) ?: default.numThreads,
            accelerator = preferences.getString(ACCELERATOR, null)
                ?.let { name -> Accelerator.entries.firstOrNull { it.name == name } }
                ?: default.accelerator,
        )
    }

    /** Keeps [settings]; the file is written in the background. */
    fun write(settings: Settings) {
        val numbers = mapOf(
            NUM_BEAMS to settings.numBeams,
            MAX_LENGTH to settings.maxLength,
            MIN_LENGTH to settings.minLength,
            NUM_THREADS to settings.numThreads,
        )
        val editor = preferences.edit()
        for ((name, number) in numbers) {
            if (number == null) editor.remove(name) else editor.putInt(name, number)
        }
        editor.putString(ACCELERATOR, settings.accelerator.name).apply()
    }

    private fun number(name: String): Int? =
        if (preferences.contains(name)) preferences.getInt(name, 0) else null
}

private const val NUM_BEAMS = "num_beams"
private const val MAX_LENGTH = "max_length"
private const val MIN_LENGTH = "min_length"
private const val NUM_THREADS = "num_threads"
private const val ACCELERATOR = "accelerator"
