"""Finds checkpoints and models by folder, by the folder of a run, or by hub name.

What is not found is told in one line, which names the flag: whether a name is mistyped, gated, or could not be looked
up. Nothing here imports torch, so a mistake is told before anything is loaded.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from utils.commands import UsageError

CONFIG = "config.json"
MODEL_TYPE = "visual_chat"
_OF_A_RUN = ("best", "final")
_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?", re.ASCII)
_TRAINING_STATE = ("trainer_state.json", "latest", "run.json")


def checkpoint_folder(name: str | Path, flag: str = "--checkpoint_path") -> Path:
    """The folder of a checkpoint: as named, the `best` (else `final`) of a run's folder, or a copy of the hub's.

    Raises `UsageError` that says what stands at that place instead, and what to give.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _in_folder(folder, f"{flag} {name}")
    if folder.exists():
        raise UsageError(f"{flag} {name} is a file: give the folder of a checkpoint, {folder.parent}?")
    if "/" not in str(name) or not _HUB_NAME.fullmatch(str(name)):
        raise UsageError(f"{flag}: there is no checkpoint folder {name}; check the path")
    return _from_hub(str(name), flag)


def require_model(flag: str, name: str, described_by: Sequence[str] = (CONFIG,)) -> None:
    """Look a model up before anything long begins; `UsageError` that names the flag where it cannot be had.

    `described_by`: the files of which a model has at least one.
    """
    if not Path(name).is_dir():
        _hub_file(flag, name, described_by)
    elif not any(Path(name, each).is_file() for each in described_by):
        raise UsageError(
            f"{flag} {name}: no {' or '.join(described_by)} in this folder; give a model's folder"
        )


def local_weights(name: str) -> int | None:
    """Bytes of a model's weights that are here, in its folder or in the cache of the hub; None where they are not."""
    from huggingface_hub import try_to_load_from_cache

    folder = Path(name)
    if not folder.is_dir():
        if not _HUB_NAME.fullmatch(name):
            return None
        cached = try_to_load_from_cache(name, CONFIG)
        if not isinstance(cached, str):
            return None
        folder = Path(cached).parent
    files = [*folder.glob("*.safetensors")] or [*folder.glob("*.bin")]
    wanted: set[str] = set()
    for index in folder.glob("*.safetensors.index.json"):
        wanted.update(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
    if not files or wanted - {file.name for file in files}:
        return None
    return sum(file.stat().st_size for file in files)


def _in_folder(folder: Path, given: str) -> Path:
    if (folder / CONFIG).is_file():
        _refuse_other_models(folder, given)
        return folder
    for name in _OF_A_RUN:
        if _is_checkpoint(folder / name):
            return folder / name
    raise UsageError(f"{given} {_described(folder)}")


def _described(folder: Path) -> str:
    """What a folder without a checkpoint is, and what to give instead."""
    names = {path.name for path in folder.iterdir()}
    if not names:
        return "is an empty folder: give the folder of a checkpoint, or of a run that has written one"
    if "adapter_config.json" in names:
        return f"holds adapters of peft alone (no {CONFIG}): give the checkpoint that they were exported from"
    if names.intersection(_TRAINING_STATE) and any(name.startswith("global_step") for name in names):
        return (
            f"holds a training's state but no model (no {CONFIG}): training can resume from it, but it cannot be used;"
            " give best or final of that run"
        )
    steps = sorted(
        (path for path in folder.glob("checkpoint-*") if _is_checkpoint(path)),
        key=lambda path: path.stat().st_mtime,
    )
    if steps:
        return f"is a run without best or final so far: give its newest checkpoint, {steps[-1]}"
    if near := next(_checkpoints_below(folder), None):
        return f"holds no checkpoint itself, but one of its folders does: {near}"
    return f"has no {CONFIG}, so it is not a whole checkpoint, and no run with best or final: check the path"


def _checkpoints_below(folder: Path) -> Iterator[Path]:
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        if _is_checkpoint(child) or any(_is_checkpoint(child / name) for name in _OF_A_RUN):
            yield child


def _is_checkpoint(folder: Path) -> bool:
    return read_config(folder).get("model_type") == MODEL_TYPE


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder; empty where it cannot be read, of which loading tells."""
    try:
        fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _refuse_other_models(folder: Path, given: str) -> None:
    found = read_config(folder).get("model_type")
    if found not in (None, MODEL_TYPE):
        raise UsageError(
            f"{given} is a model of type {found}, not a checkpoint of this project: give one that training wrote;"
            " a base model is for --lm_model_name_or_path or --vision_model_name_or_path"
        )


def _from_hub(name: str, flag: str) -> Path:
    from huggingface_hub import snapshot_download

    # Its description first: a base model's weights are not fetched only to be refused.
    _refuse_other_models(Path(_hub_file(flag, name, (CONFIG,))).parent, f"{flag} {name}")
    try:
        return Path(snapshot_download(name))
    except Exception as error:
        raise UsageError(_why_not(flag, name, error)) from error


def _hub_file(flag: str, name: str, wanted: Sequence[str]) -> str:
    """The local copy of one of these files of a hub's model."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if not _HUB_NAME.fullmatch(name):
        raise UsageError(f"{flag} {name}: there is no such folder; give a folder, or a hub name (owner/name)")
    missing: Exception | None = None
    for file in wanted:
        try:
            return hf_hub_download(name, file)
        except Exception as error:
            if missing is None or not isinstance(error, EntryNotFoundError):
                missing = error
            if not isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                break
    raise UsageError(_why_not(flag, name, missing)) from missing


def _why_not(flag: str, name: str, error: Exception | None) -> str:
    """A line that says why the hub gave no model of this name, and what to do."""
    from huggingface_hub import errors, is_offline_mode

    given = f"{flag} {name}"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{given} is gated: ask for access at https://huggingface.co/{name}, then log in (hf auth login) or set"
            " HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return (
            f"{given}: there is no such folder, and no such model on the hub; check the spelling, or, if it is"
            " private, log in (hf auth login)"
        )
    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        if is_offline_mode():
            return (
                f"{given}: there is no such folder, nor a cached copy from the hub, which is not asked because"
                " HF_HUB_OFFLINE is set; check the path, or unset HF_HUB_OFFLINE"
            )
        return (
            f"{given}: there is no such folder, and the hub cannot be reached; check the path, or the network"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return f"{given}: the hub has a repository of this name, but it holds no model of the kind that is needed"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{given}: its files cannot be stored: {error.filename}: {error.strerror}; set HF_HOME to another folder"
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{given}: download from the hub failed: {first}"
