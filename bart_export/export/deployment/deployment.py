"""What a deployment needs: the files that go beside, and into, an exported SavedModel.

A version directory and the settings it was exported with go in; batching parameters and warm-up
requests for it, and configurations for TensorFlow Serving, Docker Compose, Kubernetes and KServe
come out. serving/README.md explains each of them. Nothing here knows how a SavedModel is made, and
TensorFlow is met only in a process of its own, where memory is measured.
"""

from bart_export.export.deployment.files import Deployment, write
from bart_export.export.deployment.names import model_name

__all__ = ["Deployment", "model_name", "write"]
