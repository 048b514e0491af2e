"""The parity ledger that a report holds: that of `edgefuse parity`, or the reason why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefuse.benchmarks.parity_ledger import FITS, measure_parity, section
from edgefuse.optimize import fp16_range
from edgefuse.optimize.parity import parity
from edgefuse.runtime.bundle import Bundle
from tests.optimize_fixtures import PARTS, fresh_bundle
from tests.test_parity import forms, with_parts


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return with_parts(fresh_bundle(tmp_path_factory.mktemp("ledger")), forms(PARTS))


def test_it_is_what_the_command_prints(bundle: Bundle) -> None:
    manifest = Path(bundle.info.lineage["manifest"])
    found, told = measure_parity(bundle, manifest, 8), parity(bundle.folder, manifest=manifest, limit=8)
    assert found.items() <= told.items()
    (table,) = section(found).tables
    assert [row[:2] for row in table.rows] == [[row["hop"], row["part"]] for row in told["hops"]]
    assert all(len(row) == len(table.head) for row in table.rows)


def test_what_fits_is_called_as_in_the_ledger() -> None:
    assert FITS == fp16_range.FITS


def test_without_lines_of_the_split_it_says_why_there_is_none(bundle: Bundle, tmp_path: Path) -> None:
    empty = tmp_path / "no.jsonl"
    empty.write_text("")
    found = measure_parity(bundle, empty, 8)
    assert list(found) == ["not_measured"]
    (note,) = section(found).notes
    assert note.startswith(f"Not measured: {empty}")
