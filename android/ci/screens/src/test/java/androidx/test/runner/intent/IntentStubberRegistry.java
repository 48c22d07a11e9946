package androidx.test.runner.intent;

/** Says that no intent is answered by a test. */
public final class IntentStubberRegistry {
    private IntentStubberRegistry() {}

    public static boolean isLoaded() {
        return false;
    }

    public static IntentStubber getInstance() {
        throw new IllegalStateException("No test answers intents.");
    }
}
