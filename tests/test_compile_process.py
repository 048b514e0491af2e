"""Every way in which a compiler ends is told in one line: real signals, real limits, the kernel's own OOM killer."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgefuse.optimize.compile_process import run_compiler
from edgefuse.optimize.compiler import Job
from edgefuse.optimize.fp16 import to_fp16
from edgefuse.optimize.graph import Graph
from edgefuse.runtime.bundle import HEAD
from edgefuse.runtime.errors import EngineError
from tests.optimize_fixtures import PARTS

MODEL = to_fp16(Graph(PARTS[HEAD])).serialize()
BUILDING, NEXT = "Building engine", "Cloning network graph"  # the builder's outermost phase and what follows it
AT_PHASE = """
import json
plainly = json.dumps
def say(event):
    if event.get("phase") == {phase!r}:
        {act}
    return plainly(event)
json.dumps = say
"""


class Compiler:
    """Runs the compiler on a small part; its files are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job = Job("tensorrt-rtx", (86,), 2, str(folder / "head.engine.new"))
        self.log = folder / "head.log"
        self.shown: list[tuple[str, float]] = []

    def run(self, model: bytes = MODEL) -> dict:
        return run_compiler(self.job, model, self.log, lambda *told: self.shown.append(told), warn=pytest.fail)

    def fails(self) -> str:
        """What it says; nothing half built is left."""
        with pytest.raises(EngineError) as error:
            self.run()
        assert "\n" not in str(error.value)
        assert not Path(self.job.engine).exists()
        return str(error.value)


@pytest.fixture
def compiler(tmp_path: Path) -> Compiler:
    """A compiler whose files are in a folder of the test."""
    return Compiler(tmp_path)


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of Python that the compiler's process runs first."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "sitecustomize.py"


def test_progress_grows_from_nothing_and_names_the_phases(compiler: Compiler) -> None:
    built = compiler.run()
    assert set(built) == {"engine_sha256", "seconds", "plan", "profiles"}
    assert Path(compiler.job.engine).stat().st_size > 1000
    phases, shares = zip(*compiler.shown, strict=True)
    assert BUILDING in phases
    assert shares[0] == 0.0
    assert 0.5 < max(shares) <= 1.0
    assert list(shares) == sorted(shares)
    assert "Engine generation completed" in compiler.log.read_text(errors="replace")


def test_a_kill_by_hand_is_told_as_one(compiler: Compiler, first: Path) -> None:
    first.write_text(AT_PHASE.format(phase=NEXT, act="import os; os.kill(os.getpid(), 9)"))
    told = compiler.fails()
    assert told.startswith(f"the tensorrt-rtx compiler was killed (SIGKILL) at {BUILDING!r}, by a person or since")
    assert "MiB were free when it began" in told


def test_a_crash_is_told_with_the_phase_and_leaves_its_stack_in_the_log(compiler: Compiler, first: Path) -> None:
    first.write_text(AT_PHASE.format(phase=NEXT, act="import ctypes; ctypes.string_at(0)"))
    assert f"crashed (SIGSEGV) at {BUILDING!r}" in compiler.fails()
    assert "Fatal Python error: Segmentation fault" in compiler.log.read_text(errors="replace")


def test_memory_that_the_builder_does_not_get_is_told(compiler: Compiler, first: Path) -> None:
    """A real std::bad_alloc: the process may hardly grow any more from where the builder begins.

    With nothing or a few MiB to grow, TensorRT-RTX 1.7 now and then uses memory that it did not get (SIGSEGV).
    """
    act = (
        "import resource; used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize(); "
        "resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20),) * 2)"
    )
    first.write_text(AT_PHASE.format(phase=NEXT, act=act))
    assert "memory ran out; close other programs, or build with a smaller --max-batch" in compiler.fails()
    assert "bad_alloc" in compiler.log.read_text(errors="replace")


def test_memory_that_python_does_not_get_is_told(compiler: Compiler, first: Path) -> None:
    first.write_text(AT_PHASE.format(phase="Reading the graph", act="raise MemoryError"))
    assert compiler.fails().startswith("tensorrt-rtx: memory ran out")


def test_a_process_that_ends_itself_for_little_memory_is_told_by_its_log(compiler: Compiler, first: Path) -> None:
    said = "terminate called after throwing an instance of 'std::bad_alloc'"
    act = f"import os; os.write(2, {said.encode()!r}); os.abort()"
    first.write_text(AT_PHASE.format(phase=NEXT, act=act))
    assert compiler.fails().startswith("the tensorrt-rtx compiler ended (SIGABRT) because memory ran out")


@pytest.fixture
def little_memory() -> Iterator[str]:
    """Python code that puts its process into a control group of 40 MiB."""
    root = Path("/sys/fs/cgroup")
    version_1 = (root / "memory").is_dir()
    group = (root / "memory" if version_1 else root) / f"edgefuse-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(40 << 20))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"control groups cannot be made here ({error.strerror})")
    yield f"import os\nopen({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"
    group.rmdir()


def test_the_kernel_killing_it_for_memory_is_told_as_such(compiler: Compiler, first: Path, little_memory: str) -> None:
    first.write_text(little_memory)
    assert compiler.fails().startswith("the system killed the tensorrt-rtx compiler (SIGKILL) because memory ran out")


def test_a_process_that_ends_without_a_word_is_told(compiler: Compiler, first: Path) -> None:
    first.write_text(AT_PHASE.format(phase="Reading the graph", act="import os; os._exit(3)"))
    assert "crashed (exit code 3) at 'starting'" in compiler.fails()


def test_a_line_that_was_cut_off_is_passed_over(compiler: Compiler, first: Path) -> None:
    first.write_text(AT_PHASE.format(phase=NEXT, act="return plainly(event)[:5]"))
    compiler.run()
    assert NEXT not in dict(compiler.shown)
    assert BUILDING in dict(compiler.shown)


def test_a_disk_that_is_full_is_told(compiler: Compiler, tmp_path: Path) -> None:
    """A real full disk: the log and the engine are on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no right to mount a small disk")
    try:
        full = Compiler(disk)
        told = full.fails()
        assert "cannot be written (No space left on device); free some space" in told
        assert full.log.stat().st_size > 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_compilers_refusal_is_passed_on(compiler: Compiler) -> None:
    with pytest.raises(EngineError, match=r"^tensorrt-rtx \S+ refuses the graph: ."):
        compiler.run(b"not onnx")
