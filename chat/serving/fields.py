"""Request fields of OpenAI and of other servers that are not implemented here: accepted, ignored or refused.

One table says for each field which values ask for nothing, and what ignoring any other value would mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from chat.serving.errors import invalid
from utils.commands import printable

_EMPTY: tuple[Any, ...] = (False, "", [], {})
Effect = Literal["none", "tunes", "changes"]


@dataclass(frozen=True)
class Field:
    """A field that is not built. null and the `neutral` values ask for nothing, whatever the `effect` of others:

    - `none`: the answer is the same with and without them; they are accepted.
    - `tunes`: they shift which of the model's answers is given; they are ignored, and the log says so.
    - `changes`: another answer is asked for, or another shape of it; they are refused.
    """

    effect: Effect
    neutral: tuple[Any, ...] = _EMPTY


def _all(effect: Effect, names: str, *neutral: Any) -> dict[str, Field]:
    """A field of each of these names, with the same neutral values; without any, those that are empty."""
    return dict.fromkeys(names.split(), Field(effect, neutral or _EMPTY))


FIELDS: dict[str, Field] = {
    # Who asks, what is kept of it, and how soon it is answered.
    **_all(
        "none", "user metadata store service_tier safety_identifier prompt_cache_key cache_salt request_id"
    ),
    **_all("none", "prompt_cache_retention priority keep_alive prediction"),
    # How tools are called, where there are any; the tools themselves are refused below.
    **_all("none", "parallel_tool_calls"),
    # How tokens are chosen.
    **_all("tunes", "frequency_penalty presence_penalty min_p top_a no_repeat_ngram_size", 0),
    **_all("tunes", "epsilon_cutoff eta_cutoff mirostat", 0),
    **_all("tunes", "typical_p tfs_z repeat_penalty", 1),
    **_all("tunes", "logit_bias mirostat_tau mirostat_eta repeat_last_n"),
    **_all("tunes", "do_sample", True, False),
    # Which of several candidates is given.
    **_all("tunes", "best_of num_beams length_penalty", 1),
    **_all("tunes", "use_beam_search early_stopping"),
    # How long and how thorough it is.
    **_all("tunes", "min_tokens", 0),
    **_all("tunes", "reasoning_effort", "none"),
    **_all("tunes", "verbosity", "medium"),
    # How many answers, and what is told about them.
    **_all("changes", "n", 1),
    **_all("changes", "logprobs", False),
    **_all("changes", "top_logprobs", 0),
    **_all("changes", "prompt_logprobs", 0, False),
    **_all("changes", "echo"),
    # Where the answer begins and ends.
    **_all("changes", "ignore_eos stop_token_ids include_stop_str_in_output continue_final_message"),
    **_all("changes", "add_generation_prompt", True),
    # What it may consist of.
    **_all("changes", "skip_special_tokens spaces_between_special_tokens", True),
    **_all("changes", "response_format", {"type": "text"}),
    **_all("changes", "modalities", ["text"]),
    **_all("changes", "audio bad_words allowed_token_ids structured_outputs"),
    **_all("changes", "guided_json guided_regex guided_choice guided_grammar"),
    # What the model sees and may do.
    **_all("changes", "chat_template documents tools functions"),
    **_all("changes", "chat_template_kwargs", {}, {"enable_thinking": False}),
    **_all("changes", "tool_choice function_call", "none", "auto"),
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
            raise invalid(f"unknown field {printable(name)}", printable(name), "unknown_parameter")
        if field is not None and field.effect == "changes":
            raise invalid(f"{name}={printable(value)} is not supported here", name, "unsupported_parameter")
        if field is None or field.effect == "tunes":
            ignored.append(printable(name))
    return tuple(ignored)


def _is_one_of(value: Any, neutral: tuple[Any, ...]) -> bool:
    """True and 1 are equal to Python, but not to JSON."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral)
