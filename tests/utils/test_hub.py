"""What a checkpoint and a base model may be called, and what is said of what is none."""

import errno
import json
from pathlib import Path

import httpx
import pytest
from huggingface_hub import constants, errors

from utils.commands import UsageError
from utils.hub import checkpoint_folder, require_model

OURS = {"model_type": "visual_chat"}


def folder_of(files: dict[str, object], folder: Path) -> Path:
    """A folder with these files; a dictionary is written as JSON."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "files, found",
    [
        ({"config.json": OURS}, "."),
        ({"best/config.json": OURS, "final/config.json": OURS, "checkpoint-9/config.json": OURS}, "best"),
        ({"final/config.json": OURS, "checkpoint-9/config.json": OURS}, "final"),
        ({"config.json": "{ half a file"}, "."),  # loading says what is wrong with it
    ],
)
def test_a_folder_is_its_checkpoint_or_the_best_of_its_run(tmp_path, files, found):
    folder = folder_of(files, tmp_path / "run")
    assert checkpoint_folder(folder) == folder / found
    assert checkpoint_folder(str(folder) + "/") == folder / found


@pytest.mark.parametrize(
    "files, says",
    [
        ({}, "is an empty folder"),
        (
            {"config.json": {"model_type": "llama"}},
            "is a model of type llama, not a checkpoint of this project",
        ),
        ({"adapter_config.json": {}}, "holds adapters of peft alone"),
        ({"trainer_state.json": {}, "global_step4/x.pt": ""}, "holds a training's state but no model"),
        ({"checkpoint-4/config.json": OURS}, "give its newest checkpoint, {folder}/checkpoint-4"),
        ({"tiny/final/config.json": OURS}, "but one of its folders does: {folder}/tiny"),
        ({"model.safetensors": ""}, "has no config.json, so it is not a whole checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_described(tmp_path, files, says):
    folder = folder_of(files, tmp_path / "wrong")
    with pytest.raises(UsageError) as refused:
        checkpoint_folder(folder)
    line = str(refused.value)
    assert line.startswith(f"--checkpoint_path {folder} ") and "\n" not in line
    assert says.format(folder=folder) in line


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/nowhere/at/all", "a/b/c", "../up"])
def test_what_is_neither_folder_nor_hub_name_is_not_looked_up(monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    with pytest.raises(UsageError, match=f"there is no checkpoint folder {name}"):
        checkpoint_folder(name)


def test_a_name_of_the_hub_is_fetched_once_its_description_is_known(monkeypatch, tmp_path):
    fetched = []

    def file(name: str, filename: str) -> str:
        fetched.append(filename)
        return str(folder_of({"config.json": OURS}, tmp_path / "hub") / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", file)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name: fetched.append(name) or tmp_path / "hub"
    )
    assert checkpoint_folder("me/mine") == tmp_path / "hub"
    assert fetched == ["config.json", "me/mine"]


def test_a_base_model_of_the_hub_is_refused_before_its_weights_are_fetched(monkeypatch, tmp_path):
    base = folder_of({"config.json": {"model_type": "llama"}}, tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file: str(base / file))
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    with pytest.raises(UsageError, match="--checkpoint_path meta-llama/x is a model of type llama"):
        checkpoint_folder("meta-llama/x")


def answer(code: int) -> httpx.Response:
    return httpx.Response(code, request=httpx.Request("GET", "https://huggingface.co/owner/name"))


ONLINE, OFFLINE = False, True
REASONS = [
    (
        errors.GatedRepoError("403", response=answer(403)),
        ONLINE,
        "is gated: ask for access at https://huggingface.co/",
    ),
    (errors.RepositoryNotFoundError("404", response=answer(404)), ONLINE, "and no such model on the hub"),
    (errors.LocalEntryNotFoundError("no"), OFFLINE, "HF_HUB_OFFLINE is set"),
    (errors.LocalEntryNotFoundError("no"), ONLINE, "the hub cannot be reached"),
    (errors.RemoteEntryNotFoundError("404", response=answer(404)), ONLINE, "holds no model of the kind"),
    (
        OSError(errno.ENOSPC, "No space left on device", "/cache/x"),
        ONLINE,
        "/cache/x: No space left on device",
    ),
]


@pytest.mark.parametrize("error, offline, says", REASONS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("flag", ["--checkpoint_path", "--vision_model_name_or_path"])
def test_why_the_hub_gave_nothing_is_told(monkeypatch, error, offline, says, flag):
    def refuse(*names: str) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(UsageError) as refused:
        if flag == "--checkpoint_path":
            checkpoint_folder("owner/name")
        else:
            require_model(flag, "owner/name", ("config.json", "open_clip_config.json"))
    line = str(refused.value)
    assert line.startswith(f"{flag} owner/name") and says in line and "\n" not in line


def test_a_model_may_be_described_by_either_file(monkeypatch, tmp_path):
    asked = []

    def second(name: str, file: str) -> str:
        asked.append(file)
        if file == "config.json":
            raise errors.RemoteEntryNotFoundError("404", response=answer(404))
        return "there"

    monkeypatch.setattr("huggingface_hub.hf_hub_download", second)
    require_model("--vision_model_name_or_path", "owner/name", ("config.json", "open_clip_config.json"))
    assert asked == ["config.json", "open_clip_config.json"]
    require_model(
        "--flag", str(folder_of({"open_clip_config.json": {}}, tmp_path / "clip")), ("open_clip_config.json",)
    )
    with pytest.raises(UsageError, match=r"--flag .*: no config.json in this folder"):
        require_model("--flag", str(tmp_path))


@pytest.mark.parametrize("name", ["../models/llama", "/models/llama", "a//b", "a b/c", "models/llama/7b"])
def test_what_cannot_be_a_hub_name_is_a_folder_that_is_not_there(monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    with pytest.raises(UsageError, match="there is no such folder"):
        require_model("--lm_model_name_or_path", name)
