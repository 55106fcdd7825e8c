"""The objects of examples/kubernetes.yaml fit together.

tests/service/test_kubernetes.py runs the commands of the probes.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
import yaml

import weights
from clip_embed.cog_workarounds import drain
from tests.helpers.paths import ROOT

OBJECTS = {
    document["kind"]: document
    for document in yaml.safe_load_all((ROOT / "examples" / "kubernetes.yaml").read_text())
}
POD = OBJECTS["Deployment"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]


def test_startup_probe_waits_longer_than_a_pull() -> None:
    """It allows the timeout of a pull, and a minute for the rest of setup."""
    probe = CONTAINER["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > weights.PULL_SECONDS + 60


def test_grace_period_is_longer_than_the_drain() -> None:
    """It begins with preStop, and the service drains afterwards; 10 s are left for the exit."""
    command = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep"
    ends_after = float(command[1]) + drain.DRAIN_SECONDS
    assert POD["spec"]["terminationGracePeriodSeconds"] >= ends_after + 10


def test_container_has_no_privileges() -> None:
    """Only mounted volumes can be written to, by an ordinary user."""
    user = POD["spec"]["securityContext"]
    assert user["runAsNonRoot"]
    assert user["runAsUser"] == user["runAsGroup"] == user["fsGroup"] == 1000
    assert CONTAINER["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


def test_what_cog_writes_to_is_a_volume() -> None:
    paths = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert {"/tmp", "/var/run/cog"} <= paths
    for volume in POD["spec"]["volumes"]:
        assert volume["emptyDir"]["sizeLimit"]


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_busy_server_is_healthy(probe: str) -> None:
    """The service itself notices slots that are lost, and is UNHEALTHY then."""
    assert "BUSY" in CONTAINER[probe]["exec"]["command"]
    assert ("UNHEALTHY" in CONTAINER[probe]["exec"]["command"]) == (probe == "startupProbe")


def test_objects_refer_to_each_other() -> None:
    """Deployment, Service and NetworkPolicy select the pod; named ports and volumes exist."""
    labels = POD["metadata"]["labels"]
    assert OBJECTS["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert OBJECTS["Service"]["spec"]["selector"] == labels
    assert OBJECTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports[OBJECTS["Service"]["spec"]["ports"][0]["targetPort"]] == 5000
    volumes = {volume["name"] for volume in POD["spec"]["volumes"]}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == volumes
    paths = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    variables = {variable["name"]: variable["value"] for variable in CONTAINER["env"]}
    assert variables["CLIP_WEIGHTS_CACHE"] in paths


@pytest.mark.parametrize(
    "address", ["10.1.2.3", "172.20.0.1", "192.168.1.1", "169.254.169.254", "127.0.0.1"]
)
def test_image_urls_do_not_reach_private_networks(address: str) -> None:
    """No egress rule allows a private address or the metadata server."""
    allowed: list[dict[str, Any]] = [
        peer["ipBlock"]
        for rule in OBJECTS["NetworkPolicy"]["spec"]["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert allowed
    for block in allowed:
        assert any(
            ipaddress.ip_address(address) in ipaddress.ip_network(excluded)
            for excluded in block["except"]
        )
