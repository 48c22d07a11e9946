/*
 * The user's settings and their storage.
 */
package org.bartexport.app

import android.content.Context
import android.content.SharedPreferences
import java.io.File
import org.bartexport.GenerationConfig
import org.bartexport.litert.Accelerator
import org.bartexport.litert.EngineOptions

/**
 * The user's settings; null means the model's default.
 *
 * @property numBeams number of beams
 * @property maxLength maximum number of tokens in a summary, including the start token
 * @property minLength minimum number of tokens in a summary, including the start token
 * @property numThreads number of CPU threads
 * @property accelerator the preferred accelerator
 */
data class Settings(
    val numBeams: Int? = null,
    val maxLength: Int? = null,
    val minLength: Int? = null,
    val numThreads: Int = EngineOptions().numThreads,
    val accelerator: Accelerator = Accelerator.CPU,
) {
    /** Returns the generation settings, within the limits of a [model]. */
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

    /** Returns the engine's options, with [cache] for packed weights. */
    fun engineOptions(cache: File): EngineOptions = EngineOptions(numThreads, accelerator, cache)

    companion object {
        /** The minimum length of a summary: the start token and one more. */
        const val SHORTEST = 2
    }
}

/** Persists [Settings]. */
class SettingsStore(private val context: Context) {
    // Lazy, because it reads a file.
    private val preferences: SharedPreferences by lazy {
        context.getSharedPreferences("settings", Context.MODE_PRIVATE)
    }

    /** Returns the saved settings. The first call reads a file. */
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

    /** Saves [settings], asynchronously. */
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
