package androidx.test.runner.intent;

import android.app.Instrumentation.ActivityResult;
import android.content.Intent;

/** Would answer an intent in the place of another app. */
public interface IntentStubber {
    ActivityResult getActivityResultForIntent(Intent intent);
}
