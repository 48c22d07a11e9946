"""The files of a deployment: each is read as what it is for, and says what is deployed.

Kubernetes' own schemas come with the package kubernetes-validate, and the package compose-spec is
as strict as the specification of its name. No package has KServe's.
"""

import os
import pathlib
import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from bart_export.artifact.manifest import Memory
from bart_export.errors import ConfigurationError
from bart_export.export import saved_model_target
from bart_export.export.saved_model_target import (
    IMAGE_TAG,
    LOADED_VERSIONS,
    earlier_versions,
    kubernetes_name,
    model_name,
    serving_files,
)
from bart_export.export.warm_up import MAX_BATCH_SIZE, guess_memory
from bart_export.server import batching, messages
from bart_export.server.versions import VersionPolicy

MEMORY, SIZE = Memory(loaded=700 * 2**20, peak=1900 * 2**20), 560 * 2**20
ONE = serving_files("bart_mini_en", [1], MEMORY, SIZE)
THREE = serving_files("Bart.Large_7", [4, 5, 9], MEMORY, SIZE)
both = pytest.mark.parametrize("written", [ONE, THREE], ids=["one", "three"])


def documents(text):
    """Return the documents of a YAML text, by kind if they have one."""
    return {one.get("kind", ""): one for one in yaml.safe_load_all(text)}


def pod_of(written):
    return documents(written["kubernetes.yaml"])["Deployment"]["spec"]["template"]


def serving_of(written):
    return yaml.safe_load(written["compose.yaml"])["services"]["serving"]


def parsed(text, message):
    return text_format.Parse(text, message(), descriptor_pool=message.DESCRIPTOR.file.pool)


def model_of(text, message=messages.ModelServerConfig):
    (model,) = parsed(text, message).model_config_list.config
    return model


KINDS = ["ConfigMap", "PersistentVolumeClaim", "Deployment", "Service", "HorizontalPodAutoscaler"]


# The oldest with a field of these (appProtocol and autoscaling/v2 are older), and the newest known.
@pytest.mark.parametrize("version", ["1.27", "1.37"])
@both
def test_kubernetes_accepts_its_manifests(written, version):
    manifests = documents(written["kubernetes.yaml"])
    assert list(manifests) == KINDS
    for manifest in (*manifests.values(), documents(written["kserve.yaml"])["ConfigMap"]):
        kubernetes_validate.validate(manifest, version, strict=True)


# KServe's own fields, from the documentation of serving.kserve.io; the others are a pod's.
RUNTIME_FIELDS = {"supportedModelFormats", "protocolVersions"}
PREDICTOR_FIELDS = {"minReplicas", "maxReplicas", "model"}
MODEL_FIELDS = {
    "modelFormat", "runtime", "runtimeVersion", "protocolVersion", "storageUri",
}  # fmt: skip


@both
def test_kserve_s_manifests_are_of_its_own_fields_and_of_a_pod_s(written):
    manifests = documents(written["kserve.yaml"])
    runtime, service = manifests["ServingRuntime"], manifests["InferenceService"]
    assert runtime["apiVersion"] == "serving.kserve.io/v1alpha1"
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    pod = {key: runtime["spec"].pop(key) for key in ("containers", "volumes")}
    assert set(runtime["spec"]) == RUNTIME_FIELDS
    predictor = service["spec"]["predictor"]
    assert set(predictor) - {"canaryTrafficPercent"} == PREDICTOR_FIELDS
    model = predictor["model"]
    pod["containers"][0] |= {key: model.pop(key) for key in ("readinessProbe", "resources")}
    assert set(model) == MODEL_FIELDS
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
    kubernetes_validate.validate(manifest, "1.37", strict=True)


@both
def test_compose_accepts_its_file(written):
    # With the variables' defaults, as Compose reads it.
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", written["compose.yaml"])
    assert PyCompose.from_yaml(text).service_names() == ["serving"]


@pytest.mark.parametrize(
    ("versions", "labels"),
    [
        ([1], {"stable": 1}),
        ([1, 2], {"stable": 1, "canary": 2}),
        ([4, 5, 9], {"stable": 5, "canary": 9}),
    ],
)
def test_models_config_labels_the_last_two_versions(versions, labels):
    text = serving_files("Bart.Large_7", versions, MEMORY, SIZE)["models.config"]
    model = model_of(text)
    assert str(model) == str(model_of(text, model_server_config_pb2.ModelServerConfig))
    assert (model.name, model.base_path) == ("Bart.Large_7", "/models/Bart.Large_7/saved_model")
    assert model.model_platform == "tensorflow"
    assert model.model_version_policy.latest.num_versions == LOADED_VERSIONS
    assert dict(model.version_labels) == labels
    # A label may move to a version only once that is loaded, and the old one must answer till then.
    loaded = VersionPolicy(model.model_version_policy.latest.num_versions).choose(versions)
    before = dict(zip(("canary", "stable"), reversed(versions[:-1]), strict=False))
    assert {*labels.values(), *before.values()} <= loaded


def test_monitoring_is_on_under_the_path_that_kubernetes_scrapes():
    config = parsed(ONE["monitoring.config"], messages.MonitoringConfig).prometheus_config
    assert config.enable
    assert pod_of(ONE)["metadata"]["annotations"]["prometheus.io/path"] == config.path


def test_batching_parameters_are_those_of_the_server_and_each_has_its_reason(
    saved_model_artifact, tmp_path
):
    path = saved_model_artifact.directory / "saved_model/1/batching_params.pbtxt"
    parameters = batching.read_parameters(path)
    assert parameters.max_batch_size == MAX_BATCH_SIZE
    # TensorFlow Serving ends where it joins parts of different width.
    assert not parameters.enable_large_batch_splitting
    assert parameters.pad_variable_length_inputs
    assert parameters.batch_timeout_micros == 0
    for paragraph in path.read_text().split("\n\n"):
        assert paragraph.startswith("# "), paragraph
    (tmp_path / "batching.config").write_text(ONE["batching.config"])
    shared = batching.read_parameters(tmp_path / "batching.config")
    # That memory is reckoned for; our own server has a thread for each core it finds.
    assert shared.num_batch_threads == saved_model_target.CORES
    assert parameters.num_batch_threads is None


def arguments(words):
    return dict(word.removeprefix("--").partition("=")[::2] for word in words)


FLAGS = {
    "model_config_file", "model_config_file_poll_wait_seconds", "monitoring_config_file",
    "allow_version_labels_for_unavailable_models", "enable_batching",
    "enable_per_model_batching_parameters", "batching_parameters_file", "rest_api_timeout_in_ms",
    "max_num_load_retries", "tensorflow_intra_op_parallelism", "tensorflow_inter_op_parallelism",
    "grpc_channel_arguments", "model_name", "model_base_path", "port", "rest_api_port",
}  # fmt: skip


def test_flags_are_those_of_tensorflow_serving():
    runtime = documents(THREE["kserve.yaml"])["ServingRuntime"]
    specs = (pod_of(THREE)["spec"], runtime["spec"])
    for words in (serving_of(THREE)["command"], *(one["containers"][0]["args"] for one in specs)):
        given = arguments(words)
        assert set(given) <= FLAGS
        assert given["enable_batching"] == given["enable_per_model_batching_parameters"] == "true"
        assert given["rest_api_timeout_in_ms"] == "60000"


def test_compose_mounts_the_directory_around_the_artifact_and_names_what_lies_in_it(
    saved_model_artifact,
):
    directory = saved_model_artifact.directory
    text = (directory / "serving/compose.yaml").read_text()
    service = serving_of({"compose.yaml": text})
    (mount,) = service["volumes"]
    assert (directory / "serving" / mount["source"]).resolve() == directory.resolve().parent
    for value in arguments(service["command"]).values():
        if value.startswith("/"):
            inside = value.removeprefix(f"{mount['target']}/{directory.name}/")
            assert (directory / inside).is_file()
    assert service["image"] == f"tensorflow/serving:${{TF_SERVING_TAG:-{IMAGE_TAG}}}"


@pytest.mark.parametrize("file", ["kubernetes.yaml", "kserve.yaml"])
def test_the_configurations_that_are_named_are_mounted(file):
    manifest = documents(THREE[file])
    data = manifest["ConfigMap"]["data"]
    for name, content in data.items():
        assert content.rstrip("\n") == THREE[name].rstrip("\n")
    spec = manifest.get("ServingRuntime", pod_of(THREE))["spec"]
    mounts = {each["name"]: each["mountPath"] for each in spec["containers"][0]["volumeMounts"]}
    for value in arguments(spec["containers"][0]["args"]).values():
        if value.startswith("/config"):
            assert value.removeprefix(f"{mounts['config']}/") in data
    volumes = {each["name"]: each for each in spec["volumes"]}
    assert set(volumes) == set(mounts)
    assert volumes["config"]["configMap"]["name"] == manifest["ConfigMap"]["metadata"]["name"]


def filling(directory, url):
    """Return the command that fills a volume, as the first container of a pod runs it."""
    (container,) = pod_of(ONE)["spec"]["initContainers"]
    (script,) = container["args"]
    assert [each["name"] for each in container["env"]] == ["ARTIFACT_URL"]
    script = script.replace("/models", str(directory)).replace("sleep 5", "sleep 0.05")
    environment = {**os.environ, "ARTIFACT_URL": url}
    return subprocess.Popen(
        [*container["command"], script], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_the_volume_is_filled_from_an_archive(tmp_path):
    (tmp_path / "from" / "bart_mini_en").mkdir(parents=True)
    (tmp_path / "from" / "bart_mini_en" / "manifest.json").write_text("{}")
    archive = tmp_path / "bart_mini_en.tar.gz"
    subprocess.run(["tar", "-czf", archive, "-C", tmp_path / "from", "bart_mini_en"], check=True)
    (tmp_path / "models").mkdir()
    for _ in range(2):  # the second pod finds it there
        with filling(tmp_path / "models", archive.as_uri()) as run:
            assert run.wait(120) == 0
        assert [path.name for path in (tmp_path / "models").iterdir()] == ["bart_mini_en"]
        archive.unlink(missing_ok=True)
    (tmp_path / "other").mkdir()
    with filling(tmp_path / "other", archive.as_uri()) as run:
        assert run.wait(120) != 0  # there is no archive, and the pod is started again


def test_without_an_archive_the_artifact_is_waited_for(tmp_path):
    with filling(tmp_path, "") as run:
        assert "kubectl cp the artifact there" in run.stdout.readline()
        (tmp_path / "bart_mini_en").mkdir()
        (tmp_path / "bart_mini_en" / "manifest.json").touch()
        assert run.wait(120) == 0


def test_containers_write_nothing_and_have_no_rights():
    pod = pod_of(ONE)["spec"]
    runtime = documents(ONE["kserve.yaml"])["ServingRuntime"]["spec"]["containers"]
    contexts = [container["securityContext"] for container in runtime]
    for container in (*pod["initContainers"], *pod["containers"]):
        contexts.append(pod["securityContext"] | container["securityContext"])
    assert len(contexts) == 3
    for context in contexts:
        assert context.items() >= {
            "runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000,
            "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False,
        }.items()  # fmt: skip
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert context["capabilities"] == {"drop": ["ALL"]}
    compose = serving_of(ONE)
    assert compose["user"].endswith(":-1000:1000}")
    assert (compose["read_only"], compose["cap_drop"]) == (True, ["ALL"])
    assert compose["security_opt"] == ["no-new-privileges:true"]


def test_probes_ask_for_the_metadata_of_the_model():
    (container,) = pod_of(THREE)["spec"]["containers"]
    probes = ("startupProbe", "readinessProbe")
    for probe in probes:
        assert container[probe]["httpGet"]["path"] == "/v1/models/Bart.Large_7/metadata"
    asked = {container[probe]["httpGet"]["port"] for probe in probes}
    asked |= {container["livenessProbe"]["tcpSocket"]["port"]}
    assert asked <= {port["name"] for port in container["ports"]}


@pytest.mark.parametrize(
    ("versions", "request_", "limit"),
    # A version 700, each of two batches 1200, the next version's peak 1900.
    [([1], 3100, 5000), ([1, 2], 3800, 5700), ([4, 5, 9], 4500, 6400), ([1, 2, 3, 4], 4500, 6400)],
)
def test_memory_is_that_of_the_loaded_versions_and_one_being_exchanged(versions, request_, limit):
    written = serving_files("bart", versions, MEMORY, SIZE)
    resources = pod_of(written)["spec"]["containers"][0]["resources"]
    assert resources["requests"]["memory"] == f"{request_}Mi"
    assert resources["limits"]["memory"] == f"{limit}Mi"
    assert serving_of(written)["deploy"]["resources"]["limits"]["memory"] == f"{limit}M"
    service = documents(written["kserve.yaml"])["InferenceService"]["spec"]["predictor"]["model"]
    assert service["resources"]["limits"]["memory"] == "5000Mi"
    assert "700 MiB with a version loaded" in written["kubernetes.yaml"]


def test_a_figure_that_was_not_measured_says_so(tmp_path):
    (tmp_path / "weights").write_bytes(bytes(2**20))
    memory = guess_memory(tmp_path)
    assert 2**20 < memory.loaded < memory.peak
    assert "Estimated from the files' size" in serving_files("bart", [1], memory, 1)["compose.yaml"]
    assert "Measured" in ONE["compose.yaml"]


def test_kserve_fetches_one_version_and_a_canary_takes_a_part_once_there_is_an_earlier_one():
    first, third = documents(ONE["kserve.yaml"]), documents(THREE["kserve.yaml"])
    assert "PersistentVolumeClaim" not in third
    predictor = third["InferenceService"]["spec"]["predictor"]
    model = predictor["model"]
    assert model["storageUri"] == "https://models.example.com/Bart.Large_7-9.tar.gz"
    assert "canaryTrafficPercent" not in first["InferenceService"]["spec"]["predictor"]
    assert predictor["canaryTrafficPercent"] == 10
    assert model["runtimeVersion"] == IMAGE_TAG
    assert model["runtime"] == third["ServingRuntime"]["metadata"]["name"]
    (container,) = third["ServingRuntime"]["spec"]["containers"]
    assert "--model_name={{.Name}}" in container["args"]  # which KServe fills in


def test_a_deployment_names_its_model_and_its_version(saved_model_artifact):
    model = model_of((saved_model_artifact.directory / "serving/models.config").read_text())
    assert model.name == saved_model_artifact.directory.name
    assert dict(model.version_labels) == {"stable": 1}


def test_an_artifact_that_is_damaged_has_no_earlier_versions(saved_model_artifact, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(saved_model_artifact.directory, copied)
    assert earlier_versions(copied) == [1]
    (copied / "saved_model/1/fingerprint.pb").write_bytes(b"other")
    assert earlier_versions(copied) == []
    assert earlier_versions(tmp_path / "nothing") == []


def is_healthy(port):
    """Return whether Compose's check of a server finds it healthy."""
    kind, *command = serving_of(ONE)["healthcheck"]["test"]
    assert kind == "CMD"
    # Compose reads two dollar signs as one.
    words = [word.replace("$$", "$").replace("/8501", f"/{port}") for word in command]
    return subprocess.run(words, timeout=120, capture_output=True).returncode == 0


def test_the_health_check_wants_a_version_that_answers(http_answers):
    for status, healthy in (("200 OK", True), ("404 Not Found", False)):
        with http_answers(status) as (port, requests):
            assert is_healthy(port) is healthy
        assert requests[0].startswith("GET /v1/models/bart_mini_en/metadata HTTP/1.1\r\n")
    assert not is_healthy(port)


@pytest.mark.parametrize(
    "name", ["my model", "a:b", ".hidden", "-rf", "ünï", "a\nb", 'a"b', "{{a}}", "a#b", "a" * 101]
)
def test_a_name_that_would_need_quoting_is_refused(name):
    with pytest.raises(ConfigurationError, match="--output"):
        model_name(pathlib.Path("/artifacts") / name)


@pytest.mark.parametrize(
    "name", ["bart_mini_en", "Bart.Large-7", "7", "null", "No", "1e3", "a" * 100]
)
def test_other_names_are_the_directory_s(name):
    assert model_name(pathlib.Path("/artifacts") / name) == name
    written = serving_files(name, [1, 2], MEMORY, SIZE)
    assert f'name: "{name}"' in written["models.config"]
    manifests = [documents(written[file]) for file in ("kubernetes.yaml", "kserve.yaml")]
    named = [document["metadata"] for each in manifests for document in each.values()]
    # What YAML may not take for a number or nothing.
    for place in (*named, yaml.safe_load(written["compose.yaml"])):
        assert isinstance(place["name"], str)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bart_mini_en", "bart-mini-en"),
        ("Bart.Large_7", "bart-large-7"),
        ("7", "bart-7"),
        ("a__b--", "a-b"),
        ("x" * 39 + "_yz", "x" * 39),
    ],
)
def test_kubernetes_names_are_dns_labels(name, expected):
    assert kubernetes_name(name) == expected
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", expected)
