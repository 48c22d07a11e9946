/**
 * What Robolectric calls of androidx.test:monitor, which is not on Maven Central.
 *
 * <p>Robolectric's instrumentation tells these classes where an activity is in its life, and asks
 * for it again when it moves the activity on. Their names and signatures are the library's; what
 * they do is the least that Robolectric needs. Nothing of our tests uses them.
 */
package androidx.test;
