"""Every flag of transformers' `TrainingArguments` works, has no meaning, or is refused by name; the page says which."""

import re
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainingArguments

from training.arguments.run import REFUSED, refuse_what_is_not_offered
from utils.commands import UsageError

PAGE = Path(__file__).resolve().parents[3] / "docs" / "training.md"
NEWER = {
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
}  # than the oldest transformers supported
KNOWN = {field.name: field for field in fields(TrainingArguments)}


def default(name: str) -> object:
    field = KNOWN[name]
    return field.default if field.default_factory is MISSING else field.default_factory()


def test_the_page_names_every_flag_of_transformers_once():
    section = PAGE.read_text().split("## transformers' flags")[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| ")]
    named = [name for _, flags in rows for name in re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", flags))]
    assert len(named) == len(set(named))
    assert set(named) - NEWER == KNOWN.keys() - NEWER, "transformers has other flags: try them, and say so"
    [refused] = [flags for title, flags in rows if title.strip() == "refused"]
    assert set(re.findall(r"`(\w+)`", refused)) == REFUSED.keys()


@pytest.mark.parametrize("flag", REFUSED)
def test_what_is_not_offered_is_refused_by_name(flag):
    given = {name: default(name) for name in KNOWN}
    refuse_what_is_not_offered(SimpleNamespace(**given))
    with pytest.raises(UsageError, match=f"^--{flag} is not supported: .{{20,}}"):
        refuse_what_is_not_offered(SimpleNamespace(**given | {flag: "another"}))
