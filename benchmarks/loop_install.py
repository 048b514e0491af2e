"""What `pip install 'edgefuse[cpu]'` puts on a disk: the committed source into a fresh environment."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent.parent
_WEIGH = """
import importlib.metadata as metadata, json
sizes = {}
for package in metadata.distributions():
    files = {path for file in package.files or () if (path := file.locate().resolve()).is_file()}
    sizes[package.name] = sum(path.stat().st_size for path in files)
print(json.dumps(sizes))
"""


def installed() -> dict[str, Any]:
    """{bytes, packages: name -> bytes} of the base install with the extra [cpu], without pip itself."""
    with tempfile.TemporaryDirectory() as folder:
        source, venv = Path(folder) / "source", Path(folder) / "venv"
        archive = subprocess.run(["git", "-C", str(SOURCE), "archive", "HEAD"], stdout=subprocess.PIPE, check=True)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(source, filter="data")
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        python = str(venv / "bin" / "python")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{source}[cpu]"]
        subprocess.run(install, check=True, stdout=sys.stderr)
        told = subprocess.run([python, "-c", _WEIGH], stdout=subprocess.PIPE, text=True, check=True).stdout
    sizes = {name: size for name, size in json.loads(told).items() if name not in ("pip", "setuptools")}
    ordered = dict(sorted(sizes.items(), key=lambda item: -item[1]))
    return {"bytes": sum(ordered.values()), "packages": ordered}
