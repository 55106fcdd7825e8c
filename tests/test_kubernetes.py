"""examples/kubernetes.yaml: its parts fit together, and its probes say the right thing of a server.

No cluster reads it here: the probes' commands are run against the real Cog server in each state.
"""

from __future__ import annotations

import ipaddress
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import weights
from conftest import ROOT
from local_server import CogServer, venv_path

PARTS = {
    part["kind"]: part
    for part in yaml.safe_load_all((ROOT / "examples" / "kubernetes.yaml").read_text())
}
POD = PARTS["Deployment"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def passes(probe: str, server: CogServer) -> bool:
    """Run the probe's command beside `server`, as the kubelet does inside the container."""
    command = [
        part.replace("127.0.0.1:5000", f"127.0.0.1:{server.port}")
        for part in CONTAINER[probe]["exec"]["command"]
    ]
    limit = CONTAINER[probe]["timeoutSeconds"]
    environment = {**os.environ, "PATH": venv_path()}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=limit)
    return done.returncode == 0


def verdicts(server: CogServer) -> dict[str, bool]:
    return {probe: passes(probe, server) for probe in PROBES}


def test_ready(server: CogServer) -> None:
    """READY: started, ready, alive."""
    assert verdicts(server) == dict.fromkeys(PROBES, True)


def test_set_up_failed() -> None:
    """SETUP_FAILED: start-up is over, no traffic, to be started anew."""
    with CogServer({"CLIP_WEIGHTS": "/nowhere"}) as server:
        assert server.wait()["status"] == "SETUP_FAILED"
        assert verdicts(server) == {
            "startupProbe": True,
            "readinessProbe": False,
            "livenessProbe": False,
        }


def test_starting(tmp_path: Path) -> None:
    """STARTING: not started, no traffic, but alive."""
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time\nimport cog\n\n\nclass Predictor(cog.BasePredictor):\n"
        "    def setup(self) -> None:\n        time.sleep(60)\n\n"
        "    async def predict(self) -> str:\n        return ''\n"
    )
    with CogServer({}, schema=None, predictor=f"{slow}:Predictor") as server:
        deadline = time.monotonic() + 30
        while True:
            try:
                assert server.health()["status"] == "STARTING"
                break
            except OSError:
                assert time.monotonic() < deadline
        assert verdicts(server) == {
            "startupProbe": False,
            "readinessProbe": False,
            "livenessProbe": True,
        }


def test_nobody_listens() -> None:
    """A server that is gone passes no probe."""
    assert verdicts(CogServer({})) == dict.fromkeys(PROBES, False)


def test_unhealthy(tiny_model: Path) -> None:
    """UNHEALTHY, the network answers otherwise than at set-up: no traffic, to be started anew."""
    unwell = f"{ROOT / 'tests' / 'unwell_predict.py'}:Predictor"
    environment = {"CLIP_WEIGHTS": str(tiny_model), "FAULT": "text nan"}
    with CogServer(environment, predictor=unwell) as server:
        assert server.wait()["status"] == "UNHEALTHY"
        assert verdicts(server) == {
            "startupProbe": True,
            "readinessProbe": False,
            "livenessProbe": False,
        }


def test_set_up_may_take_as_long_as_a_pull() -> None:
    """The start-up probe gives up later than a pull does by itself, and a minute for the rest."""
    probe = CONTAINER["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > weights.PULL_SECONDS + 60


def test_its_parts_find_each_other() -> None:
    """Deployment, Service and NetworkPolicy select the pod's labels; ports and volumes exist."""
    labels = POD["metadata"]["labels"]
    assert PARTS["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert PARTS["Service"]["spec"]["selector"] == labels
    assert PARTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports[PARTS["Service"]["spec"]["ports"][0]["targetPort"]] == 5000
    volumes = {volume["name"] for volume in POD["spec"]["volumes"]}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == volumes
    paths = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    variables = {variable["name"]: variable["value"] for variable in CONTAINER["env"]}
    assert variables["CLIP_WEIGHTS_CACHE"] in paths


@pytest.mark.parametrize(
    "address", ["10.1.2.3", "172.20.0.1", "192.168.1.1", "169.254.169.254", "127.0.0.1"]
)
def test_image_urls_do_not_reach_private_networks(address: str) -> None:
    """No egress rule for the web's ports allows a private address or the metadata server."""
    allowed: list[dict[str, Any]] = [
        peer["ipBlock"]
        for rule in PARTS["NetworkPolicy"]["spec"]["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert allowed
    for block in allowed:
        assert any(
            ipaddress.ip_address(address) in ipaddress.ip_network(hole) for hole in block["except"]
        )
