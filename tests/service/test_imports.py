"""What a process of the service imports; tests/unit/test_imports.py checks the source."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.range_server import Answer, RangeServer

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


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("", "LocationError: CLIP_WEIGHTS is not set"),
        ("ftp://host/clip", "LocationError: CLIP_WEIGHTS begins with ftp://"),
        ("/nowhere", "LocationError: /nowhere holds no manifest.json"),
        ("{web}/nowhere", "LocationError: {web}/nowhere holds no manifest.json"),
        ("{web}/refused", "AccessError: {web}/refused/manifest.json refuses access (HTTP 403)"),
    ],
)
def test_location_that_cannot_work_fails_before_torch_is_imported(
    location: str, says: str, tmp_path: Path
) -> None:
    code = (
        "import sys, predict\n"
        "try: predict.Predictor().setup()\n"
        "except Exception as error: print(f'{type(error).__name__}: {error}')\n"
        "print('torch' in sys.modules)"
    )
    with RangeServer(tmp_path) as server:
        server.fault = lambda request, answer: (
            Answer(403) if request.path.startswith("refused") else answer
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "CLIP_WEIGHTS": location.format(web=server.url)},
            capture_output=True,
            text=True,
        )
        *_, message, imported = done.stdout.splitlines()
        assert message.startswith(says.format(web=server.url)), done.stdout + done.stderr
        assert imported == "False"


def test_modules_are_imported_from_the_checkout(tmp_path: Path) -> None:
    """An editable install that copies a module would leave commands with an old version of it."""
    code = "import clip_embed, predict, weights; print(*(m.__file__ for m in (predict, weights)))"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True)
    assert done.stdout.decode().split() == [str(ROOT / "predict.py"), str(ROOT / "weights.py")]
