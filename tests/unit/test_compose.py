"""The service of examples/compose.yaml is as private and as patient as that of kubernetes.yaml.

tests/service/test_compose.py runs its health check.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

import weights
from clip_embed.cog_workarounds import drain
from tests.helpers.paths import ROOT

COMPOSE = yaml.safe_load((ROOT / "examples" / "compose.yaml").read_text())
[SERVICE] = COMPOSE["services"].values()

# The keys that are used, and the types of their values in the Compose specification.
KEYS: dict[str, type] = {
    **dict.fromkeys(("image", "user", "restart", "stop_grace_period"), str),
    **dict.fromkeys(("ports", "cap_drop", "security_opt", "tmpfs"), list),
    **dict.fromkeys(("environment", "healthcheck", "deploy"), dict),
    "read_only": bool,
}


def seconds(duration: str) -> int:
    """Convert a duration such as 11m or 1m30s."""
    assert re.fullmatch(r"(\d+[hms])+", duration)
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))


def test_keys_and_types_are_those_of_compose() -> None:
    assert set(COMPOSE) == {"services"}
    assert {key: type(value) for key, value in SERVICE.items()} == KEYS
    assert all(isinstance(value, str) for value in SERVICE["environment"].values())
    [device] = SERVICE["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_port_is_open_to_this_host_only() -> None:
    assert [port.partition(":")[0] for port in SERVICE["ports"]] == ["127.0.0.1"]


def test_container_has_no_privileges_and_can_write_to_tmp_only() -> None:
    assert SERVICE["user"].split(":")[0] not in ("0", "root")
    assert SERVICE["read_only"]
    assert SERVICE["cap_drop"] == ["ALL"]
    assert SERVICE["security_opt"] == ["no-new-privileges:true"]
    assert [mount.partition(":")[0] for mount in SERVICE["tmpfs"]] == ["/tmp"]


def test_start_period_is_longer_than_a_pull() -> None:
    """Failures within it do not count. A minute is for the rest of setup."""
    assert seconds(SERVICE["healthcheck"]["start_period"]) >= weights.PULL_SECONDS + 60


def test_grace_period_is_longer_than_the_drain() -> None:
    assert seconds(SERVICE["stop_grace_period"]) >= drain.DRAIN_SECONDS + 5


@pytest.mark.parametrize("key", ["start_interval", "interval", "timeout"])
def test_durations_have_a_unit(key: str) -> None:
    assert seconds(SERVICE["healthcheck"][key]) > 0


def test_health_check_is_patient_like_the_liveness_probe() -> None:
    documents: list[Any] = [
        *yaml.safe_load_all((ROOT / "examples" / "kubernetes.yaml").read_text())
    ]
    [container] = documents[0]["spec"]["template"]["spec"]["containers"]
    probe, check = container["livenessProbe"], SERVICE["healthcheck"]
    assert check["retries"] == probe["failureThreshold"]
    assert seconds(check["interval"]) == probe["periodSeconds"]
    assert seconds(check["timeout"]) == probe["timeoutSeconds"]
