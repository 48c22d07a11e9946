package androidx.test.runner.lifecycle;

/** Keeps the monitor of activities. */
public final class ActivityLifecycleMonitorRegistry {
    private static ActivityLifecycleMonitor monitor;

    private ActivityLifecycleMonitorRegistry() {}

    public static ActivityLifecycleMonitor getInstance() {
        return monitor;
    }

    public static void registerInstance(ActivityLifecycleMonitor made) {
        monitor = made;
    }
}
