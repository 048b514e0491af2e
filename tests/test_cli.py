"""The command line: verbs, exit codes, one line per mistake, JSON as the last line, and a quick start."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from edgefuse.runtime import cli, verbs
from edgefuse.runtime.backends import KINDS
from edgefuse.runtime.errors import GateError

VERBS = [
    "demo", "init", "train", "pretrain", "distill", "soup", "gain", "crossval", "qat", "export", "quantize", "check",
    "parity", "doctor", "build", "export-triton", "predict", "explain", "eval", "robust", "attack", "run", "bench",
    "data",
]  # fmt: skip
DATA_VERBS = [
    "easy-vqa", "relational-vqa", "av-digits", "fsdd", "home-commands", "security-events", "triage", "driving", "check",
    "shard",
]  # fmt: skip


@pytest.fixture
def calls(monkeypatch):
    """Replaces what the verbs do; the list of what was asked."""
    asked = []

    def record(does, *arguments, **options):
        asked.append((does, arguments, options))
        return {}

    monkeypatch.setattr(verbs, "_call", record)
    return asked


def raising(monkeypatch, error: BaseException) -> None:
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(verbs, "_call", fail)


def edgefuse(*arguments, code: int = 0) -> str:
    command = [sys.executable, "-m", "edgefuse.runtime.cli", *[str(argument) for argument in arguments]]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == code, found.stderr
    return found.stdout


def test_help_lists_the_verbs_that_exist(run):
    code, out, _ = run("--help")

    assert code == 0
    assert re.findall(r"^│ (\w[\w-]*) ", out, flags=re.MULTILINE) == VERBS


@pytest.mark.parametrize("verb", [[verb] for verb in VERBS] + [["data", verb] for verb in DATA_VERBS], ids=" ".join)
def test_every_verb_has_help_and_json(run, verb):
    code, out, _ = run(*verb, "--help")

    assert code == 0
    assert "--json" in out or verb == ["data"]


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from edgefuse.runtime.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(*{'torch', 'transformers', 'onnxruntime', 'onnx', 'cv2', 'numpy', 'pydantic'} & set(sys.modules))"
    )

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert out.splitlines()[-1] == ""


def test_predict_prints_one_json_document_as_its_last_line(run, tiny):
    code, out, _ = run("predict", tiny.bundle, "--image", tiny.media / "red.png", "--text", "red", "--json")

    answer = json.loads(out.splitlines()[-1])
    assert (code, answer["label"]) == (0, "red")
    assert list(answer) == ["label", "confidence", "weights", "stages_ms"]


def test_predict_is_readable_too(run, tiny):
    code, out, _ = run("predict", tiny.bundle, "--text", "green")

    assert code == 0
    assert re.search(r"^label +green", out, flags=re.MULTILINE)


def test_eval_measures_with_and_without_a_sensor(run, tiny):
    code, out, _ = run(
        "eval", tiny.bundle, tiny.manifest, "--drop", "audio", "--part-dir", "fp32", "--limit", 6, "--json"
    )

    found = json.loads(out.splitlines()[-1])
    assert (code, found["accuracy"], found["n"], found["part_set"]) == (0, 1.0, 6, "fp32")


def test_the_first_answer_comes_quickly_and_without_torch(tiny):
    code = (
        "import sys; from edgefuse.runtime.cli import main\n"
        f"try: main(['predict', {str(tiny.bundle)!r}, '--image', {str(tiny.media / 'red.png')!r}, '--json'])\n"
        "finally: print(*{'torch', 'transformers', 'onnx'} & set(sys.modules), file=sys.stderr)"
    )
    times_s = []
    for _ in range(3):
        start = time.perf_counter()
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        times_s.append(time.perf_counter() - start)

    assert json.loads(found.stdout)["label"] == "red"
    assert found.stderr == "\n"
    assert min(times_s) < 1.5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "easy_vqa", "train.epochs=3", "x=1", "--out", "r"], ("easy_vqa", ["train.epochs=3", "x=1"])),
        (["train", "easy_vqa", "--out", "r"], ("easy_vqa", [])),
    ],
)
def test_train_takes_settings_as_key_value(run, calls, arguments, expected):
    assert run(*arguments)[0] == 0

    [(does, (recipe, overrides, out), _)] = calls
    assert (does, (recipe, overrides), str(out)) == ("train.train:train", expected, "r")


@pytest.mark.parametrize(
    "flags",
    [["--sm", 86, 89], ["--sm", 86, "--sm", 89], ["--max-batch", 4, "--sm", 86, 89, "--target", "tensorrt-rtx"]],
)
def test_several_gpus_may_follow_one_flag(run, calls, flags):
    assert run("build", "b", *flags)[0] == 0
    assert run("build", *flags, "b")[0] == 0

    assert [options["sm"] for _, _, options in calls] == [(86, 89)] * 2


def test_numbers_behind_other_flags_are_left_alone(run, calls):
    assert run("build", "b", "--max-batch", "16")[0] == 0

    [(_, _, options)] = calls
    assert (options["sm"], options["max_batch"]) == ((), 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "nowhere", "--text", "x"], "nowhere is not a bundle"),
        (["predict", "{bundle}", "--image", "gone.png"], "gone.png: No such file or directory; check the path"),
        (["predict", "{bundle}"], "no sensor given; this model takes: image, audio, text"),
        (["predict", "{bundle}", "--text", "x", "--part-dir", "trt"], "has no trt parts, only: fp32, cpu"),
        (["eval", "{bundle}", "gone.jsonl"], "gone.jsonl: cannot be read"),
    ],
)
def test_a_mistake_of_the_user_is_one_line_and_exit_1(run, tiny, arguments, message):
    code, out, err = run(*[argument.format(bundle=tiny.bundle) for argument in arguments], "--json")

    assert (code, out) == (1, "")
    assert message in err
    assert err.startswith("edgefuse: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["distill"],
        ["predict"],
        ["train", "easy_vqa"],
        ["quantize", "b", "--precision", "int4"],
        ["quantize", "b", "--gate", "2"],
        ["eval", "b", "m", "--limit", "0"],
        ["build", "b", "--sm", "orin"],
    ],
)
def test_wrong_usage_is_exit_2(run, arguments):
    code, out, err = run(*arguments)

    assert (code, out) == (2, "")
    assert "Usage" in err


def test_a_failed_gate_is_exit_1(run, monkeypatch):
    raising(monkeypatch, GateError("int8 keeps 0.9\nof it"))

    assert run("quantize", "b") == (1, "", "edgefuse: int8 keeps 0.9 of it\n")


def test_a_full_disk_is_one_line_and_exit_1(run, monkeypatch):
    raising(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "runs/a/run.json"))

    code, _, err = run("train", "easy_vqa", "--out", "runs/a")

    assert (code, err) == (
        1,
        "edgefuse: runs/a/run.json: No space left on device; what was written before is untouched\n",
    )


def test_ctrl_c_is_one_line_and_exit_130(run, monkeypatch):
    raising(monkeypatch, KeyboardInterrupt())

    assert run("bench", "b", "--out", "r") == (130, "", "edgefuse: stopped; what was written so far is intact\n")


@pytest.mark.parametrize("error", [ZeroDivisionError("bug"), FileNotFoundError(errno.ENOENT, "bug")])
def test_a_bug_keeps_its_traceback(monkeypatch, error):
    raising(monkeypatch, error)

    with pytest.raises(type(error)):
        cli.main(["demo"])


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("torch", "train", ["train", "r", "--out", "o"]),
        ("onnx", "optimize", ["quantize", "b"]),
        ("onnxruntime", "cpu", ["predict", "{bundle}", "--text", "red"]),
    ],
)
def test_a_missing_extra_is_named(package, extra, arguments, tiny):
    code = f"import sys; sys.modules[{package!r}] = None\nfrom edgefuse.runtime.cli import main; main(sys.argv[1:])"
    words = [argument.format(bundle=tiny.bundle) for argument in arguments]

    found = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)

    assert found.returncode == 1
    assert re.fullmatch(rf"edgefuse: .*pip install 'edgefuse\[{extra}\]'\n", found.stderr)


def test_numbers_of_numpy_and_paths_become_json(run, monkeypatch, tmp_path):
    monkeypatch.setattr(verbs, "_call", lambda *a, **o: {"a": np.float32(0.5), "n": np.int64(3), "path": tmp_path})

    assert json.loads(run("demo", "--json")[1]) == {"a": 0.5, "n": 3, "path": str(tmp_path)}


def test_the_module_runs_by_itself(tiny):
    assert json.loads(edgefuse("predict", tiny.bundle, "--text", "blue", "--json"))["label"] == "blue"


def test_a_verdict_that_is_not_ok_is_printed_and_exit_1(run, monkeypatch):
    monkeypatch.setattr(verbs, "_call", lambda *a, **o: {"verdict": "refused", "findings": []})

    code, out, _ = run("check", "model.onnx", "--json")

    assert code == 1
    assert json.loads(out) == {"verdict": "refused", "findings": []}


@pytest.mark.parametrize("verb", ["predict", "eval", "run", "explain"])
def test_the_help_names_every_backend(run, verb):
    code, out, _ = run(verb, "--help")

    words = re.findall(r"[\w-]+", out)
    assert code == 0
    assert set(KINDS) <= set(words)


def test_a_backend_is_passed_on(run, tiny):
    assert run("predict", tiny.bundle, "--text", "red", "--backend", "cpu", "--part-dir", "fp32")[0] == 0
    for verb in (["predict", tiny.bundle, "--text", "red"], ["eval", tiny.bundle, tiny.manifest]):
        code, _, said = run(*verb, "--backend", "tpu")
        assert (code, "choose one of: cpu" in said) == (1, True)
