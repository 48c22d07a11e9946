package androidx.test.runner.lifecycle;

/** Would watch the application. */
public interface ApplicationLifecycleMonitor {}
