"""The manifests in serving/ that run `bart-export serve` in a cluster."""

import re

import kubernetes_validate
import pytest
import yaml
from support.pages import PAGES, ROOT, blocks

from bart_export.cli.main import main
from bart_export.server.metrics import Metrics

SCALED = {each["kind"]: each for each in yaml.safe_load_all(
    (ROOT / "serving/autoscale.yaml").read_text()
)}  # fmt: skip
SERVICE = yaml.safe_load((ROOT / "serving/kserve.yaml").read_text())
PREDICTOR = SERVICE["spec"]["predictor"]
POD = SCALED["Deployment"]["spec"]["template"]["spec"]
CONTAINERS = [*POD["containers"], *PREDICTOR["containers"]]
(RULES,) = (yaml.safe_load(block) for block in blocks("yaml", "serving/README.md"))


@pytest.mark.parametrize("version", ["1.27", "1.37"])
def test_kubernetes_accepts_the_manifests(version):
    assert list(SCALED) == ["Deployment", "Service", "HorizontalPodAutoscaler"]
    for manifest in SCALED.values():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_kserve_s_manifest_is_of_its_own_fields_and_of_a_pod_s():
    assert SERVICE["apiVersion"] == "serving.kserve.io/v1beta1"
    # KServe's own fields, from its documentation.
    own = {"minReplicas", "maxReplicas", "containerConcurrency"}
    spec = {name: value for name, value in PREDICTOR.items() if name not in own}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
    kubernetes_validate.validate(manifest, "1.37", strict=True)
    # The first makes KServe fill /mnt/models, and the name marks the container that it calls.
    assert "STORAGE_URI" in {each["name"] for each in PREDICTOR["containers"][0]["env"]}
    assert PREDICTOR["containers"][0]["name"] == "kserve-container"


@pytest.mark.parametrize("container", CONTAINERS, ids=["kubernetes", "kserve"])
def test_a_container_runs_a_command_and_asks_for_its_model(container):
    assert container["command"] == ["bart-export"]  # found in the image's PATH
    serve, *arguments = container["args"]
    given = main.commands[serve].make_context(serve, list(arguments)).params
    (artifact,) = given["artifacts"]
    assert given["num_threads"] == int(container["resources"]["requests"]["cpu"])
    ports = {port.get("name"): port["containerPort"] for port in container["ports"]}
    assert given["rest_api_port"] in ports.values()
    probe = container["readinessProbe"]["httpGet"]
    assert ports.get(probe["port"], probe["port"]) == given["rest_api_port"]
    assert probe["path"] == f"/v1/models/{artifact.name}/metadata"


def test_requests_name_the_service_and_pods_end_after_their_requests():
    (container,) = POD["containers"]
    given = main.commands["serve"].make_context("serve", container["args"][1:]).params
    name = SCALED["Service"]["metadata"]["name"]
    assert tuple(given["allowed_hosts"]) == (name,)
    waited = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert POD["terminationGracePeriodSeconds"] > waited + given["drain_seconds"]
    assert SCALED["Service"]["spec"]["selector"].items() <= (
        SCALED["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    )


def test_the_autoscaler_reads_metrics_that_the_server_has_and_the_rules_rename():
    metrics = Metrics()
    for gauge in (metrics.running, metrics.waiting):
        gauge.labels("bart_mini_en").set(1)
    names = set(re.findall(r"^([\w:]+)\{", metrics.exposition(), re.MULTILINE))
    renamed = set()
    for rule in RULES["rules"]:
        found = [name for name in names if re.search(rule["name"]["matches"], name)]
        series = re.fullmatch(r"\{__name__=~\"(.*?)\",.*\}", rule["seriesQuery"])[1]
        assert all(re.fullmatch(series, name) for name in found)
        pattern = rule["name"]["as"].replace("${1}", r"\1")
        renamed |= {re.sub(rule["name"]["matches"], pattern, name) for name in found}
    used = SCALED["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert {each["pods"]["metric"]["name"] for each in used} == renamed
    assert "serving/autoscale.yaml" in PAGES["serving/README.md"]
