"""torch without its part for tracing, its libraries loaded while other threads run."""

import subprocess
import sys
from pathlib import Path

from conftest import ROOT

LEAN = (
    "from clip_embed import lean_torch; lean_torch.load_libraries(); lean_torch.import_torch();"
    "import torch;"
)


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


def test_others_run_while_the_libraries_load() -> None:
    """Loading them takes 0.3 s, in which another thread runs Python again and again; then they are
    there, and torch is not."""
    code = """
import sys, threading, time
from clip_embed import lean_torch
ticks, over = [], threading.Event()
def tick():
    while not over.wait(0.001):
        ticks.append(time.perf_counter())
thread = threading.Thread(target=tick)
thread.start()
begin = time.perf_counter()
lean_torch.load_libraries()
end = time.perf_counter()
over.set()
thread.join()
print(sum(begin < tick < end for tick in ticks) >= 20)
print("libtorch_cpu.so" in open("/proc/self/maps").read(), "torch" in sys.modules)
"""
    assert output(code).split() == ["True", "True", "False"]


def test_libraries_that_are_missing_are_the_imports_affair(tmp_path: Path) -> None:
    """A torch whose libraries are not where they should be, and no torch at all, raise nothing."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    code = "import sys; sys.path.insert(0, {!r});{} from clip_embed import lean_torch;"
    code += "print(lean_torch.load_libraries(), 'libtorch' in open('/proc/self/maps').read())"
    assert output(code.format(str(tmp_path), "")) == "None False"
    assert output(code.format(str(tmp_path), "sys.modules['torch'] = None;")) == "None False"
