"""The image store's flags, as chat, server and evaluation take them."""

import argparse

import pytest

import chat.image_kv.store  # noqa: F401 (whose flags these are)
from chat.arguments import add_image_store_arguments, store_settings
from chat.session import ChatSession


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--max_seq_len", type=int, default=4096)
    add_image_store_arguments(parser)
    return parser.parse_args(flags)


def test_a_folder_serves_the_next_run(model_and_processor, pictures, tmp_path):
    flags = parsed("--image_store_gb", "0", "--image_store_folder", str(tmp_path / "kept"))
    for encoded in (2, 0):
        session = ChatSession(
            *model_and_processor, max_new_tokens=2, **store_settings(flags, *model_and_processor)
        )
        list(session.ask("What?", pictures[:2]))
        assert session.statistics[-1].encoded_images == encoded


def test_nothing_kept_where_nothing_is_to_be(build, model_and_processor):
    settings = store_settings(parsed("--no_image_store"), *model_and_processor)
    assert ChatSession(*model_and_processor, **settings).image_store is None
    causal = build("causal")
    assert ChatSession(*causal, **store_settings(parsed(), *causal)).image_store is None


def test_sizes_are_not_negative(capsys):
    with pytest.raises(SystemExit):
        parsed("--image_store_gb", "-1")
    assert "below 0" in capsys.readouterr().err
