"""What is said of a run that fails: one line where a person can do something."""

import errno
from types import SimpleNamespace

import training.run
from training.exit_codes import MISTAKE


def ended(monkeypatch, tmp_path, error):
    """The exit code of a run in which `error` comes up."""

    def fail(*parts):
        raise error

    arguments = SimpleNamespace(output_dir=str(tmp_path))
    monkeypatch.setattr(training.run, "configure_logging", lambda: None)
    monkeypatch.setattr(training.run, "parse_flags", lambda argv: (None, None))
    monkeypatch.setattr(training.run, "training_arguments", lambda parser, flags: (None, None, arguments))
    monkeypatch.setattr(training.run.recipe, "resolved", lambda flags, parser: {})
    monkeypatch.setattr(training.run, "train", fail)
    return training.run.main([])


def test_a_full_disk_is_one_line(monkeypatch, tmp_path, capsys):
    full = OSError(errno.ENOSPC, "No space left on device", "/data/tokens.arrow")
    assert ended(monkeypatch, tmp_path, full) == MISTAKE
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: No space left on device: /data/tokens.arrow; no checkpoint is complete")


def test_what_nobody_expected_shows_where_it_was(monkeypatch, tmp_path, capsys):
    assert ended(monkeypatch, tmp_path, OSError(errno.EIO, "Input/output error")) == 1
    assert "Traceback" in capsys.readouterr().err
