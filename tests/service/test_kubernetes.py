"""The probes of examples/kubernetes.yaml report the state of a real Cog server.

No cluster is used: the commands of the probes run here, against a server in each state.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import yaml

from scripts.lib.cog_server import CogServer, venv_path
from tests.helpers import unwell_predict
from tests.helpers.paths import ROOT

[DEPLOYMENT] = [
    document
    for document in yaml.safe_load_all((ROOT / "examples" / "kubernetes.yaml").read_text())
    if document["kind"] == "Deployment"
]
(CONTAINER,) = DEPLOYMENT["spec"]["template"]["spec"]["containers"]
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def passes(probe: str, server: CogServer) -> bool:
    """Run the probe's command like the kubelet, and return whether it passes."""
    command = [
        part.replace("127.0.0.1:5000", f"127.0.0.1:{server.port}")
        for part in CONTAINER[probe]["exec"]["command"]
    ]
    timeout = CONTAINER[probe]["timeoutSeconds"]
    environment = {**os.environ, "PATH": venv_path()}
    completed = subprocess.run(command, env=environment, capture_output=True, timeout=timeout)
    return completed.returncode == 0


def probe_results(server: CogServer) -> dict[str, bool]:
    """Run all three probes."""
    return {probe: passes(probe, server) for probe in PROBES}


def test_ready_server_passes_all_probes(server: CogServer) -> None:
    assert probe_results(server) == dict.fromkeys(PROBES, True)


def test_server_with_failed_setup_is_restarted() -> None:
    """SETUP_FAILED: startup is over, no traffic, restart."""
    with CogServer({"CLIP_WEIGHTS": "/nowhere"}) as server:
        assert server.wait()["status"] == "SETUP_FAILED"
        assert probe_results(server) == {
            "startupProbe": True,
            "readinessProbe": False,
            "livenessProbe": False,
        }


def test_starting_server_is_left_alone(tmp_path: Path) -> None:
    """STARTING: startup goes on, no traffic, no restart."""
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
        assert probe_results(server) == {
            "startupProbe": False,
            "readinessProbe": False,
            "livenessProbe": True,
        }


def test_stopped_server_passes_no_probe() -> None:
    assert probe_results(CogServer({})) == dict.fromkeys(PROBES, False)


def test_unhealthy_server_is_restarted(tiny_model: Path, tmp_path: Path) -> None:
    """UNHEALTHY (the network's results have changed since setup): no traffic, restart."""
    unwell = f"{ROOT / 'tests' / 'helpers' / 'unwell_predict.py'}:Predictor"
    fault = tmp_path / "fault"
    fault.write_text("text nan")
    environment = {"CLIP_WEIGHTS": str(tiny_model), unwell_predict.ENVIRONMENT_VARIABLE: str(fault)}
    with CogServer(environment, predictor=unwell) as server:
        assert server.wait()["status"] == "UNHEALTHY"
        assert probe_results(server) == {
            "startupProbe": True,
            "readinessProbe": False,
            "livenessProbe": False,
        }
