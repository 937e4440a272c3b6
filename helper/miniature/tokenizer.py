"""The miniature decoder's tokenizer: sentencepiece BPE with byte fallback, as LLaMA's, learnt on its dialogues."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import sentencepiece
from transformers import LlamaTokenizerFast

from helper.miniature.words import dialogue_in_words

VOCABULARY_SIZE = 512  # 3 control pieces, 256 bytes, the rest for the words of this world


def train_tokenizer(folder: Path, seed: int) -> LlamaTokenizerFast:
    """Learns the pieces on 2,000 dialogues, writes tokenizer.model into `folder`, and returns the fast form."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = [
        line for _ in range(2000) for line in dialogue_in_words(rng, images=3, rounds=8).text.split("\n")
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=model,  # a file of its own would have its path written into it
        model_type="bpe",
        vocab_size=VOCABULARY_SIZE,
        byte_fallback=True,
        character_coverage=1.0,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        split_digits=True,
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return LlamaTokenizerFast.from_pretrained(folder, legacy=False)
