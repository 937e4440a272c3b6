import pytest

from training.checkpoints import ResumeError, Run, resumable_checkpoints, resume_folder, rotate

RUN = Run(processes=2, zero_stage=3, precision="bfloat16")


def make(output, step, complete=True):
    folder = output / f"checkpoint-{step}"
    (folder / f"global_step{step}").mkdir(parents=True)
    (folder / "latest").write_text(f"global_step{step}")
    RUN.save(folder)
    if complete:
        (folder / "trainer_state.json").write_text("{}")
    return folder


def test_newest_complete_one_is_taken(tmp_path):
    make(tmp_path, 9)
    newest = make(tmp_path, 10)
    make(tmp_path, 11, complete=False)
    (tmp_path / ".checkpoint-12.partial").mkdir()
    (tmp_path / "checkpoint-final").mkdir()
    assert resume_folder(str(tmp_path), "True") == newest
    assert [folder.name for folder in resumable_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]


def test_nothing_wanted_nothing_found(tmp_path):
    assert resume_folder(str(tmp_path), None) is None
    with pytest.raises(ResumeError, match="leave out --resume_from_checkpoint"):
        resume_folder(str(tmp_path), "True")
    with pytest.raises(ResumeError, match="no complete checkpoint"):
        resume_folder(str(tmp_path), str(make(tmp_path, 3, complete=False)))


def test_rotation_keeps_newest_and_best(tmp_path):
    best, *_ = [make(tmp_path, step) for step in (1, 2, 3, 4)]
    rotate(tmp_path, 2, [str(best)])
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-4"]
    rotate(tmp_path, 1, [None])
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint-4"]


def test_another_kind_of_run_is_refused(tmp_path):
    folder = make(tmp_path, 1)
    RUN.check(folder)
    with pytest.raises(ResumeError, match=r"2 processes at ZeRO 3.*has 1 at ZeRO 0"):
        Run(1, 0, "bfloat16").check(folder)
