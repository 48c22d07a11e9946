"""What a model is called: its name for TensorFlow Serving, and that name for Kubernetes.

An artifact's directory goes in. Its name ends up in paths, addresses, YAML and text protos; those
of which any part would have to be quoted somewhere are refused, so that nothing needs quoting.
"""

import pathlib
import re

from bart_export.errors import ConfigurationError

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Names of Services are DNS labels of RFC 1035: a letter first, 63 characters at most. KServe and
# Deployments append some to it.
LONGEST_KUBERNETES_NAME = 40
# What YAML 1.1, which Kubernetes reads, does not take for a string (https://yaml.org/type/).
YAML_WORDS = frozenset(("null", "true", "false", "yes", "no", "on", "off", "y", "n"))


def model_name(artifact: pathlib.Path) -> str:
    """Return the name under which an artifact is served: that of its directory.

    Raises:
        ConfigurationError: for a name that does not fit into addresses and configurations.
    """
    if not MODEL_NAME.fullmatch(artifact.name):
        raise ConfigurationError(
            "A SavedModel is served under the name of its artifact's directory, which must be "
            "letters of English, digits, '.', '_' and '-', begin with a letter or digit and have "
            f"at most 100 characters, received {artifact.name!r}. Name another one with --output."
        )
    return artifact.name


def kubernetes_name(name: str) -> str:
    """Return a model's name as a DNS label: bart_large_en becomes bart-large-en."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not label[:1].isalpha() or label in YAML_WORDS:
        label = f"bart-{label}".rstrip("-")
    return label[:LONGEST_KUBERNETES_NAME].rstrip("-")
