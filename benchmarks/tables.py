"""Keeps the tables of README.md and docs/ what benchmarks/results/*.json says: `python benchmarks/tables.py [--check]`.

A table stands between `<!-- table NAME -->` and `<!-- end -->`; NAME is a function here, and the results that it reads
are its JSON. Without --check the tables are written anew; with it nothing is, and a table that differs is exit code 1.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgefuse.benchmarks.blocks import pareto_table
from edgefuse.benchmarks.learned import ROWS, learned
from edgefuse.benchmarks.markdown import table
from edgefuse.benchmarks.peers.verdicts import bars_table, peers_table
from edgefuse.runtime.errors import OptionError
from edgefuse.runtime.files import write_atomic

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
_PLACE = re.compile(r"(<!-- table (\w+) -->\n)(.*?)(<!-- end -->)", flags=re.DOTALL)

Document = Mapping[str, Any]  # one of results/*.json

# A quantizer as the README calls it -> its row of quantizers.json.
_QUANTIZERS = {
    "edgefuse, as it chooses": "edgefuse INT8 as it chooses",
    "ModelOpt 0.47, entropy": "ModelOpt INT8 entropy, MatMul + Gemm",
    "ONNX Runtime 1.32, S8S8": "ONNX Runtime S8S8, MatMul + Gemm",
    "AIMET 2.42, TF-enhanced": "AIMET TF-enhanced, products",
}


def reference(document: Document) -> str:
    """What the compiler makes of the reference model, beside what was asked."""
    rows = []
    for row in document["rows"]:
        value, asked = row["measured"], row["asked"]
        measured = _shown(value)
        if row["what"].startswith("kernels"):
            each = (f"{Path(part['path']).stem} {part['kernels']}" for part in document["parts"])
            measured += f" ({', '.join(each)})"
        rows.append([row["what"], measured, asked, "reached" if _reached(value, asked) else "missed"])
    return table(("what", "measured", "asked", "verdict"), rows, text_columns=4)


def _reached(value: Any, asked: str) -> bool:
    """Whether a value is what a bar like "<= 235" or "10 of 10" asks."""
    sign, _, number = asked.partition(" ")
    if sign not in ("<=", ">="):
        return bool(value == asked)
    return bool(value <= float(number) if sign == "<=" else value >= float(number))


def quantizers(document: Document) -> str:
    """Signal over error, kernels and megabytes of the same parts made by several tools."""
    rows = document["reference"]["rows"]
    parts = ("text", "audio")
    return table(
        ("quantizer", *parts),
        [[name, *(_quantized(rows, row, part) for part in parts)] for name, row in _QUANTIZERS.items()],
        text_columns=3,
    )


def _quantized(rows: Document, row: str, part: str) -> str:
    found = rows[row][part]
    if "kernels" in found:
        return f"{found['sqnr_db']:.1f} dB, {found['kernels']} kernels, {found['mb_touched']:.1f} MB"
    # AIMET's plan is that of its other row, whose graph differs in numbers only: the compiler took neither.
    return f"{found['sqnr_db']:.1f} dB, refused by the check (uint8)"


def cpu(document: Document) -> str:
    """The engines on a CPU, by the length of the text."""
    inputs = document["inputs"]
    rows = []
    for engine in next(iter(inputs.values())):
        told = [row[engine] for row in inputs.values()]
        cosines = [f"{row['cosine']:.3f}" for row in told]
        cosine = cosines[0] if len(set(cosines)) == 1 else f"{min(cosines)} to {max(cosines)}"
        ours = engine.startswith("edgefuse")
        times = [f"{row['p50_ms']:.1f} ms" + (f", ours {row['ours_over_theirs']:.2f}x" * (not ours)) for row in told]
        rows.append([engine, *times, cosine])
    return table(("engine", *inputs, "cosine of the logits with FP32"), rows, text_columns=3)


def peers(document: Document) -> str:
    """Ours and the peers, end to end."""
    return peers_table(document["rows"])


def peers_bars(document: Document) -> str:
    """What was asked of ours beside them."""
    return bars_table(document["bars"])


def pareto(document: Document) -> str:
    """Accuracy with latency of several model sizes."""
    head, rows = pareto_table(document)
    return table(head, rows, text_columns=2)


def loop(document: Document) -> str:
    """What the loop on the device must reach, and did."""
    verdicts = {"yes": "reached", "NO": "missed", "-": "told only"}
    rows = [[row["what"], _shown(row["measured"]), row["asked"], verdicts[row["kept"]]] for row in document["rows"]]
    return table(("what", "measured", "asked", "verdict"), rows, text_columns=4)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if value < 1000 else f"{value:,.0f}"


def of_training(*documents: Document | None) -> str:
    """What training gives."""
    return learned(dict(zip(_LEARNED, documents, strict=True)))


# name -> (files of RESULTS without their ending, what makes the table of them)
_LEARNED = tuple(name for _, name, _, _ in ROWS)
TABLES: dict[str, tuple[tuple[str, ...], Callable[..., str]]] = {
    "reference": (("reference",), reference),
    "quantizers": (("quantizers",), quantizers),
    "cpu": (("cpu",), cpu),
    "peers": (("peers",), peers),
    "peers_bars": (("peers",), peers_bars),
    "pareto": (("pareto",), pareto),
    "loop": (("loop",), loop),
    "learned": (_LEARNED, of_training),
}


def rendered(page: str, results: Path = RESULTS) -> str:
    """A page with its tables as the results are; where there is no result yet, it says so.

    Raises:
        OptionError: the page names a table that is not among TABLES.
    """

    def renew(place: re.Match[str]) -> str:
        if place[2] not in TABLES:
            raise OptionError(f"found table {place[2]!r} in a page; there are: {', '.join(TABLES)}")
        names, make = TABLES[place[2]]
        paths = [results / f"{name}.json" for name in names]
        documents = [json.loads(path.read_bytes()) if path.exists() else None for path in paths]
        made = make(*documents) if any(documents) else f"Not measured yet: no {', '.join(names)}.\n"
        return f"{place[1]}{made}{place[4]}"

    return _PLACE.sub(renew, page)


def main() -> None:
    """Write the tables, or say which differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a table differs")
    check = parser.parse_args().check
    differ = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        page = path.read_text(encoding="utf-8")
        if (new := rendered(page)) != page:
            differ.append(str(path.relative_to(ROOT)))
            if not check:
                write_atomic(path, new.encode())
    print(f"{'differ' if check else 'written'}: {', '.join(differ) or 'none'}", file=sys.stderr)
    sys.exit(bool(check and differ))


if __name__ == "__main__":
    main()
