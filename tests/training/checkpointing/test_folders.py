import json

import pytest

from training.checkpointing.folders import (
    MANIFEST,
    ResumeError,
    damage,
    next_order,
    point_to,
    read_manifest,
    remove_results,
    require_free,
    resumable_checkpoints,
    resume_folder,
    rotate,
    write_manifest,
)
from training.checkpointing.run_record import Run

RUN = Run(processes=2, zero_stage=3, precision="bfloat16", global_batch=128)


def make(output, step, complete=True):
    folder = output / f"checkpoint-{step}"
    (folder / f"global_step{step}").mkdir(parents=True)
    (folder / f"global_step{step}" / "state.pt").write_bytes(bytes(range(100)))
    (folder / "latest").write_text(f"global_step{step}")
    RUN.save(folder)
    (folder / "trainer_state.json").write_text("{}")
    if complete:
        write_manifest(folder, next_order(output))
        point_to(folder)
    return folder


def names(folders):
    return [folder.name for folder in folders]


def test_newest_complete_one_is_taken(tmp_path):
    make(tmp_path, 9)
    newest = make(tmp_path, 10)
    make(tmp_path, 11, complete=False)
    (tmp_path / ".checkpoint-12.partial").mkdir()
    (tmp_path / "checkpoint-final").mkdir()
    assert resume_folder(tmp_path, "True") == resume_folder(tmp_path, "auto") == newest
    assert names(resumable_checkpoints(tmp_path)) == ["checkpoint-9", "checkpoint-10"]
    assert (tmp_path / "latest").read_text() == "checkpoint-10\n"


def test_newest_is_what_was_written_last(tmp_path):
    """Going on from an earlier checkpoint writes smaller steps later."""
    make(tmp_path, 20)
    branch = make(tmp_path, 15)
    assert resume_folder(tmp_path, True) == branch
    rotate(tmp_path, 1)
    assert names(resumable_checkpoints(tmp_path)) == ["checkpoint-15"]


def test_nothing_wanted_nothing_found(tmp_path):
    assert resume_folder(tmp_path, None) is None
    assert resume_folder(tmp_path, "auto") is None
    with pytest.raises(ResumeError, match="no checkpoint-N; leave out --resume_from_checkpoint"):
        resume_folder(tmp_path, "True")
    with pytest.raises(ResumeError, match=r"manifest.json is missing.*name a checkpoint-N of a run"):
        resume_folder(tmp_path, str(make(tmp_path, 3, complete=False)))
    with pytest.raises(ResumeError, match="all of its checkpoints are damaged"):
        resume_folder(tmp_path, "auto")
    (make(tmp_path, 2) / "run.json").unlink()
    make(tmp_path, 1)
    with pytest.raises(ResumeError, match=r"run\.json is missing; the newest complete one is checkpoint-1"):
        resume_folder(tmp_path, str(tmp_path / "checkpoint-2"))
    with pytest.raises(ResumeError, match="no such folder"):
        resume_folder(tmp_path, str(tmp_path / "checkpoint-4"))


def test_weights_alone_cannot_be_gone_on_from(tmp_path):
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    (folder / "trainer_state.json").write_text("{}")
    RUN.save(folder)
    write_manifest(folder)
    with pytest.raises(ResumeError, match="it has no latest, so it is for use only"):
        resume_folder(tmp_path, str(folder))
    assert resumable_checkpoints(tmp_path) == []


def test_rotation_keeps_newest_and_best_and_looks_at_complete_ones_alone(tmp_path):
    """Others are left for a person to look at."""
    best, *_ = [make(tmp_path, step) for step in (5, 6, 7, 1)]
    rotate(tmp_path, 2, [str(best)])
    assert names(resumable_checkpoints(tmp_path)) == ["checkpoint-5", "checkpoint-1"]
    for step in (2, 3):
        make(tmp_path, step)
        (tmp_path / f"checkpoint-{step}" / "run.json").write_text("")
    make(tmp_path, 4, complete=False)
    rotate(tmp_path, 1, [None])
    assert names(resumable_checkpoints(tmp_path)) == ["checkpoint-1"]
    assert len(list(tmp_path.glob("checkpoint-*"))) == 4


def test_another_kind_of_run_is_refused(tmp_path):
    folder = make(tmp_path, 1)
    assert RUN.check(folder) == RUN
    assert Run(8, 3, "bfloat16", 128).check(folder) == RUN  # other processes are welcome
    with pytest.raises(ResumeError, match=r"ZeRO 3 in bfloat16, but this run uses ZeRO 0 in float32"):
        Run(2, 0, "float32", 128).check(folder)
    with pytest.raises(
        ResumeError, match=r"128 conversations per step, but this run has 64.*times 4 processes is 128"
    ):
        Run(4, 3, "bfloat16", 64).check(folder)


@pytest.mark.parametrize(
    "there", [["checkpoint-2", "checkpoint-10"], ["final"], ["best"], ["checkpoint-1", "best"]]
)
def test_a_run_is_not_trained_over(tmp_path, there):
    for name in there:
        (tmp_path / name).mkdir()
    require_free(tmp_path / "elsewhere", None, may_begin=False)
    with pytest.raises(ResumeError, match="--overwrite_output_dir true") as refused:
        require_free(tmp_path, None, may_begin=False)
    named = ", ".join(there)
    assert f"{tmp_path} holds the results of an earlier run ({named}): give" in str(refused.value)
    assert ("--resume_from_checkpoint auto" in str(refused.value)) == there[0].startswith("checkpoint")
    assert "another --output_dir" in str(refused.value)
    with pytest.raises(ResumeError):  # going on from elsewhere would replace these too
        require_free(tmp_path, tmp_path / "elsewhere" / "checkpoint-1", may_begin=False)
    require_free(tmp_path, tmp_path / "checkpoint-10", may_begin=False)
    remove_results(tmp_path)
    require_free(tmp_path, None, may_begin=False)
    assert list(tmp_path.iterdir()) == []


def test_auto_begins_again_before_the_first_checkpoint_but_replaces_no_finished_run(tmp_path):
    (tmp_path / "best").mkdir()  # of the evaluation before the first step
    require_free(tmp_path, None, may_begin=True)
    (tmp_path / "final").mkdir()
    with pytest.raises(ResumeError, match=r"\(best, final\): give another --output_dir, or"):
        require_free(tmp_path, None, may_begin=True)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "sub" / "b").write_bytes(b"")
    write_manifest(tmp_path, order=3)
    return tmp_path


def test_a_manifest_says_what_is_there_and_what_is_damaged(folder):
    """The SHA-256 of "abc" is the published one (FIPS 180-2, appendix B.1)."""
    found = read_manifest(folder)
    assert found.order == 3 and set(found.files) == {"a", "sub/b"}
    assert found.files["a"].sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (folder / "c").write_bytes(b"later")
    assert damage(folder) == []
    (folder / "a").write_bytes(b"abd")
    (folder / "sub" / "b").unlink()
    assert damage(folder) == ["a is damaged: its content has changed", "sub/b is missing"]
    assert damage(folder, contents=False) == ["sub/b is missing"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"digest": 1}', None])
def test_a_manifest_that_is_none(folder, text):
    body = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(body | {"order": 4}) if text is None else text)
    [said] = damage(folder)
    assert said.startswith("manifest.json is damaged: ")


def test_a_manifest_of_another_format(folder, monkeypatch):
    monkeypatch.setattr("training.checkpointing.folders._FORMAT", 2)
    write_manifest(folder)
    monkeypatch.undo()
    assert damage(folder) == ["manifest.json has format 2, this program reads 1"]
