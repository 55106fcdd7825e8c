"""What a process of the service imports; tests/unit/test_imports.py checks the source."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import ROOT

SLOW = (
    *("torchvision", "timm", "transformers", "open_clip", "huggingface_hub", "torch._dynamo"),
    *("torch._decomp", "google.cloud.storage", "matplotlib", "scipy"),
)


def test_setup_imports_nothing_slow_but_torch(tiny_model: Path) -> None:
    """torch is imported in `setup`, while the weights are being downloaded; open_clip never."""
    code = (
        "import sys, predict; early = 'torch' in sys.modules; predict.Predictor().setup();"
        f"print([name for name in {SLOW} if name in sys.modules], early, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "CLIP_WEIGHTS": str(tiny_model)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1:] == ["[] False True"], done.stdout + done.stderr
