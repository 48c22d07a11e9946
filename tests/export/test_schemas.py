"""Manifests are what Kubernetes, KServe and Compose accept, by their schemas.

Kubernetes' own schemas come with the package kubernetes-validate, and the package compose-spec is
as strict as the specification of its name. No package has KServe's schemas: what stands below was
written from the documentation of serving.kserve.io, only as wide as the files made here, and
closed, so that a misspelt field is found.
"""

import re

import jsonschema
import kubernetes_validate
import pytest
from compose_spec import PyCompose
from support.deployed_models import MEMORY, SIZE, documents

from bart_export.export.saved_model_target import serving_files

WRITTEN = {
    "one": serving_files("bart_mini_en", [1], MEMORY, SIZE),
    "three": serving_files("Bart.Large_7", [4, 5, 9], MEMORY, SIZE),
}
KINDS = ["ConfigMap", "PersistentVolumeClaim", "Deployment", "Service", "HorizontalPodAutoscaler"]
# The oldest with a field of these (appProtocol and autoscaling/v2 are older), and the newest known.
KUBERNETES = ("1.27", "1.37")


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
def test_kubernetes_accepts_its_manifests(written, kind, version):
    manifests = documents(written["kubernetes.yaml"])
    assert list(manifests) == KINDS
    kubernetes_validate.validate(manifests[kind], version, strict=True)


def closed(required, **optional):
    """Return the schema of an object that has these fields and no others."""
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
LABEL = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
MEMORY_AMOUNT = {"type": "string", "pattern": "^[1-9][0-9]*Mi$"}


def listed(schema):
    return {"type": "array", "items": schema, "minItems": 1}


FORMAT = {"name": {"const": "tensorflow"}, "version": TEXT}
PROTOCOL = {"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]}
CONTAINER = closed(
    {"name": {"const": "kserve-container"}, "image": TEXT, "args": listed(TEXT)},
    command=listed(TEXT),
    securityContext={"type": "object"},
    volumeMounts=listed(closed({"name": LABEL, "mountPath": TEXT}, readOnly={"const": True})),
)
SERVING_RUNTIME = closed(
    {
        "apiVersion": {"const": "serving.kserve.io/v1alpha1"},
        "kind": {"const": "ServingRuntime"},
        "metadata": closed({"name": LABEL}),
        "spec": closed(
            {"supportedModelFormats": listed(closed(FORMAT)), "containers": listed(CONTAINER)},
            protocolVersions=listed(PROTOCOL),
            volumes=listed(
                closed(
                    {"name": LABEL},
                    configMap=closed({"name": LABEL}),
                    emptyDir=closed({"sizeLimit": MEMORY_AMOUNT}),
                )
            ),
        ),
    }
)
AMOUNTS = closed({"memory": MEMORY_AMOUNT}, cpu=TEXT)
INFERENCE_SERVICE = closed(
    {
        "apiVersion": {"const": "serving.kserve.io/v1beta1"},
        "kind": {"const": "InferenceService"},
        "metadata": closed({"name": LABEL}),
        "spec": closed(
            {
                "predictor": closed(
                    {
                        "model": closed(
                            {
                                "modelFormat": closed(FORMAT),
                                "runtime": LABEL,
                                "runtimeVersion": TEXT,
                                "protocolVersion": PROTOCOL,
                                "storageUri": {"type": "string", "pattern": "^https://[a-z]"},
                                "resources": closed({"requests": AMOUNTS, "limits": AMOUNTS}),
                            },
                            readinessProbe={"type": "object"},
                        )
                    },
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    canaryTrafficPercent={"type": "integer", "minimum": 0, "maximum": 100},
                )
            }
        ),
    }
)


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
def test_kserve_accepts_its_manifests(written):
    manifests = documents(written["kserve.yaml"])
    assert list(manifests) == ["ConfigMap", "ServingRuntime", "InferenceService"]
    kubernetes_validate.validate(manifests["ConfigMap"], KUBERNETES[-1], strict=True)
    jsonschema.validate(manifests["ServingRuntime"], SERVING_RUNTIME)
    jsonschema.validate(manifests["InferenceService"], INFERENCE_SERVICE)


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
def test_compose_accepts_its_file(written):
    # With the variables' defaults, as Compose reads it.
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", written["compose.yaml"])
    assert PyCompose.from_yaml(text).service_names() == ["serving"]
