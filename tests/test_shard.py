"""Packing: webdataset reads the shards, they are the same every time, and a training cannot tell the difference."""

from __future__ import annotations

import json
import tarfile
import warnings
from pathlib import Path

import pytest
import torch

from edgefuse.runtime.errors import ManifestError, OptionError
from edgefuse.runtime.manifest import read_manifest
from edgefuse.runtime.media import read_media
from edgefuse.train.shard import shard
from tests.train_fixtures import LINES, corpus, steps_of, tiny_recipe

SHARED = {"image": 14, "audio": 12}  # distinct files of the corpus


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus in shards of less than 200 kB; read only."""
    out = tmp_path_factory.mktemp("packed") / "shards"
    said = shard(corpus(), out, megabytes=1)
    assert said == {"index": str(out / "index.json"), "shards": 3, "lines": 42, "files": sum(SHARED.values())}
    return out


def test_webdataset_reads_every_line_complete(packed: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of webdataset's own
        import webdataset

        for split, count in LINES.items():
            urls = sorted(str(path) for path in packed.glob(f"{split}-*.tar"))
            samples = list(webdataset.WebDataset(urls, shardshuffle=False))
            expected = read_manifest(corpus(), split=split)
            assert len(samples) == count
            for sample, line in zip(samples, expected, strict=True):
                said = json.loads(sample["json"])
                assert (said["text"], said["label"], said["split"]) == (line.text, line.label, split)
                assert sample["image.png"] == Path(str(line.image)).read_bytes()
                assert sample["audio.wav"] == Path(str(line.audio)).read_bytes()


def test_the_index_leads_to_the_very_files_each_distinct_one_once(packed: Path) -> None:
    found, expected = read_manifest(packed / "index.json"), read_manifest(corpus())
    for line, original in zip(found, expected, strict=True):
        assert (line.text, line.label, line.split, line.answer_type) == (
            original.text, original.label, original.split, original.answer_type,
        )  # fmt: skip
        assert read_media(str(line.image)) == read_media(str(original.image))
        assert read_media(str(line.audio)) == read_media(str(original.audio))
    for sensor, count in SHARED.items():
        assert len({getattr(line, sensor) for line in found}) == count


def test_every_step_from_shards_is_that_from_files(packed: Path) -> None:
    files, shards = steps_of(tiny_recipe()), steps_of(tiny_recipe(packed / "index.json"))
    for step in (0, 3, 5):
        one, two = files[step], shards[step]
        assert torch.equal(one.labels, two.labels)
        assert torch.equal(one.presence, two.presence)
        assert all(torch.equal(tensor, two.inputs[name]) for name, tensor in one.inputs.items())
        assert all(torch.equal(rows, two.index[name]) for name, rows in one.index.items())


def test_a_shard_holds_no_more_than_it_may(tmp_path: Path) -> None:
    sizes = {}
    for megabytes in (1, 100):
        shard(corpus(), tmp_path / str(megabytes), megabytes)
        sizes[megabytes] = [path.stat().st_size for path in (tmp_path / str(megabytes)).glob("*.tar")]
    assert max(sizes[1]) <= 1_000_000 + tarfile.RECORDSIZE
    assert len(sizes[100]) == 3  # one of each split


def test_the_same_data_makes_the_same_shards(packed: Path, tmp_path: Path) -> None:
    shard(corpus(), tmp_path / "again", megabytes=1)
    names = {path.name for path in packed.iterdir()}
    assert {path.name for path in (tmp_path / "again").iterdir()} == names
    assert all((tmp_path / "again" / name).read_bytes() == (packed / name).read_bytes() for name in names)


def test_many_small_shards_are_numbered_and_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgefuse.train.shard.MEGABYTE", 50_000)
    shard(corpus(), tmp_path / "out", megabytes=1)
    names = sorted(path.name for path in (tmp_path / "out").glob("train-*.tar"))
    assert names == [f"train-{part:06d}.tar" for part in range(len(names))]
    assert len(names) > 3
    assert len(read_manifest(tmp_path / "out" / "index.json", split="train")) == LINES["train"]


def test_a_folder_with_shards_is_left_alone(packed: Path) -> None:
    with pytest.raises(OptionError, match="holds shards; choose another --out"):
        shard(corpus(), packed)


def test_an_index_is_not_packed_again(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"index\.json is an index of shards already; give the \.jsonl file"):
        shard(packed / "index.json", tmp_path / "out")


def test_a_packing_that_fails_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgefuse.train.shard.tarfile.TarFile.addfile", full)
    with pytest.raises(OSError, match="No space"):
        shard(corpus(), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(tmp_path / "out" / "index.json")
