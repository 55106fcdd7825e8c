"""The probes of examples/kubernetes.yaml report the state of a real Cog server.

No cluster is used: the commands of the probes run here, against a server in each state, and the
security context is made with mounts and setpriv.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from scripts.lib.cog_server import CogServer, venv_path
from tests.helpers import unwell_predict
from tests.helpers.paths import ROOT
from tests.helpers.published_model import EmulatorBucket

[DEPLOYMENT] = [
    document
    for document in yaml.safe_load_all((ROOT / "examples" / "kubernetes.yaml").read_text())
    if document["kind"] == "Deployment"
]
(CONTAINER,) = DEPLOYMENT["spec"]["template"]["spec"]["containers"]
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def passes(probe: str, server: CogServer) -> bool:
    """Run the probe's command like the kubelet, and return whether it passes.

    A proxy that the pod has for downloads is not used.
    """
    command = [
        part.replace("127.0.0.1:5000", f"127.0.0.1:{server.port}")
        for part in CONTAINER[probe]["exec"]["command"]
    ]
    timeout = CONTAINER[probe]["timeoutSeconds"]
    environment = {**os.environ, "PATH": venv_path(), "http_proxy": "http://127.0.0.1:9"}
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


USER = DEPLOYMENT["spec"]["template"]["spec"]["securityContext"]["runAsUser"]

CACHE = "/srv"
"""Stands for /cache: the root is read-only, so no such directory can be made."""


def security_context() -> tuple[str, ...]:
    """Return a command that runs another one like the kubelet. Skips without permission."""
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    paths = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert paths == {"/cache", "/tmp", "/var/run/cog"}
    python = sys.base_prefix
    script = f"""
        set -e
        chmod 755 .
        mount -n --bind {ROOT} /mnt
        mount -n -t tmpfs -o mode=1777 none /tmp
        mkdir -p {ROOT}  # gone if it is in /tmp
        mount -n --move /mnt {ROOT}
        mount -n -t tmpfs -o mode=1777 none {CACHE}
        mount -n -t tmpfs -o mode=755 none /run
        mkdir /run/cog
        chmod 1777 /run/cog
        mount -n --bind /run/cog /run/cog
        mount -n -o remount,bind,ro /run
        case {python} in /root/*)  # other users may not read there
            mkdir /tmp/python
            mount -n --bind {python} /tmp/python
            mount -n -t tmpfs -o mode=711 none /root
            mkdir -p {python}
            mount -n --move /tmp/python {python}
            rmdir /tmp/python
        esac
        mount -n -o remount,bind,ro /
        exec setpriv --reuid {USER} --regid {USER} --clear-groups --bounding-set=-all \\
            --inh-caps=-all --no-new-privs "$@"
    """
    command = ("unshare", "--mount", "sh", "-c", script, "sh")
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("another user's rights and a mount namespace need root")
    return command


def test_service_works_under_the_security_context(
    tiny_model: Path, emulator: str, tmp_path: Path
) -> None:
    """Another user without privileges, who can write to the volumes only."""
    environment = {
        "CLIP_WEIGHTS": EmulatorBucket(emulator).put_model(tiny_model, "tiny"),
        "STORAGE_EMULATOR_HOST": emulator,
        "CLIP_WEIGHTS_CACHE": CACHE,
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",  # makes Cog write /var/run/cog/ready
        "HOME": "/",
        **dict.fromkeys(("TMPDIR", "USER", "LOGNAME")),
    }
    output = tmp_path / "log"
    with (
        output.open("wb") as log,
        CogServer(environment, wrapper=security_context(), log=log) as server,
    ):
        server.wait_ready()
        assert server.process is not None
        process = Path(f"/proc/{server.process.pid}")
        status = dict(re.findall(r"(\w+):\s+(.*)", (process / "status").read_text()))
        assert (status["Uid"].split()[1], status["CapBnd"]) == (str(USER), "0" * 16)
        photo = base64.b64encode((ROOT / "examples" / "cat.jpg").read_bytes()).decode()
        for inputs in ({"text": "a cat"}, {"image": f"data:image/jpeg;base64,{photo}"}):
            assert server.predict(**inputs)["status"] == "succeeded"
        assert (process / "root" / "run" / "cog" / "ready").exists()
        assert list((process / "root" / CACHE[1:]).iterdir())
        assert probe_results(server) == dict.fromkeys(PROBES, True)
    assert "Read-only" not in output.read_text()
    assert "Permission denied" not in output.read_text()
