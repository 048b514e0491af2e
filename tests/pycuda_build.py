"""The real pycuda, built here, over a libcuda.so.1 that is ours: its wheel is kept in the user's cache.

pycuda has no wheels, and its build finds neither curand.h nor libcuda.so where there is no driver. So it is told where
cuda.h is, to do without curand, and to link against an empty libcuda; what it then wants of libcuda.so.1 is taken from
fake_libcuda.c, and the rest of it is made of nothing. See shared/notes/tensorrt.md, section 4.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tests.trt_conformance import NotAvailableError

VERSION = "2026.1"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgefuse" / "pycuda"
BUILD_S = 1800  # a minute or three alone on two cores

# Optimised code would take twice as long to make. The empty library gives nothing, and is to be needed still.
SITECONF = """\
CUDA_ENABLE_CURAND = False
CUDA_INC_DIR = [{include!r}, {own!r}]
CUDADRV_LIB_DIR = [{own!r}]
CXXFLAGS = ["-O0", "-g0", "-w"]
LDFLAGS = ["-Wl,--no-as-needed", "-L{own}", "-lcuda"]
"""
# Not in the wheels that torch brings.
PROFILER = """\
typedef enum { CU_OUT_KEY_VALUE_PAIR = 0, CU_OUT_CSV = 1 } CUoutput_mode;
extern "C" {
CUresult cuProfilerInitialize(const char *config, const char *output, CUoutput_mode mode);
CUresult cuProfilerStart(void);
CUresult cuProfilerStop(void);
}
"""


def environment(folder: Path, cache: Path = CACHE) -> dict[str, str]:
    """What a Python process needs in its environment to import pycuda over the fake driver; `folder` is for files.

    Raises:
        NotAvailableError: no network, no C++ compiler, no cuda.h, or the build fails.
    """
    with zipfile.ZipFile(wheel(cache)) as archive:
        archive.extractall(folder / "wheel")
    libraries = folder / "libraries"
    libraries.mkdir()
    source = Path(__file__).with_name("fake_libcuda.c")
    fake = _compile([source], libraries / "libcuda.so.1")
    wanted = _symbols(next((folder / "wheel" / "pycuda").glob("_driver.*.so")), "--undefined-only")
    nothing = folder / "nothing.c"
    missing = sorted(name for name in wanted - _symbols(fake, "--defined-only") if re.match("cu[A-Z]", name))
    nothing.write_text("".join(f"int {name}(void) {{ return 801; }}\n" for name in missing))  # not supported
    _compile([source, nothing], fake)
    return {"PYTHONPATH": str(folder / "wheel"), "LD_LIBRARY_PATH": str(libraries)}


def wheel(cache: Path = CACHE) -> Path:
    """pycuda's wheel for this Python, from the cache or built."""
    include = _headers()
    kept = cache / f"cuda-{_cuda_version(include)}"
    pattern = f"pycuda-{VERSION}-cp{sys.version_info.major}{sys.version_info.minor}-*.whl"
    if not list(kept.glob(pattern)):
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            built = _build(include, Path(folder))
            shutil.copy(built, kept / f"{built.name}.{os.getpid()}")  # whole or not at all, also with two at it
            (kept / f"{built.name}.{os.getpid()}").replace(kept / built.name)
    return next(iter(kept.glob(pattern)))


def _build(include: Path, folder: Path) -> Path:
    for tool in ("c++", "cc"):
        if shutil.which(tool) is None:
            raise NotAvailableError(f"no compiler ({tool}) to build pycuda with")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        raise NotAvailableError("no Python.h to build pycuda with")
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    _pip(["download", *options, "--no-binary", ":all:", "--dest", str(folder), f"pycuda=={VERSION}"])
    with tarfile.open(folder / f"pycuda-{VERSION}.tar.gz") as archive:
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    source, own = folder / f"pycuda-{VERSION}", folder / "own"
    own.mkdir()
    (own / "empty.c").write_text("void edgefuse_nothing(void) {}\n")
    _compile([own / "empty.c"], own / "libcuda.so")
    (own / "cudaProfiler.h").write_text(PROFILER)
    (source / "siteconf.py").write_text(SITECONF.format(include=str(include), own=str(own)))
    _pip(["wheel", *options, "--wheel-dir", str(folder), str(source)])
    return next(folder.glob("pycuda-*.whl"))


def _pip(arguments: list[str]) -> None:
    nice = ["nice", "-n", "10"] if shutil.which("nice") else []
    command = [*nice, sys.executable, "-m", "pip", *arguments]
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=BUILD_S)
    if told.returncode:
        lines = [line for line in told.stderr.splitlines() if "subprocess" not in line]
        why = [line for line in lines if re.search("error|cannot find", line, re.I)] or ["pip says nothing"]
        raise NotAvailableError(f"pip {arguments[0]} pycuda=={VERSION} fails: {why[0].strip()}")


def _headers() -> Path:
    """The folder of cuda.h: of NVIDIA's wheels, which torch brings, or of a toolkit."""
    found = importlib.util.find_spec("nvidia")
    roots = list(found.submodule_search_locations or ()) if found else []
    packages = sorted((path for root in roots for path in Path(root).iterdir()), reverse=True)
    for folder in (*packages, Path("/usr/local/cuda")):
        if (folder / "include" / "cuda.h").exists():
            return folder / "include"
    raise NotAvailableError("no cuda.h, neither in the nvidia wheels nor in /usr/local/cuda")


def _cuda_version(include: Path) -> str:
    found = re.search(r"#define CUDA_VERSION (\d+)", (include / "cuda.h").read_text("utf-8", "replace"))
    return found[1] if found else "unknown"


def _compile(sources: list[Path], library: Path) -> Path:
    command = ["cc", "-shared", "-fPIC", "-pthread", "-Wl,-soname,libcuda.so.1", "-o", str(library), *map(str, sources)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode:
        raise RuntimeError(f"{' '.join(command)}: {told.stderr}")
    return library


def _symbols(library: Path, which: str) -> set[str]:
    command = ["nm", "--dynamic", which, str(library)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].split("@")[0] for line in told.splitlines() if line}
