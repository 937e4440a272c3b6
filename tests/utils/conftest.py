"""Tiny tokenizers of the kinds that real decoders use, and a processor over each."""

import json

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

from tests.tiny import write_tokenizer
from utils.model.processing_visual_chat import VisualChatProcessor

SENTENCES = [
    "You are a powerful vision-language assistant.",
    "### Image 1: ",
    "### Question: How many red circles are there in the image? What is left of the blue square?",
    "### Answer: There are two red circles. The green triangle is left of the blue square, above 3 others.",
    "Yes, it is. No. It's the same colour in image 2; 10 or 12 objects: naïve café, dogs and cats!",
    "Describe   the picture (in detail), then compare both images... don't guess.",
]
LLAMA_3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@pytest.fixture(scope="session")
def sentencepiece_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """As LLaMA-2's model file: BPE with byte fallback; the unknown token serves as padding."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    exact = dict(normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True)
    tokenizer = write_tokenizer(folder, SENTENCES * 20, vocab_size=420, hard_vocab_limit=True, **exact)
    tokenizer.pad_token = tokenizer.unk_token
    return with_image_token(tokenizer)


@pytest.fixture(scope="session")
def llama_2_tokenizer(sentencepiece_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """As LLaMA-2's published tokenizer.json: a space is put before the text after each special token too."""
    state = json.loads(sentencepiece_tokenizer.backend_tokenizer.to_str())
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    state["normalizer"] = {"type": "Sequence", "normalizers": [prepend, replace]}
    state["pre_tokenizer"] = None
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **names)


def byte_level_tokenizer(
    pattern: str, trim_offsets: bool, bos: str | None, eos: str
) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the given pre-tokenisation."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(SENTENCES * 20, trainer)
    names = {"eos_token": eos, "pad_token": "<|pad|>"} | ({"bos_token": bos} if bos else {})
    return with_image_token(PreTrainedTokenizerFast(tokenizer_object=backend, **names))


def with_image_token(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    image = AddedToken("<image>", special=True, normalized=False)
    tokenizer.add_special_tokens({"additional_special_tokens": [image]})
    return tokenizer


@pytest.fixture(scope="session")
def llama_3_tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer(LLAMA_3_PATTERN, True, "<|begin_of_text|>", "<|eot_id|>")


@pytest.fixture(scope="session")
def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """No BOS, exact offsets."""
    return byte_level_tokenizer(LLAMA_3_PATTERN, False, None, "<|im_end|>")


@pytest.fixture(scope="session")
def gpt_2_tokenizer() -> PreTrainedTokenizerFast:
    """One token is both BOS and EOS."""
    return byte_level_tokenizer(GPT_2_PATTERN, True, "<|endoftext|>", "<|endoftext|>")


@pytest.fixture(scope="session")
def image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


@pytest.fixture(scope="session")
def processor(image_processor: CLIPImageProcessor, sentencepiece_tokenizer: PreTrainedTokenizerFast):
    return VisualChatProcessor(image_processor, sentencepiece_tokenizer, image_seq_length=5)


@pytest.fixture(scope="session", params=["sentencepiece", "llama_2", "llama_3", "qwen", "gpt_2"])
def any_processor(request: pytest.FixtureRequest, image_processor: CLIPImageProcessor) -> VisualChatProcessor:
    tokenizer = request.getfixturevalue(f"{request.param}_tokenizer")
    return VisualChatProcessor(image_processor, tokenizer, image_seq_length=5)
