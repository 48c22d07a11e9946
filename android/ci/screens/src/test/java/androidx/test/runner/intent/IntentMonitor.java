package androidx.test.runner.intent;

/** Would watch the intents that are sent. */
public interface IntentMonitor {}
