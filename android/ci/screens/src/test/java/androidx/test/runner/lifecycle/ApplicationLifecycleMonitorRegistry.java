package androidx.test.runner.lifecycle;

/** Takes the monitor of the application, which nobody asks for. */
public final class ApplicationLifecycleMonitorRegistry {
    private ApplicationLifecycleMonitorRegistry() {}

    public static void registerInstance(ApplicationLifecycleMonitor monitor) {}
}
