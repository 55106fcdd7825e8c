"""torch without its part for tracing."""

import subprocess
import sys

from conftest import ROOT

LEAN = "from clip_embed import lean_torch; lean_torch.import_torch(); import torch;"


def output(code: str) -> str:
    """What `code` prints in an interpreter of its own."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_part_for_tracing_is_left_out() -> None:
    """Neither it nor what only it needs is imported, and nothing stands in for it afterwards."""
    code = (
        "import sys; print([name for name in ('torch._meta_registrations', 'torch._decomp',"
        " 'torch._refs', 'torch._prims') if name in sys.modules],"
        " hasattr(torch, '_meta_registrations'))"
    )
    assert output(LEAN + code) == "[] False"


def test_the_network_computes_the_same_bits() -> None:
    """Both towers, with either activation, say bit for bit what they say in an ordinary process."""
    code = """
import hashlib
from clip_embed.config import ClipConfig, TowerConfig
from clip_embed.model import Clip, Packing
tower = TowerConfig(width=64, layers=2, heads=4, mlp_ratio=4.0)
for quick_gelu in (True, False):
    clip = Clip(ClipConfig(32, 28, 14, 77, 100, quick_gelu, tower, tower))
    torch.manual_seed(0)
    clip.load({name: torch.randn(p.shape) * 0.1 for name, p in clip.named_parameters()})
    with torch.inference_mode():
        images = clip.encode_image(torch.randn(2, 3, 28, 28))
        texts = clip.encode_text(torch.arange(9), Packing([4, 5], torch.device("cpu")))
    print(hashlib.sha256(images.numpy().tobytes() + texts.numpy().tobytes()).hexdigest())
"""
    lean, ordinary = output(LEAN + code), output("import torch;" + code)
    assert lean == ordinary
    assert len(set(lean.split())) == 2


def test_tracing_is_there_for_who_asks() -> None:
    """Once the part left out is imported, torch traces as ever."""
    code = (
        "import torch._meta_registrations;"
        "print(torch.compile(lambda x: x.exp().sum(), backend='eager')(torch.zeros(3)).item())"
    )
    assert output(LEAN + code) == "3.0"


def test_where_torch_is_there_nothing_changes() -> None:
    """A process that has torch keeps all of it."""
    code = "import torch; before = torch._meta_registrations;"
    assert output(code + LEAN + "print(torch._meta_registrations is before)") == "True"
