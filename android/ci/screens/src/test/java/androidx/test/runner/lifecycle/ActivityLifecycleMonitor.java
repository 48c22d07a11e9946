package androidx.test.runner.lifecycle;

import android.app.Activity;

/** Says where an activity is in its life. */
public interface ActivityLifecycleMonitor {
    Stage getLifecycleStageOf(Activity activity);
}
