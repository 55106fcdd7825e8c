"""Import of torch without its part for tracing, and preloading of its libraries."""

import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import ROOT

IMPORT = "from clip_embed.startup import torch_import;"
LEAN_IMPORT = IMPORT + "torch_import.load_libraries(); torch_import.import_torch(); import torch;"


def run_python(code: str) -> str:
    """Run `code` in a new interpreter and return what it prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_torch_omits_the_tracing_modules() -> None:
    """No tracing module is imported, and the placeholder for the first one is removed again."""
    code = (
        "import sys; print([name for name in ('torch._meta_registrations', 'torch._decomp',"
        " 'torch._refs', 'torch._prims') if name in sys.modules],"
        " hasattr(torch, '_meta_registrations'))"
    )
    assert run_python(LEAN_IMPORT + code) == "[] False"


def test_import_torch_does_not_change_the_vectors() -> None:
    """Both towers, with either activation, compute the same bits as with a plain import."""
    code = """
import hashlib
from clip_embed.model.config import ClipConfig, TowerConfig
from clip_embed.model.clip import Clip, Packing
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
    lean, plain = run_python(LEAN_IMPORT + code), run_python("import torch;" + code)
    assert lean == plain
    assert len(set(lean.split())) == 2


def test_torch_compile_works_after_importing_the_tracing_module() -> None:
    code = (
        "import torch._meta_registrations;"
        "print(torch.compile(lambda x: x.exp().sum(), backend='eager')(torch.zeros(3)).item())"
    )
    assert run_python(LEAN_IMPORT + code) == "3.0"


def test_import_torch_changes_nothing_if_torch_is_imported() -> None:
    code = "import torch; before = torch._meta_registrations;"
    check = "print(torch._meta_registrations is before)"
    assert run_python(code + LEAN_IMPORT + check) == "True"


def test_load_libraries_lets_other_threads_run() -> None:
    """Another thread runs Python repeatedly during the 0.3 s that the libraries take to load."""
    code = """
import sys, threading, time
from clip_embed.startup import torch_import
ticks, over = [], threading.Event()
def tick():
    while not over.wait(0.001):
        ticks.append(time.perf_counter())
thread = threading.Thread(target=tick)
thread.start()
begin = time.perf_counter()
torch_import.load_libraries()
end = time.perf_counter()
over.set()
thread.join()
print(sum(begin < tick < end for tick in ticks) >= 20)
print("libtorch_cpu.so" in open("/proc/self/maps").read(), "torch" in sys.modules)
"""
    assert run_python(code).split() == ["True", "True", "False"]


def test_load_libraries_ignores_missing_libraries(tmp_path: Path) -> None:
    """A torch without its library files raises nothing here, and neither does no torch at all."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    begin = f"import sys; sys.path.insert(0, {str(tmp_path)!r});"
    check = "print(torch_import.load_libraries(), 'libtorch' in open('/proc/self/maps').read())"
    assert run_python(begin + IMPORT + check) == "None False"
    no_torch = "sys.modules['torch'] = None;"
    assert run_python(begin + no_torch + IMPORT + check) == "None False"
