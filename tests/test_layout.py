"""The rooms: who may import whom, that the device needs no torch, and that the README's file tree is the disk's."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("train", "optimize", "runtime", "benchmarks")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))

TRAINING = {"torch", "torchvision", "torchaudio", "transformers"}
LAZY = {  # packages of extras: the one file of runtime/ that imports them, and only when it is used
    "onnxruntime": "backend_onnx.py",
    "cuda": "cuda.py",
    "pycuda": "cuda_pycuda.py",
    "sounddevice": "portaudio.py",
}
AT_ONCE = {  # files that import their packages at once, so that they are themselves imported on use
    "web.py": {"starlette", "uvicorn"},
    "trt_engine.py": {"tensorrt"},
}
RUNTIME = [
    f"edgefuse.runtime.{path.stem}" for path in sorted((ROOT / "runtime").glob("*.py")) if path.name not in AT_ONCE
]
MAY_TRAIN = (ROOT / "optimize/export.py", ROOT / "benchmarks/peers/peer_torch.py")  # reads a run; has torch as its peer
OTHERS_MODELS = (ROOT / "benchmarks/peers/peer_autogluon.py",)  # makes a model of AutoGluon's, in its environment
ON_USE = {f"edgefuse.runtime.{name.removesuffix('.py')}" for name in AT_ONCE}
ALLOWED = {
    "runtime": {"edgefuse.runtime"},
    "train": {"edgefuse.runtime", "edgefuse.train"},
    "optimize": {"edgefuse.runtime", "edgefuse.optimize"},
    "benchmarks": {"edgefuse.runtime", "edgefuse.optimize.plan", "edgefuse.benchmarks"},
}


def imports(path: Path) -> list[tuple[str, bool]]:
    """Full names of the modules that a file imports, and whether that happens while the file is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside_functions = {
        child
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(name.name, node not in inside_functions) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by the full name"
            base = node.module or ""
            whole = base.startswith("edgefuse") and base.count(".") < 2  # from edgefuse.x import y: y is a module
            found += [(f"{base}.{name.name}" if whole else base, node not in inside_functions) for name in node.names]
    return found


def is_type_only(path: Path, module: str) -> bool:
    """Whether a file imports a module for mypy alone, below `if TYPE_CHECKING:`."""
    blocks = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    return any(isinstance(line, ast.ImportFrom) and line.module == module for block in blocks for line in block.body)


def is_under(module: str, roots: set[str]) -> bool:
    return any(module == root or module.startswith(root + ".") for root in roots)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_room_may(path):
    room, exporter = room_of(path), path in MAY_TRAIN
    allowed = ALLOWED[room] | ({"edgefuse.train"} if exporter else set())
    for module, at_import in imports(path):
        if module.split(".")[0] == "edgefuse":
            assert is_under(module, allowed), f"{path} imports {module}"
        if room != "train" and not exporter and path not in OTHERS_MODELS:
            assert not is_under(module, TRAINING), (
                f"{path} imports {module}: only train/, export.py and the peers in torch may"
            )
        if is_under(module, ON_USE) and not is_type_only(path, module):
            assert not at_import, f"{path} imports {module} before it is used"
        package = module.split(".")[0]
        if room == "runtime" and package in LAZY:
            assert not at_import, f"{path} imports {module} before it is used"
            assert path.name == LAZY[package], f"{path} imports {module}"
        if room == "runtime" and any(package in packages for packages in AT_ONCE.values()):
            assert package in AT_ONCE.get(path.name, ()), f"{path} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_in_its_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_every_runtime_module_imports_on_a_device_without_the_heavy_packages():
    extras = [*LAZY, *(package for packages in AT_ONCE.values() for package in packages)]
    blocked = [*TRAINING, *extras, "onnx", "matplotlib", "edgefuse.train", "edgefuse.optimize", "edgefuse.benchmarks"]
    code = (
        f"import sys, importlib; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        f"for name in {RUNTIME!r}: importlib.import_module(name)"
    )

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert found.returncode == 0, found.stderr
    assert len(RUNTIME) > 10


def documented_tree() -> dict[str, str]:
    """Path -> comment of each file in the README's tree; lines like `├── recipe.py   what it is`."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"```\w*\n(.*?)```", readme, flags=re.DOTALL) if "├── " in block)
    tree: dict[str, str] = {}
    folders: list[str] = []
    for line in block.splitlines():
        entry = re.fullmatch(r"((?:│   |    )*)[├└]── (\S+)(?:\s+(.*))?", line)
        if entry:
            depth, name, comment = len(entry[1]) // 4, entry[2], entry[3] or ""
            folders[depth:] = [name.rstrip("/")]
            if not name.endswith("/"):
                tree["/".join(folders)] = comment
    return tree


def test_the_file_tree_of_the_readme_is_the_one_on_disk():
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *ROOMS]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    on_disk = {
        name
        for name in names
        if name.endswith((".py", ".yaml", ".html", ".schema.json"))
        and not name.endswith("__init__.py")
        and (ROOT / name).exists()
    }

    tree = documented_tree()

    assert {path for path in tree if path.startswith(tuple(f"{room}/" for room in ROOMS))} == on_disk
    assert not [path for path, comment in tree.items() if not comment]
