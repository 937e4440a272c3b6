"""Request fields of OpenAI and of other servers that are not implemented here: accepted, ignored or refused.

One table says for each field which values ask for nothing, and what ignoring any other value would mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from chat.serving.errors import invalid, shortened

_EMPTY: tuple[Any, ...] = (False, "", [], {})


@dataclass(frozen=True)
class Field:
    """A field that is not built. null and the `neutral` values ask for nothing, whatever the `effect` of others:

    - `none`: the answer is the same with and without them; they are accepted.
    - `tunes`: they shift which of the model's answers is given; they are ignored, and the log says so.
    - `changes`: another answer is asked for, or another shape of it; they are refused.
    """

    effect: Literal["none", "tunes", "changes"]
    neutral: tuple[Any, ...] = _EMPTY


def _all(effect: Literal["none", "tunes", "changes"], *names: str) -> dict[str, Field]:
    return dict.fromkeys(names, Field(effect))


FIELDS: dict[str, Field] = {
    # Who asks, what is kept of it, and how soon it is answered.
    **_all("none", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    **_all(
        "none", "prompt_cache_retention", "cache_salt", "request_id", "priority", "keep_alive", "prediction"
    ),
    # How tools are called, where there are any; the tools themselves are refused below.
    "parallel_tool_calls": Field("none"),
    # How tokens are chosen.
    "frequency_penalty": Field("tunes", (0,)),
    "presence_penalty": Field("tunes", (0,)),
    "logit_bias": Field("tunes"),
    "min_p": Field("tunes", (0,)),
    "typical_p": Field("tunes", (1,)),
    "top_a": Field("tunes", (0,)),
    "tfs_z": Field("tunes", (1,)),
    "epsilon_cutoff": Field("tunes", (0,)),
    "eta_cutoff": Field("tunes", (0,)),
    "mirostat": Field("tunes", (0,)),
    **_all("tunes", "mirostat_tau", "mirostat_eta", "repeat_last_n"),
    "repeat_penalty": Field("tunes", (1,)),
    "no_repeat_ngram_size": Field("tunes", (0,)),
    "do_sample": Field("tunes", (True, False)),
    # Which of several candidates is given.
    "best_of": Field("tunes", (1,)),
    "num_beams": Field("tunes", (1,)),
    "use_beam_search": Field("tunes"),
    "length_penalty": Field("tunes", (1,)),
    "early_stopping": Field("tunes"),
    # How long and how thorough it is.
    "min_tokens": Field("tunes", (0,)),
    "reasoning_effort": Field("tunes", ("none",)),
    "verbosity": Field("tunes", ("medium",)),
    # How many answers, and what is told about them.
    "n": Field("changes", (1,)),
    "logprobs": Field("changes", (False,)),
    "top_logprobs": Field("changes", (0,)),
    "prompt_logprobs": Field("changes", (0, False)),
    "echo": Field("changes"),
    # Where the answer begins and ends.
    "ignore_eos": Field("changes"),
    "stop_token_ids": Field("changes"),
    "include_stop_str_in_output": Field("changes"),
    "continue_final_message": Field("changes"),
    "add_generation_prompt": Field("changes", (True,)),
    # What it may consist of.
    "skip_special_tokens": Field("changes", (True,)),
    "spaces_between_special_tokens": Field("changes", (True,)),
    "response_format": Field("changes", ({"type": "text"},)),
    "modalities": Field("changes", (["text"],)),
    **_all("changes", "audio", "bad_words", "allowed_token_ids", "structured_outputs"),
    **_all("changes", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    # What the model sees and may do.
    **_all("changes", "chat_template", "documents", "tools", "functions"),
    "chat_template_kwargs": Field("changes", ({}, {"enable_thinking": False})),
    "tool_choice": Field("changes", ("none", "auto")),
    "function_call": Field("changes", ("none", "auto")),
    "web_search_options": Field("changes", ()),
}


def ignored_fields(given: Mapping[str, Any], lenient: bool) -> tuple[str, ...]:
    """The names of those fields that ask for something and do not get it.

    Fields that the table does not know are refused, for they may be mistyped, unless the server is `lenient`.

    Raises `ApiError` (400) for the first that is refused.
    """
    ignored = []
    for name, value in given.items():
        field = FIELDS.get(name)
        if value is None or _is_one_of(value, field.neutral if field else _EMPTY):
            continue
        if field is None and not lenient:
            raise invalid(f"unknown field {shortened(name)}", shortened(name), "unknown_parameter")
        if field is not None and field.effect == "changes":
            raise invalid(f"{name}={shortened(value)} is not supported here", name, "unsupported_parameter")
        if field is None or field.effect == "tunes":
            ignored.append(shortened(name))
    return tuple(ignored)


def _is_one_of(value: Any, neutral: tuple[Any, ...]) -> bool:
    """True and 1 are equal to Python, but not to JSON."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral)
