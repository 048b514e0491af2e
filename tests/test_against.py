"""Two bundles side by side: how they are asked, what is refused, and how a slow-down is planted and counted."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from edgefuse.benchmarks import against_check
from edgefuse.benchmarks.against import Plan, compare_openers, face, open_other
from edgefuse.benchmarks.against_check import Slowed
from edgefuse.benchmarks.paired import Comparison
from edgefuse.runtime.bundle import HEAD, Bundle
from edgefuse.runtime.errors import OptionError
from edgefuse.runtime.lanes import Lanes
from edgefuse.runtime.manifest import Example

EXAMPLES = [Example(f"m:{n}", None, None, str(n), "a", "test", None) for n in range(40)]


def report_of(bundle, path):
    path.write_text(json.dumps({"bundle": {"folder": str(bundle.folder), "fingerprint": bundle.fingerprint}}))
    return path


class Side:
    """A predictor that takes a made-up time, and notes what happens to it."""

    def __init__(self, name, log, total_ms):
        self.name, self.log, self.total_ms = name, log, total_ms

    @contextmanager
    def opened(self):
        self.log.append((self.name, "open"))
        yield self
        self.log.append((self.name, "close"))

    def predict(self, **inputs):
        self.log.append((self.name, inputs["text"]))
        return SimpleNamespace(stages_ms={"total": self.total_ms})


def test_each_block_opens_both_anew_and_asks_both_the_same_queries_in_random_order():
    log = []
    ours, other = Side("ours", log, 30.0), Side("other", log, 20.0)

    found = compare_openers(ours.opened, other.opened, EXAMPLES, ["text"], Plan(10, 4, 2), lambda: None)

    assert (found.verdict, found.ratio, found.blocks, found.queries) == ("slower", pytest.approx(1.5), 10, 4)
    assert log.count(("ours", "open")) == log.count(("other", "close")) == 10
    asked = [entry for entry in log if entry[1] not in ("open", "close")]
    pairs = list(zip(asked[::2], asked[1::2], strict=True))
    assert len(pairs) == 10 * (4 + 2)
    assert all(one[1] == other[1] and one[0] != other[0] for one, other in pairs)
    assert {one[0] for one, _ in pairs} == {"ours", "other"}, "each goes first now and then"
    assert {text for _, text in asked} == {str(n) for n in range(40)}


def test_the_wrong_way_round_is_faster():
    ours, other = Side("ours", [], 20.0), Side("other", [], 30.0)

    assert compare_openers(ours.opened, other.opened, EXAMPLES, ["text"], Plan(10, 4), lambda: None).verdict == "faster"


def test_a_report_leads_to_its_bundle(tiny, tiny_copy, tmp_path):
    other = open_other(report_of(tiny_copy, tmp_path / "report.json"), Bundle.open(tiny.bundle), ["fp32", "cpu"])

    assert other.bundle.folder == tiny_copy.folder
    assert (other.part_sets, other.modalities) == (("fp32", "cpu"), ("image", "audio", "text"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "is not there; give the report.json"),
        ("{", "does not say which bundle"),
        ("[]", "does not say which bundle"),
        ('{"bundle": {"name": "of an older edgefuse"}}', "does not say which bundle"),
    ],
)
def test_what_is_no_report_is_refused(tiny, tmp_path, content, what):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)

    with pytest.raises(OptionError, match=what):
        open_other(path, Bundle.open(tiny.bundle), ["cpu"])


def test_a_bundle_that_is_gone_or_changed_is_refused(tiny, tiny_copy, tmp_path):
    ours, path = Bundle.open(tiny.bundle), report_of(tiny_copy, tmp_path / "report.json")

    tiny_copy.updated({}, lineage={"changed": True})
    with pytest.raises(OptionError, match="was changed since"):
        open_other(path, ours, ["cpu"])
    shutil.rmtree(tiny_copy.folder)
    with pytest.raises(OptionError, match="cannot be opened any more"):
        open_other(path, ours, ["cpu"])


def test_bundles_that_share_no_part_set_are_refused(tiny, tiny_copy, tmp_path):
    changed = tiny_copy.updated({}, parts={"fp32": tiny_copy.info.parts["fp32"]})

    with pytest.raises(OptionError, match="no part set in common"):
        open_other(report_of(changed, tmp_path / "report.json"), Bundle.open(tiny.bundle), ["cpu"])


def test_bundles_are_asked_from_the_sensors_that_both_take(tiny, tiny_copy, tmp_path, monkeypatch):
    ours = Bundle.open(tiny.bundle)
    other = open_other(report_of(tiny_copy, tmp_path / "report.json"), ours, ["cpu"])
    monkeypatch.setattr("edgefuse.benchmarks.against.PLAN", Plan(10, 2, 0))
    steps = []

    found = face(ours, other, EXAMPLES, lambda name, count: lambda: steps.append((name, count)))

    assert (found["sensors"], list(found["part_sets"])) == ("text", ["cpu"])
    assert found["bundle"] == str(tiny_copy.folder)
    assert steps == [("against, cpu", 10)] * 10


def test_a_planted_slow_down_is_a_share_of_the_whole_query(monkeypatch):
    now = [0.0]

    def clock():
        now[0] += 0.001  # what looking at the clock takes
        return now[0]

    class PartsOf100Ms:
        lanes = Lanes(1)

        def load(self, part):
            pass

        def run(self, part, inputs):
            now[0] += 0.1
            return {part: inputs}

    monkeypatch.setattr(against_check, "perf_counter", clock)
    parts = Slowed(PartsOf100Ms(), 0.5)
    parts.load(HEAD)
    begin = now[0]
    now[0] += 0.2  # decoding
    assert parts.run("image", {}) == {"image": {}}
    assert parts.run(HEAD, {}) == {HEAD: {}}

    assert now[0] - begin == pytest.approx(1.5 * 0.4, abs=0.005)


def test_the_check_counts_verdicts_of_both_cases(tiny, monkeypatch):
    """What comes out is the machine's; here both sides are told apart by what is planted alone."""
    planted = []

    def compared(ours, others, *_):
        with ours() as one, others() as other:
            shares = [side._backend._share for side in (one, other)]
        planted.append(shares)
        verdict = "slower" if shares[0] else "no difference"
        return Comparison(verdict, 1 + shares[0], (1.0, 1.2), 0.01, 20, 16)

    monkeypatch.setattr(against_check, "compare_openers", compared)

    found = against_check.check(Bundle.open(tiny.bundle), "cpu", EXAMPLES, 3, Plan())

    assert planted == [[0.0, 0.0], [0.1, 0.0]] * 3
    assert [row["kept"] for row in found["rows"]] == ["yes", "yes"]
    assert [row["asked"] for row in found["rows"]] == ["no difference in 3 of 3", "slower in 3 of 3"]
    assert len(found["comparisons"]["10% slower"]) == 3
