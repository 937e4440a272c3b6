import json

import pytest

from training.checkpointing.folders import MANIFEST, ManifestError, damage, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "sub" / "b").write_bytes(b"")
    write_manifest(tmp_path, order=3)
    return tmp_path


def test_says_what_is_there(folder):
    manifest = read_manifest(folder)
    assert manifest.order == 3 and set(manifest.files) == {"a", "sub/b"}
    assert manifest.files["a"].size == 3
    # The published SHA-256 of "abc" (FIPS 180-2, appendix B.1).
    assert manifest.files["a"].sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert {"python", "torch", "transformers"} <= set(manifest.versions)
    assert damage(folder) == []


def test_names_every_damaged_file(folder):
    (folder / "a").write_bytes(b"abd")
    (folder / "sub" / "b").unlink()
    assert damage(folder) == ["a is damaged: its content has changed", "sub/b is missing"]
    assert damage(folder, contents=False) == ["sub/b is missing"]
    (folder / "a").write_bytes(b"ab")
    assert damage(folder, contents=False)[0] == "a has 2 bytes of 3"


def test_is_written_anew(folder):
    (folder / "c").write_bytes(b"new")
    assert damage(folder) == []
    assert "c" in write_manifest(folder).files and MANIFEST not in read_manifest(folder).files


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"digest": 1}'])
def test_a_manifest_that_is_none(folder, text):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(ManifestError, match=r"manifest\.json is damaged"):
        read_manifest(folder)


def test_a_changed_number_is_noticed(folder):
    body = json.loads((folder / MANIFEST).read_text())
    body["order"] = 4
    (folder / MANIFEST).write_text(json.dumps(body))
    assert damage(folder) == ["manifest.json is damaged: its content has changed"]


def test_of_another_format(folder, monkeypatch):
    monkeypatch.setattr("training.checkpointing.folders._FORMAT", 2)
    write_manifest(folder)
    monkeypatch.undo()
    assert damage(folder) == ["manifest.json has format 2, this program reads 1"]


def test_without_one_writing_was_not_finished(tmp_path):
    assert damage(tmp_path) == ["manifest.json is missing: writing was not finished"]
