"""A DeepSpeed configuration of one's own, read strictly: DeepSpeed ignores many keys that it does not know.

Which keys it knows is asked of DeepSpeed itself: its configuration is built from a dictionary that remembers
what was looked up in it, and sections that are pydantic models know their fields.
"""

import difflib
import json
from collections.abc import Iterable, Iterator, KeysView
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from training.extension import Extension
from training.sharding import AUTO
from utils.commands import UsageError

_BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
_FREE = (
    "optimizer.params",
    "scheduler.params",
)  # read by the optimizer or scheduler that is named beside them


def read_user_config(path: str, flag: str = "--deepspeed_config") -> dict[str, Any]:
    """The configuration in a JSON file.

    Raises `UsageError` where there is no such file, where it is not JSON, for a key that DeepSpeed does not
    know (naming the nearest one that it does), and for a value that it refuses.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"{flag} {path}: no such file; give a DeepSpeed configuration in JSON")
    try:
        config = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_without_twins)
    except ValueError as error:
        raise UsageError(f"{flag} {path}: not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{flag} {path}: not a JSON object, but a {type(config).__name__}")
    try:
        unknown = unknown_keys(config)
    except ValueError as error:
        raise UsageError(f"{flag} {path}: DeepSpeed refuses it: {_one_line(error)}") from error
    if unknown:
        named = "; ".join(f"{key} ({_hint(near)})" for key, near in unknown.items())
        raise UsageError(
            f"{flag} {path}: DeepSpeed does not know {named}; it would go on without them: correct or remove them"
        )
    return config


class UserConfig(Extension):
    """What goes wrong in a training with one."""

    def around(self, arguments: Any) -> AbstractContextManager[None]:
        return mismatches_named()


@contextmanager
def mismatches_named() -> Iterator[None]:
    """A DeepSpeed file of one's own may contradict the flags, which transformers finds when training begins."""
    try:
        yield
    except ValueError as error:
        if "mismatch TrainingArguments" not in str(error):
            raise
        found = "; ".join(line.strip(" -") for line in str(error).splitlines()[1:-1])
        raise UsageError(
            f'the DeepSpeed configuration contradicts the flags: {found}: write "auto" there, or give the same'
        ) from error


def unknown_keys(config: dict[str, Any]) -> dict[str, str | None]:
    """The keys of a configuration that DeepSpeed does not know, dotted, each with the nearest that it knows.

    Raises `ValueError` where DeepSpeed refuses a value, or a key that it knows to be gone.
    """
    # Here, because importing it chooses the device.
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

    automatic = {key for key, value in config.items() if value == AUTO}
    left = {key: value for key, value in config.items() if key not in (*automatic, *_BATCH_KEYS)}
    asked = _Asked(_without_auto(left))
    asked["train_micro_batch_size_per_gpu"] = 1  # the real ones have to fit the number of processes
    refused: dict[str, str | None] = {}
    while True:
        try:
            DeepSpeedConfig(asked)
            refused |= {key: _nearest(key, asked.lookups) for key in automatic - asked.lookups}
            return dict(sorted((refused | dict(asked.ignored())).items()))
        except ValidationError as error:
            for found in error.errors():
                place = found["loc"]
                if found["type"] == "extra_forbidden":
                    refused[asked.remove(place)] = _nearest(place[-1], _fields())
                elif found["input"] is None:
                    asked.remove(place)
                else:
                    raise ValueError(f"{'.'.join(map(str, place))}: {found['msg']}") from error
        except (DeepSpeedConfigError, KeyError, TypeError, AssertionError, AttributeError) as error:
            raise ValueError(str(error)) from error


class _Asked(dict):
    """A dictionary that remembers which keys were looked up in it, present or not; so do those within it."""

    def __init__(self, values: dict[str, Any], path: str = "") -> None:
        super().__init__()
        self.path = path
        self.lookups: set[str] = set()
        for key, value in values.items():
            inner = _dotted(path, key)
            self[key] = _Asked(value, inner) if isinstance(value, dict) and inner not in _FREE else value

    def __contains__(self, key: object) -> bool:
        self.lookups.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.lookups.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.lookups.add(key)
        return super().get(key, default)

    def keys(self) -> KeysView[str]:
        """A view whose tests are lookups too."""
        return KeysView(self)

    def __iter__(self) -> Iterator[str]:  # without it, `Section(**self)` would go past the lookups
        return super().__iter__()

    def __copy__(self) -> "_Asked":
        return self  # DeepSpeed works on a copy; the lookups in it are the ones that count

    def sections(self) -> Iterator["_Asked"]:
        """This dictionary and all within it."""
        yield self
        for value in self.values():
            if isinstance(value, _Asked):
                yield from value.sections()

    def ignored(self) -> Iterator[tuple[str, str | None]]:
        """The dotted keys that nobody looked up, with the nearest that somebody did.

        A section without any lookup was handed over whole, to a pydantic model, which refuses what it does
        not know.
        """
        for section in self.sections():
            for key in dict.keys(section) - section.lookups if section.lookups else ():
                yield _dotted(section.path, key), _nearest(key, section.lookups)

    def remove(self, location: tuple[Any, ...]) -> str:
        """Take out a key that a model refused, by its place within the model's section; its dotted name."""
        for section in self.sections():
            inner: Any = section
            for part in location[:-1]:
                inner = dict.get(inner, part) if isinstance(inner, _Asked) else None
            if isinstance(inner, _Asked) and dict.__contains__(inner, location[-1]):
                del inner[location[-1]]
                return _dotted(inner.path, location[-1])
        raise ValueError(f"there is something wrong with {'.'.join(map(str, location))}")


def _fields() -> set[str]:
    """The names that pydantic models of DeepSpeed take."""
    models = [each for each in _descendants(BaseModel) if each.__module__.startswith("deepspeed")]
    fields = [pair for each in models for pair in each.model_fields.items()]
    return {name for key, field in fields for name in (key, field.alias) if name}


def _descendants(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for child in kind.__subclasses__():
        yield child
        yield from _descendants(child)


def _nearest(key: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)), None)


def _hint(near: str | None) -> str:
    return f"did you mean {near}?" if near else "nothing like it exists"


def _dotted(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _without_auto(section: dict[str, Any]) -> dict[str, Any]:
    """A section with None for "auto", which no field of a model is: it is taken out when the model says so."""
    return {
        key: _without_auto(value) if isinstance(value, dict) else None if value == AUTO else value
        for key, value in section.items()
    }


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is there twice")
    return dict(pairs)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
