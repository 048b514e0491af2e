"""`edgefuse run` as real processes: lines, signals, closed pipes, mistakes; and the same as an iterator."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import edgefuse.runtime
from edgefuse.runtime import cli
from edgefuse.runtime.errors import BundleError, EdgefuseError, OptionError
from edgefuse.runtime.run_options import Options

RUN = Path(cli.__file__).with_name("run.py")
KEYS = {"t_ms", "label", "confidence", "weights", "presence", "age_ms", "skew_ms", "stages_ms", "dropped"}


def default_signals():
    """A shell's background job ignores ctrl-C, and so would everything that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def started(*arguments, program=("-m", "edgefuse.runtime.cli", "run"), **options):
    """A child that runs `edgefuse run`, with pipes."""
    command = [sys.executable, *map(str, program), *map(str, arguments)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, text=True, **(pipes | {"preexec_fn": default_signals} | options)) as process:
        hangs = threading.Timer(60, process.kill)
        hangs.start()
        try:
            yield process
        finally:
            hangs.cancel()
            process.kill()


def rest_of(process):
    """What it still prints; `communicate` would lose what `readline` has read ahead."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    out, err = process.stdout.read(), process.stderr.read()
    process.wait()
    return out, err


def finished(*arguments, stdin="", **options):
    """Exit code, stdout and stderr of a child that ends by itself."""
    with started(*arguments, **options) as process:
        out, err = process.communicate(stdin)
        return process.returncode, out, err


def documents(out):
    assert out == "" or out.endswith("\n")
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def called(capsys):
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main(["run", *map(str, arguments)])
        found = capsys.readouterr()
        return stop.value.code or 0, found.out, found.err

    return call


@pytest.fixture
def camera(tiny, tmp_path):
    """A folder of two pictures, red and then green."""
    folder = tmp_path / "camera"
    folder.mkdir()
    shutil.copy(tiny.media / "red.png", folder / "1.png")
    shutil.copy(tiny.media / "green.png", folder / "2.png")
    return folder


@pytest.fixture
def long_recording(tmp_path):
    """A recording of 3000 texts, whose lines are more than a pipe holds."""
    path = tmp_path / "long.jsonl"
    words = ("red", "green", "blue")
    path.write_text("".join(json.dumps({"t_ms": n, "text": words[n % 3]}) + "\n" for n in range(3000)))
    return path


def test_pictures_sound_and_text_are_answered_until_all_have_ended(tiny, camera):
    code, out, err = finished(tiny.bundle, "--camera", camera, "--mic", tiny.media / "red.wav", "--text", "red")

    decisions = documents(out)
    assert code == 0
    assert all(decision.keys() == KEYS for decision in decisions)
    whole = [decision for decision in decisions if all(decision["presence"].values())]
    assert whole
    assert whole[0]["label"] == "red"
    assert sum(whole[0]["weights"].values()) == pytest.approx(1, abs=1e-3)
    assert sum("image" in decision["stages_ms"] for decision in decisions) == 2
    assert re.search(r"edgefuse: \d+ decisions? in .* s.*; encoded: .*2 image.*; dropped: ", err.splitlines()[-1])


def test_a_text_alone_is_one_decision(tiny):
    code, out, _ = finished(tiny.bundle, "--text", "green")

    assert code == 0
    assert [(decision["label"], decision["presence"]["text"]) for decision in documents(out)] == [("green", True)]


def test_it_runs_by_path_too(tiny):
    code, out, _ = finished(tiny.bundle, "--text", "green", program=[RUN])

    assert code == 0
    assert len(documents(out)) == 1


def test_lines_of_stdin_are_answered_as_they_come_and_an_empty_one_withdraws(tiny):
    with started(tiny.bundle, "--text", "-", "--mic", tiny.media / "red.wav") as process:
        labels = []
        for word in ("green", "blue", "red"):
            process.stdin.write(word + "\n")
            process.stdin.flush()
            while not labels or labels[-1] != word:
                labels.append(json.loads(process.stdout.readline())["label"])
        out, _ = rest_of(process)

    assert process.returncode == 0
    documents(out)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_after_a_whole_line_with_a_summary(tiny, long_recording, number, code):
    with started(tiny.bundle, "--replay", long_recording, "--speed", "0.5") as process:
        first = process.stdout.readline()
        process.send_signal(number)
        rest, err = rest_of(process)

    decisions = documents(first + rest)
    assert process.returncode == code
    assert 1 <= len(decisions) < 3000
    assert f"edgefuse: {len(decisions)} decision" in err
    assert ("stopped" in err) == (code == 130)
    assert "Traceback" not in err


def test_a_signal_while_nothing_happens_ends_it_within_a_second(tiny):
    with started(tiny.bundle, "--text", "-") as process:
        process.stdin.write("red\n")
        process.stdin.flush()
        process.stdout.readline()
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)

        assert time.monotonic() - sent < 3  # half a second and what a busy machine adds
        assert code == 0
        assert process.stderr.read().startswith("edgefuse: 1 decision in ")


def test_a_second_signal_ends_it_even_where_nobody_reads_its_lines(tiny, long_recording):
    with started(tiny.bundle, "--replay", long_recording) as process:
        wait_until_full(process.stdout)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(signal.SIGTERM)

        assert process.wait(60) == 128 + signal.SIGTERM


def wait_until_full(pipe):
    """Wait until the other end of `pipe` cannot write any more."""
    waiting, before = -1, -2
    while waiting < 60_000 or waiting != before:
        time.sleep(0.1)
        before = waiting
        (waiting,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0"))


def test_ctrl_c_does_not_end_what_ignores_it(tiny, long_recording):
    def ignore():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    with started(tiny.bundle, "--replay", long_recording, preexec_fn=ignore) as process:
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, _ = rest_of(process)

    assert process.returncode == 0
    assert len(documents(first + rest)) == 3000


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_closed_pipe_ends_it_quietly(tiny, long_recording, as_json):
    with started(tiny.bundle, "--replay", long_recording, *as_json) as process:
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()

    assert process.returncode == 0
    assert "Traceback" not in err
    assert "rror" not in err


def test_the_page_shows_it_and_asks_it(tiny, camera):
    never = ("--limit", "image=none")  # on a busy machine the last picture was too old before it was asked for
    with started(tiny.bundle, "--camera", camera, *never, "--web", "0") as process:
        url = re.search(r"edgefuse: page: open (http://127\.0\.0\.1:\d+/)\n", process.stderr.readline())[1]
        process.stdout.readline()
        with urllib.request.urlopen(url + "health") as answer:
            health = json.load(answer)
        question = urllib.request.Request(url + "text", b'{"text": "blue"}', {"Content-Type": "application/json"})
        urllib.request.urlopen(question).close()
        while not (decision := json.loads(process.stdout.readline()))["presence"]["text"]:
            pass
        process.send_signal(signal.SIGTERM)
        rest_of(process)

    assert process.returncode == 0
    assert health["backend"] == "ok"
    assert decision["weights"]["text"] > 0


def test_count_ends_it_and_json_sums_it_up(called, tiny, long_recording):
    code, out, err = called(tiny.bundle, "--replay", long_recording, "--count", 7, "--json")

    *decisions, summary = documents(out)
    assert code == 0
    assert len(decisions) == summary["decisions"] == 7
    assert summary["encoded"] == {"text": 7}
    assert summary["dropped"] == {"image": 0, "audio": 0, "text": 0}
    assert err == ""


def test_a_rate_is_kept_and_the_newest_wins(tiny):
    with started(tiny.bundle, "--text", "-", "--max-rate", "10") as process:
        process.stdin.write("red\n")
        process.stdin.flush()
        first = process.stdout.readline()
        for number in range(40):
            process.stdin.write(("red\n", "green\n", "blue\n")[number % 3])
            process.stdin.flush()
            time.sleep(0.01)
        rest, _ = rest_of(process)

    decisions = documents(first + rest)
    gaps_ms = [after["t_ms"] - before["t_ms"] for before, after in itertools.pairwise(decisions)]
    assert process.returncode == 0
    assert min(gaps_ms) > 90
    assert decisions[-1]["label"] == "red"  # the last of the 40
    assert decisions[-1]["dropped"]["text"] > 20


def test_two_replays_print_the_same_bytes(called, tiny, long_recording):
    first, second = (called(tiny.bundle, "--replay", long_recording, "--alarm", "red>0.5@0ms+0ms") for _ in range(2))

    assert first[0] == second[0] == 0
    assert first[1] == second[1]
    assert '"event": "start"' in first[1]
    assert "stages_ms" not in first[1]


def test_what_was_recorded_replays_with_the_same_answers(called, tiny, camera, tmp_path):
    sensors = ["--camera", camera, "--mic", tiny.media / "green.wav", "--text", "red"]
    limits = ["--limit", "image=none", "--limit", "audio=none"]  # a busy machine may be late
    code, live, _ = called(tiny.bundle, *sensors, *limits, "--record", tmp_path / "recording")
    again, replayed, _ = called(tiny.bundle, "--replay", tmp_path / "recording", *limits)

    last, last_replayed = documents(live)[-1], documents(replayed)[-1]
    assert (code, again) == (0, 0)
    assert last["presence"] == {"image": True, "audio": True, "text": True}
    for key in ("label", "confidence", "weights", "presence", "skew_ms"):
        assert last_replayed[key] == last[key]


def test_alarms_and_topics_stand_on_lines_of_their_own(called, tiny, tmp_path):
    path = tmp_path / "readings.jsonl"
    moments = [(0, "red"), (100, "green"), (5000, "blue")]
    path.write_text("".join(json.dumps({"t_ms": t_ms, "text": word}) + "\n" for t_ms, word in moments))
    alarms = ["--alarm", "green>0.9@0ms", "--alarm", "blue > 0.9@0ms"]

    code, out, _ = called(tiny.bundle, "--replay", path, "--mqtt", "home/door", *alarms)

    lines = [line.split(" ", 1) for line in out.splitlines()]
    assert code == 0
    assert [(topic, json.loads(payload).get("event")) for topic, payload in lines] == [
        ("home/door", None),
        ("home/door", None),
        ("home/door/alarm", "start"),
        ("home/door", None),
        ("home/door/alarm", "stop"),
        ("home/door/alarm", "start"),
        ("home/door/alarm", "stop"),  # the run ends
    ]
    stop = json.loads(lines[4][1])
    assert (stop["alarm"], stop["t_ms"], stop["duration_ms"]) == ("green", 5000.0, 4900.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no sensor given; give camera, mic, text, signal, web or replay"),
        (["--text", " "], "text: found ' '"),
        (["--camera", "gone.mp4"], "gone.mp4: no such file"),
        (["--mic", "gone.wav"], "gone.wav: no such file"),
        (["--mic", "-", "--text", "-"], "mic and text cannot both come from stdin"),
        (["--replay", "gone"], "gone: cannot be read (No such file or directory)"),
        (["--replay", "gone", "--text", "red"], "a replay brings its own sensors; leave text out"),
        (["--replay", "gone", "--record", "new"], "a replay brings its own sensors; leave record out"),
        (["--text", "red", "--alarm", "rad>0.8"], "no label 'rad'; did you mean 'red'?"),
        (["--text", "red", "--webhook", "http://127.0.0.1/"], "a webhook gets the events of alarms; give an alarm too"),
        (["--text", "red", "--alarm", "red>0.8", "--webhook", "ftp://x"], "webhook 'ftp://x' is not a URL to POST to"),
        (["--text", "red", "--mqtt", "a b"], "'a b' is no MQTT topic"),
        (["--text", "red", "--limit", "image"], "limit 'image' cannot be read"),
        (["--text", "red", "--limit", "smell=1"], "limit 'smell=1' cannot be read"),
        (["--text", "red", "--limit", "image=-1"], "image is -1.0, it must be more than 0"),
        (["--text", "red", "--max-rate", "0"], "max_rate is 0.0, it must be more than 0"),
        (["--text", "red", "--backend", "gpu"], "no backend is called 'gpu'; choose one of: cpu,"),
        (["--mic", "gone.wav", "--gate", "loud"], "gate 'loud' is unknown"),
        (["--text", "red", "--record", RUN], "run.py cannot be recorded to (Not a directory)"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(called, tiny, arguments, message):
    code, out, err = called(tiny.bundle, *arguments)

    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert err.startswith("edgefuse: ")
    assert message in err


def test_no_bundle_is_one_line(called, tmp_path):
    code, _, err = called(tmp_path, "--text", "red")

    assert code == 1
    assert err.count("\n") == 1
    assert "is not a bundle" in err


def test_a_sensor_that_the_model_lacks_is_refused(tiny_copy):
    info = tiny_copy.info
    tiny_copy.updated({}, image=None, tokens={name: spec for name, spec in info.tokens.items() if name != "image"})

    with pytest.raises(OptionError, match="camera: the model has no image encoder; it takes: audio, text"):
        next(edgefuse.runtime.run(tiny_copy.folder, camera=0))


# --- as an iterator


def texts_of(tmp_path, *words):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"t_ms": 10 * n, "text": word}) + "\n" for n, word in enumerate(words)))
    return path


def test_it_can_be_called_before_and_after_its_module_was_imported():
    code = (
        "import sys, edgefuse.runtime\n"
        "assert 'numpy' not in sys.modules\n"
        "first = edgefuse.runtime.run\n"
        "import edgefuse.runtime.run\n"
        "from edgefuse.runtime import run\n"
        "from edgefuse.runtime.run import run as function\n"
        "for found in (first, edgefuse.runtime.run, run, function):\n"
        "    print(type(found('nowhere', text='x')).__name__)\n"
    )

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert found.stdout.split() == ["generator"] * 4, found.stderr


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'walk'"):
        edgefuse.runtime.walk  # noqa: B018


def test_the_iterator_gives_decisions_and_tells_the_callbacks_first(tiny, tmp_path):
    told = []
    decisions = edgefuse.runtime.run(
        tiny.bundle,
        replay=texts_of(tmp_path, "red", "blue"),
        alarms=["red>0.9@0ms+0ms"],
        on_decision=told.append,
        on_alarm=told.append,
    )

    for decision in decisions:
        told.append(decision.label)

    assert [getattr(said, "event", None) or getattr(said, "label", said) for said in told] == [
        "red", "start", "red", "blue", "stop", "blue",
    ]  # fmt: skip


def test_closing_the_iterator_stops_every_thread(tiny, camera, tmp_path):
    before = set(threading.enumerate())
    decisions = edgefuse.runtime.run(
        tiny.bundle, camera=camera, mic=tiny.media / "red.wav", text="red", record=tmp_path / "recording"
    )
    next(decisions)
    assert set(threading.enumerate()) - before

    decisions.close()

    assert set(threading.enumerate()) - before == set()


def test_an_alarm_that_is_on_stops_when_the_iterator_is_closed(tiny, tmp_path):
    events = []
    decisions = edgefuse.runtime.run(
        tiny.bundle, replay=texts_of(tmp_path, "red", "red"), alarms=["red>0.5"], on_alarm=events.append
    )
    next(decisions)
    decisions.close()

    assert [event.event for event in events] == ["start", "stop"]


def test_a_stop_from_another_thread_ends_it(tiny):
    stop = threading.Event()
    decisions = edgefuse.runtime.run(tiny.bundle, camera="999", text="red", stop=stop, on_notice=lambda notice: None)

    assert next(decisions).label == "red"
    threading.Timer(0.05, stop.set).start()

    assert list(decisions) == []


def test_notices_are_logged_where_nobody_takes_them(tiny, caplog):
    decisions = edgefuse.runtime.run(tiny.bundle, camera="999", text="red")
    next(decisions)
    deadline = time.monotonic() + 10
    while not caplog.records and time.monotonic() < deadline:
        time.sleep(0.01)
    decisions.close()

    assert "image: camera 999 gives nothing" in caplog.text


def test_errors_come_from_the_iterator_as_errors_of_the_tree(tiny, tmp_path):
    with pytest.raises(BundleError):
        next(edgefuse.runtime.run(tmp_path, text="red"))
    with pytest.raises(EdgefuseError):
        next(edgefuse.runtime.run(tiny.bundle, text="red", alarms=["nothing>0.5"]))
    with pytest.raises(TypeError, match="speling"):
        next(edgefuse.runtime.run(tiny.bundle, speling=1))


def test_alarms_are_posted_to_the_webhook_before_the_iterator_is_closed(tiny, tmp_path):
    posted = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        decisions = edgefuse.runtime.run(
            tiny.bundle,
            replay=texts_of(tmp_path, "red"),
            alarms=["red>0.5"],
            webhook=f"http://127.0.0.1:{server.server_port}/",
        )
        assert len(list(decisions)) == 1
        server.shutdown()

    assert [(document["event"], document["alarm"]) for document in posted] == [("start", "red"), ("stop", "red")]


def test_a_sentence_counts_longer_than_a_window_of_sound_where_no_limit_is_given() -> None:
    assert Options(mic="-").limits == {}
    assert Options(mic="-", gate="energy").limits == {"audio": 10_000.0}
    assert Options(mic="-", gate="energy", limits_ms={"audio": None, "image": 5.0}).limits == {
        "audio": None,
        "image": 5.0,
    }
