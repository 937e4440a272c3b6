"""Settings that can be changed while one talks."""

from dataclasses import fields, replace
from typing import Any

from chat.generation.sampling import Sampling
from chat.session import ChatSession

LENGTH = "length"
_KINDS = {each.name: each.type for each in fields(Sampling)}
SETTINGS = (*_KINDS, LENGTH)


class SettingError(ValueError):
    """A setting that there is not, or a value that it cannot have."""


def change_setting(session: ChatSession, name: str, value: str) -> None:
    """Set one of `SETTINGS`. Raises `SettingError`, and `SamplingError` for a value that makes no sense."""
    if name not in SETTINGS:
        raise SettingError(f"there is no setting {name!r}; there are {', '.join(SETTINGS)}")
    kind: type[float] | type[int] = float if _KINDS.get(name) is float else int
    try:
        number = kind(value)
    except ValueError as error:
        wanted = "a number" if kind is float else "a whole number"
        raise SettingError(f"{name} takes {wanted}, not {value!r}") from error
    if name != LENGTH:
        changed: dict[str, Any] = {name: number}
        session.sampling = replace(session.sampling, **changed)
    elif number < 1:
        raise SettingError(f"{LENGTH} is {number}; an answer needs at least 1 token")
    else:
        session.max_new_tokens = int(number)


def shown_settings(session: ChatSession) -> str:
    """All settings in one line."""
    values = {name: getattr(session.sampling, name) for name in _KINDS} | {LENGTH: session.max_new_tokens}
    return ", ".join(f"{name} {value:g}" for name, value in values.items())
