package androidx.test.platform.app;

import android.app.Instrumentation;
import android.os.Bundle;

/** Keeps the instrumentation that Robolectric makes for a test. */
public final class InstrumentationRegistry {
    private static Instrumentation instrumentation;
    private static Bundle arguments;

    private InstrumentationRegistry() {}

    public static void registerInstance(Instrumentation made, Bundle with) {
        instrumentation = made;
        arguments = with;
    }

    public static Instrumentation getInstrumentation() {
        return instrumentation;
    }

    public static Bundle getArguments() {
        return arguments;
    }
}
