"""Check the image and what it serves: the body of scripts/check_image.py."""

from __future__ import annotations

import base64
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from scripts.image.build import (
    IMAGE,
    Podman,
    build_image,
    expected_packages,
    installed_packages,
    layers,
)
from scripts.image.container import UNPRIVILEGED, Container
from scripts.lib.cog_server import ROOT
from scripts.lib.debian_root import LIMITS, run

# Everything the service imports in some configuration; `import torch` without startup/torch_import.
IMPORTS = (
    "torch, cog.server.http, google.auth.compute_engine, google.auth.identity_pool,"
    " google.auth.impersonated_credentials, google.auth.transport.requests,"
    " google.oauth2.credentials, google.oauth2.service_account, httpcore, anyio, obstore.store,"
    " pillow_heif, prometheus_client, tokenizers"
)
REQUESTS_AT_SIGTERM = 4


@dataclass
class Report:
    """Results of checks, printed as they come and as a table in the end."""

    rows: list[tuple[str, bool, str]] = field(default_factory=list)

    def add(self, check: str, passed: bool, figure: str = "") -> None:
        self.rows.append((check, passed, figure))
        print(f"{'ok' if passed else 'FAILED'}: {check} {figure}", flush=True)

    def print_table(self) -> None:
        print("\n| check | result | |\n|---|---|---|")
        for check, passed, figure in self.rows:
            print(f"| {check} | {'ok' if passed else 'FAILED'} | {figure} |")

    @property
    def passed(self) -> bool:
        return all(passed for _, passed, _ in self.rows)


def run_checks(directory: Path, *, build: bool, sizes: bool) -> bool:
    """Build and check the image; return whether all checks passed. directory: for all files."""
    podman, report = Podman(directory), Report()
    if build:
        build_image(podman, ROOT)
    _check_packages(podman, report)
    _check_demo_model(podman, report)
    _check_full_size(podman, _full_size_weights(directory), report)
    _check_without_tmpfs(podman, report)
    if sizes:
        _print_sizes(podman)
    report.print_table()
    return report.passed


def _check_packages(podman: Podman, report: Report) -> None:
    installed, expected = set(installed_packages(podman)), set(expected_packages(ROOT))
    report.add(
        "installed packages are requirements.txt, cog and coglet",
        installed == expected,
        f"{len(installed)} packages {sorted(installed ^ expected) or ''}",
    )
    podman("run", "--rm", "--network=none", *LIMITS, *UNPRIVILEGED, IMAGE, "python", "-c",
           f"import {IMPORTS}")  # fmt: skip
    report.add("imports of all optional parts", True)


def _check_demo_model(podman: Podman, report: Report) -> None:
    """Check all kinds of requests, Docker's health check and SIGTERM while idle."""
    with Container(podman, ROOT / "demo_model") as service:
        status, seconds = service.wait()
        report.add("demo model: READY", status == "READY", f"{seconds:.1f} s")
        _check_predictions("demo model", service, report)
        report.add("/health-check", service.health()["status"] == "READY")
        command = health_check()
        service.execute(*command)  # ends the script unless it succeeds
        report.add("health check of examples/compose.yaml", True)
        metric = 'clip_embed_predictions_total{kind="text",outcome="succeeded"} 1.0'
        report.add("metrics", metric in service.metrics())
        code, seconds = service.stop()
        report.add("SIGTERM while idle: exit status 0", code == 0, f"{seconds:.1f} s")
        log = service.logs()
        complaints = [x for x in ("Permission denied", "Read-only") if x in log]
        report.add("no complaint in the log", not complaints, " ".join(complaints))


def health_check() -> list[str]:
    """Return the command with which examples/compose.yaml checks the health."""
    compose = yaml.safe_load((ROOT / "examples" / "compose.yaml").read_text())
    [service] = compose["services"].values()
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD"
    return [str(part) for part in command]


def _check_predictions(name: str, service: Container, report: Report) -> None:
    for kind, inputs in (("text", {"text": "a red bicycle"}), ("image", {"image": _photo()})):
        began = time.monotonic()
        prediction = service.predict(**inputs)
        passed = prediction["status"] == "succeeded" and len(prediction["output"]) == 768
        figure = f"{time.monotonic() - began:.2f} s {prediction.get('error') or ''}"
        report.add(f"{name}: {kind}", passed, figure)


def _photo() -> str:
    data = base64.b64encode((ROOT / "examples" / "cat.jpg").read_bytes()).decode()
    return f"data:image/jpeg;base64,{data}"


def _full_size_weights(directory: Path) -> Path:
    """Publish ViT-L/14 with random weights, unless it is there; return its directory."""
    weights = directory / "vit-l-14"
    run(sys.executable, ROOT / "scripts/publish_weights.py", "random:0", weights, quiet=True)
    return weights


def _check_full_size(podman: Podman, weights: Path, report: Report) -> None:
    """Check ViT-L/14 within 3 GB of memory, and SIGTERM while images are in flight."""
    with Container(podman, weights) as service:
        status, seconds = service.wait()
        report.add("ViT-L/14: READY", status == "READY", f"{seconds:.1f} s")
        _check_predictions("ViT-L/14", service, report)
        with ThreadPoolExecutor(REQUESTS_AT_SIGTERM) as threads:
            predictions = [
                threads.submit(service.predict, image=_photo()) for _ in range(REQUESTS_AT_SIGTERM)
            ]
            time.sleep(0.5)  # until all of them have arrived; one takes longer to compute
            in_flight = not any(prediction.done() for prediction in predictions)
            peak = service.peak_megabytes()
            code, seconds = service.stop()
            finished = all(p.result()["status"] == "succeeded" for p in predictions)
        report.add("memory", not service.killed_for_memory(), f"{peak:,.0f} MB at most")
        report.add(
            f"SIGTERM with {REQUESTS_AT_SIGTERM} images in flight: all answered, exit status 0",
            in_flight and finished and code == 0,
            f"{seconds:.1f} s",
        )


def _check_without_tmpfs(podman: Podman, report: Report) -> None:
    """Check that a read-only root without a writable /tmp is explained in one sentence."""
    with Container(podman, ROOT / "demo_model", UNPRIVILEGED) as service:
        status, _ = service.wait()
        sentence = [line for line in service.logs().splitlines() if "--tmpfs /tmp" in line]
        report.add(
            "without /tmp: SETUP_FAILED, with the way out",
            status == "SETUP_FAILED" and bool(sentence),
        )


def _print_sizes(podman: Podman) -> None:
    """Print the bytes of each layer, and of each group of files."""
    measured = layers(podman)
    print("\n| layer | compressed MB | unpacked MB | of it |\n|---|---|---|---|")
    for layer in measured:
        command = re.sub(r"^/bin/sh -c (#\(nop\) )?", "", layer.command)
        parts = ", ".join(f"{part} {size / 1e6:,.1f}" for part, size in layer.parts.most_common())
        print(
            f"| `{command[:60]}` | {layer.compressed / 1e6:,.1f} |"
            f" {layer.unpacked / 1e6:,.1f} | {parts} |"
        )
    compressed, unpacked = (
        sum(s) for s in zip(*((x.compressed, x.unpacked) for x in measured), strict=True)
    )
    print(f"| total | {compressed / 1e6:,.1f} | {unpacked / 1e6:,.1f} | |")
