"""Private file systems for tests, which may be full or read-only, without root."""

import subprocess
import sys

import pytest

IN_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]


def run_on_mount(place, options, command, **keywords):
    """Run a command in which `place`, a directory, is a tmpfs with these mount options.

    Skips the test if the system does not allow user namespaces.
    """
    mount = f'mount -t tmpfs -o {options} tmpfs "$0" && '
    probe = (
        subprocess.run([*IN_NAMESPACE, mount + "true", str(place)], capture_output=True, text=True)
        if sys.platform == "linux"
        else None
    )
    if probe is None or probe.returncode:
        pytest.skip(f"cannot mount a tmpfs in a namespace here: {probe and probe.stderr.strip()}")
    return subprocess.run(
        [*IN_NAMESPACE, mount + 'exec "$@"', str(place), *map(str, command)],
        capture_output=True,
        text=True,
        **keywords,
    )
