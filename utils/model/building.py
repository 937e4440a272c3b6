"""Join a pretrained decoder, a pretrained encoder and a new projector into a model that can learn to see."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipImageProcessor,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import deepspeed_config

from .configuration_visual_chat import IMAGE_SUMMARIES, VisualChatConfig
from .decoder_check import check_computes_mmca, outside_zero3
from .loading import grow_vocabulary, load_decoder
from .lora import PARTS, PUBLISHED, LoraSettings, inject_lora, last_layers, names_of, part_of_each
from .loss import Head
from .mmca import ImageGate
from .modeling_visual_chat import VisualChatForConditionalGeneration
from .pretrained_encoders import LOCAL_FOLDER, encoder_source, load_vision_tower, side_of, vision_config_of
from .processing_visual_chat import VisualChatProcessor
from .projector import build_projector
from .projector import image_seq_length as tokens_per_image
from .quantised import UNQUANTISED, FrozenBits, encoder_matrices, load_frozen
from .vision import image_size

logger = logging.getLogger(__name__)

IMAGE_TOKEN, IMAGE_SUMMARY_TOKEN = "<image>", "<image_summary>"


def build_visual_chat(
    language_model: str,
    vision_model: str,
    projector_type: str = "linear",
    attention: str = "mmca",
    image_layers: str = "full",
    image_gate: str = "none",
    image_summary: str = "none",
    lora: LoraSettings | None = None,
    dtype: torch.dtype | str | None = None,
    train: Sequence[str] = PUBLISHED,
    frozen_bits: FrozenBits = UNQUANTISED,
    tiles: int = 1,
) -> tuple[VisualChatForConditionalGeneration, VisualChatProcessor]:
    """Model and processor from two folders (or hub names) in Hugging Face format.

    Adds the image token (with `image_summary` "mean" that of summaries too, and a padding token where there is none),
    unties the head, freezes everything but what `train` names (see `lora.PARTS`). frozen_bits: of the matrices of
    decoder and encoder, where they are quantised. tiles: of an image at most, for the processor; 1 for none.
    Works inside DeepSpeed's ZeRO-3 (an `HfDeepSpeedConfig` alive): each process then holds its part of the weights.
    """
    seed = int(torch.randint(2**31, ()))  # new weights depend on it alone, however many processes share them
    processor = build_processor(language_model, vision_model, projector_type, image_summary, tiles)
    if attention != "causal":
        check_computes_mmca(AutoConfig.from_pretrained(language_model), attention, image_layers)
    decoder = load_frozen(load_decoder, language_model, dtype, frozen_bits.decoder)
    base_vocabulary = decoder.config.vocab_size
    grow_vocabulary(decoder, len(processor.tokenizer))
    whole = encoder_matrices(vision_config_of(vision_model))[1] if frozen_bits.encoder else ()
    tower = load_frozen(load_vision_tower, vision_model, decoder.dtype, frozen_bits.encoder, whole)
    config = VisualChatConfig(
        vision_config=tower.config,
        text_config=decoder.config,
        projector_type=projector_type,
        attention=attention,
        image_layers=image_layers,
        image_gate=image_gate,
        image_token_id=processor.image_token_id,
        image_summary_token_id=processor.image_summary_token_id,
        image_seq_length=processor.image_seq_length,
        lora=asdict(lora) if lora else None,
        frozen_from={
            "language_model": _lasting(language_model),
            "vision_model": _lasting(vision_model),
            "vocab_size": base_vocabulary,
        },
        trained_parts=of_base_models(train),
        dtype=decoder.dtype,
    )
    with _seeded(seed):
        projector, gate = _new_parts(config, decoder)
    model = _joined(config, tower, projector, decoder, gate)
    model.generation_config = _generation_config(processor)
    if lora:
        with _seeded(seed + 1):
            inject_lora(model, lora)
    freeze(model, train)
    return model, processor


def build_processor(
    language_model: str,
    vision_model: str,
    projector_type: str = "linear",
    image_summary: str = "none",
    tiles: int = 1,
) -> VisualChatProcessor:
    """The processor that `build_visual_chat` makes for the same folders; no weights are read."""
    for path in (language_model, vision_model):
        _refuse_missing_folder(path)
    if image_summary not in IMAGE_SUMMARIES:
        raise ValueError(f"image_summary is {image_summary!r}; choose one of {', '.join(IMAGE_SUMMARIES)}")
    summary = IMAGE_SUMMARY_TOKEN if image_summary == "mean" else None
    return VisualChatProcessor(
        load_image_processor(vision_model),
        _tokenizer_with(language_model, [IMAGE_TOKEN, summary] if summary else [IMAGE_TOKEN]),
        image_seq_length=tokens_per_image(projector_type, vision_config_of(vision_model)),
        image_token=IMAGE_TOKEN,
        image_summary_token=summary,
        tiles=tiles,
    )


def load_image_processor(path: str) -> BaseImageProcessor:
    """The preprocessing of an encoder's folder or name.

    Raises `ValueError` where it makes pictures of another size than the encoder takes.
    """
    source = encoder_source(path)
    if source.image_processor is not None:
        processor = source.image_processor()
    else:
        processor = AutoImageProcessor.from_pretrained(path)
    made, taken = side_of(processor), image_size(source.config)
    if made is None and source.config.model_type == "siglip2_vision_model":  # it would take the pixels apart
        square, how = {"height": taken, "width": taken}, ("resample", "image_mean", "image_std")
        return SiglipImageProcessor(size=square, **{name: getattr(processor, name) for name in how})
    if made is not None and made != taken:
        raise ValueError(
            f"the image processor of {path} makes pictures of {made} pixels, but its encoder takes {taken}: correct"
            " size and crop_size in preprocessor_config.json"
        )
    return processor


@dataclass(frozen=True)
class Learning:
    """How many parameters of each part learn, those of parts without any left out, and how many are frozen."""

    learns: dict[str, int]
    frozen: int

    @classmethod
    def of(cls, model: nn.Module) -> "Learning":
        """As the parameters' `requires_grad` says."""
        counts, frozen = dict.fromkeys(PARTS, 0), 0
        for parameter, part in zip(model.parameters(), part_of_each(model).values(), strict=True):
            size = elements(parameter)
            if parameter.requires_grad:
                counts[part] += size
            else:
                frozen += size
        return cls({part: count for part, count in counts.items() if count}, frozen)

    def describe(self) -> str:
        """The counts in a line."""
        parts = ", ".join(f"{part} {count:,}" for part, count in self.learns.items())
        return f"{sum(self.learns.values()):,} parameters ({parts}); frozen: {self.frozen:,}"


def elements(parameter: torch.Tensor) -> int:
    """How many numbers a weight holds: whole where ZeRO-3 has partitioned it, and where two are packed into a byte."""
    packed = getattr(parameter, "quant_state", None)
    return packed.shape.numel() if packed is not None else getattr(parameter, "ds_numel", parameter.numel())


def freeze(model: nn.Module, train: Sequence[str] = PUBLISHED) -> None:
    """Let the named parts learn and nothing else; a part that the model lacks is passed over.

    Raises `ValueError` for a part that there is not, and for more layers than the decoder has.
    """
    learning = names_of(model, train)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(name in learning)
        elif name in learning:
            raise ValueError(f"{name} is quantised, so it cannot learn")


def of_base_models(*sets: Sequence[str] | None) -> list[str] | None:
    """What several sets of parts together name of decoder and encoder; None for nothing."""
    words = [word for train in sets for word in train or ()]
    layers = last_layers(words)
    found = ["decoder"] if "decoder" in words else [f"decoder:top-{max(layers)}"] if layers else []
    return found + ["encoder"] * ("encoder" in words) or None


def _tokenizer_with(path: str, tokens: list[str]) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(path)
    if missing := [token for token in tokens if token not in tokenizer.get_vocab()]:
        tokenizer.add_special_tokens({"additional_special_tokens": missing})
        for token in missing:
            logger.info("added the token %s as id %d", token, tokenizer.convert_tokens_to_ids(token))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        logger.info("padding with %s", tokenizer.pad_token)
    return tokenizer


def _refuse_missing_folder(path: str) -> None:
    """A path that is none would be looked up as a hub name, and the error would be about that."""
    folder = path.removeprefix(LOCAL_FOLDER)
    is_path = folder.startswith((".", "/", "~")) or folder.count("/") > 1 or folder != path
    if is_path and not Path(folder).is_dir():
        raise ValueError(f"there is no folder {folder}; give a folder in Hugging Face format, or a hub name")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers from a seed of their own; those outside go on as before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _lasting(path: str) -> str:
    """A reference that holds from any folder: an absolute path, or a hub name as it is."""
    prefix = LOCAL_FOLDER if path.startswith(LOCAL_FOLDER) else ""
    folder = Path(path.removeprefix(prefix))
    return prefix + str(folder.resolve()) if folder.exists() else path


def _new_parts(config: VisualChatConfig, decoder: PreTrainedModel) -> tuple[nn.Module, ImageGate | None]:
    """A projector in the decoder's precision and, where there is one, a gate; made in parts where ZeRO-3 partitions."""
    context = nullcontext()
    if is_deepspeed_zero3_enabled():
        import deepspeed

        context = deepspeed.zero.Init(config_dict_or_path=deepspeed_config())
    with context:
        projector = build_projector(
            config.projector_type, config.vision_config, config.text_config.hidden_size
        )
        gate = ImageGate(decoder.config) if config.image_gate == "head" else None
    if not is_deepspeed_zero3_enabled():
        projector = projector.to(decoder.device, decoder.dtype)
        gate = gate and gate.to(decoder.device)
    return projector, gate


def _joined(
    config: VisualChatConfig,
    tower: PreTrainedModel,
    projector: nn.Module,
    decoder: PreTrainedModel,
    gate: ImageGate | None,
) -> VisualChatForConditionalGeneration:
    """The model of parts that exist already, perhaps partitioned over processes: nothing is initialised or copied."""
    with outside_zero3(), torch.device("meta"):
        model = VisualChatForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.model.multi_modal_projector = projector
    model.model.language_model = decoder.base_model
    model.model.image_gate = gate
    model.lm_head = Head.of(decoder.get_output_embeddings())
    return model


def _generation_config(processor: VisualChatProcessor) -> GenerationConfig:
    """Greedy, up to the EOS that closes an answer; what stands for images is never an answer."""
    tokenizer = processor.tokenizer
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=processor.placeholder_ids,
        do_sample=False,
    )
