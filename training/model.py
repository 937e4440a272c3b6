"""The model that a training's flags ask for: built, with the parts that learn, and begun with what an earlier training
has learnt (`--init_from`), as where a projector is aligned first and tuned later.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, ProcessorMixin

from training.arguments import ModelArguments
from training.arguments.parser import VisualChatTrainingArguments
from utils.commands import UsageError
from utils.distributed import get_logger
from utils.hub import CONFIG, checkpoint_folder, require_model
from utils.model.building import Learning, build_visual_chat, of_base_models
from utils.model.checkpoint import readable_size
from utils.model.configuration_visual_chat import VisualChatConfig
from utils.model.loading import TRAINED_WEIGHTS, CheckpointError, gathered
from utils.model.lora import ENCODER, GATE, PUBLISHED, held_names, is_lora, names_of, part_of_each, plain_name
from utils.model.modeling_visual_chat import VisualChatForConditionalGeneration
from utils.model.pretrained_encoders import HUB, LOCAL_FOLDER, OPEN_CLIP_CONFIG, is_architecture
from utils.plugins import found

logger = get_logger(__name__)


def look_up(arguments: ModelArguments) -> None:
    """Find both models, in their folders or on the hub; `UsageError` that names the flag where one is not there."""
    require_model("--lm_model_name_or_path", arguments.lm_model_name_or_path)
    if not is_architecture(arguments.vision_model_name_or_path):
        vision = arguments.vision_model_name_or_path.removeprefix(LOCAL_FOLDER).removeprefix(HUB)
        require_model("--vision_model_name_or_path", vision, (CONFIG, OPEN_CLIP_CONFIG))


def load_model(
    model_arguments: ModelArguments,
    arguments: VisualChatTrainingArguments,
    resumed: Path | None = None,
    tiles: int = 1,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Encoder, projector and decoder as one model with its processor; logs what learns.

    resumed: the run's own checkpoint. What it holds is taken from there, whatever the run began with; DeepSpeed's
    state, which is read later, has only what learns. tiles: of an image at most, 1 for none.
    """
    logger.info(
        "attention: %s, image layers: %s, image gate: %s, image summary: %s, projector: %s",
        model_arguments.attention_name,
        model_arguments.images_go_through,
        model_arguments.gate,
        model_arguments.summary,
        model_arguments.projector,
    )
    try:
        model, processor = build_visual_chat(
            model_arguments.lm_model_name_or_path,
            model_arguments.vision_model_name_or_path,
            projector_type=model_arguments.projector,
            attention=model_arguments.attention_name,
            image_layers=model_arguments.images_go_through,
            image_gate=model_arguments.gate,
            image_summary=model_arguments.summary,
            lora=model_arguments.lora,
            dtype=arguments.dtype,
            train=model_arguments.train or PUBLISHED,
            frozen_bits=model_arguments.quantised,
            tiles=tiles,
        )
        if resumed is None:
            _begin(model, model_arguments)
        elif not is_merged(resumed):
            init_from(model, resumed)
        if arguments.epoch_checkpoint_form == "full" and model_arguments.lora:
            _refuse_merging(model)
        logger.info("learning: %s", learning(model, arguments))
        if arguments.use_liger_kernel:
            apply_liger(model.model.language_model)
        if arguments.torch_compile:
            compile_layers(model.model.language_model)
        return model, processor
    except UsageError:
        raise
    except CheckpointError as error:
        raise UsageError(f"{'--resume_from_checkpoint' if resumed else '--init_from'}: {error}") from error
    except (OSError, ValueError) as error:  # not found, no network, not a model of the kind that is needed
        raise UsageError(f"the model cannot be built: {error}") from error


def apply_liger(decoder: PreTrainedModel) -> None:
    """Put Liger's fused kernels for rotary embedding, RMSNorm and SwiGLU into a decoder, in place; for NVIDIA's GPUs.

    Not its loss: `utils.model.loss` computes losses chunk by chunk, at supervised rows only. Raises `ValueError` where
    that is not possible.
    """
    if find_spec("liger_kernel") is None:
        raise ValueError("--use_liger_kernel needs the package liger-kernel: pip install liger-kernel")
    if not torch.cuda.is_available():
        raise ValueError("--use_liger_kernel needs a GPU, and there is none; leave it out")
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    kind = decoder.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ValueError(f"--use_liger_kernel: the package has no kernels for decoders of kind {kind!r}")
    _apply_liger_kernel_to_instance(model=decoder, cross_entropy=False, fused_linear_cross_entropy=False)


def compile_layers(decoder: PreTrainedModel) -> None:
    """Compile norms and MLPs of a decoder's layers, in place, for rows of any number.

    Between the large products they are many small operations, which become few. Attention has kernels of its own.
    """
    for layer in decoder.layers:
        for name, part in layer.named_children():
            if name != "self_attn":
                part.forward = torch.compile(part.forward, dynamic=True)


def _begin(model: PreTrainedModel, model_arguments: ModelArguments) -> None:
    """Take over what `--init_from` has learnt; without it, refuse new parts that would never be anything."""
    if model_arguments.init_from:
        count = init_from(model, checkpoint_folder(model_arguments.init_from, "--init_from"))
        logger.info("beginning with what %s learnt: %d weights", model_arguments.init_from, count)
        return
    present = {part for part in part_of_each(model).values() if part in ("projector", "gate", "lora")}
    for part in sorted(present - Learning.of(model).learns.keys()):
        raise UsageError(
            f"--train {' '.join(model_arguments.train)} leaves out {part}, which is new and would stay as it begins:"
            " add it, or start from a checkpoint that has learnt it (--init_from)"
        )


def _refuse_merging(model: PreTrainedModel) -> None:
    """A resumed run has frozen weights from its checkpoint, so those must be there one by one."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    if held_names(model) & frozen:
        raise UsageError(
            "--epoch_checkpoint_form full merges adapters into the weights, so a run with this --train could not be"
            " resumed: give --epoch_checkpoint_form trained"
        )


def learning(model: PreTrainedModel, arguments: VisualChatTrainingArguments) -> str:
    """What learns and, where the memory plan is there, what it takes, in a line."""
    learns = Learning.of(model).describe()
    if (states := found("training.memory.states.states_of")) is None:
        return learns
    held = states(model, arguments)
    gradients = held.resting.get("gradients", held.accumulated)
    sizes = {name: held.resting[name] for name in ("weights", "optimizer")} | {"gradients": gradients}
    memory = ", ".join(f"{kind} {readable_size(size)}" for kind, size in sizes.items())
    return f"{learns}; on each device, activations aside: {memory}"


def init_from(model: VisualChatForConditionalGeneration, folder: str | Path) -> int:
    """Copy what a checkpoint, in either form, has learnt into a model just built; returns the number of weights.

    These are embedding, projector, image gate, adapters, and what was trained of decoder and encoder, which the model
    holds from then on, whether it goes on learning or not. Adapters that the checkpoint does not have stay as new. A
    gate that it does not have begins at 1 where it learnt under mmca, which is what it computed, and at 0 otherwise.
    Works on weights that ZeRO-3 has partitioned: all processes call.

    Raises `CheckpointError` where the folder is no checkpoint, where its adapters have no place in the model or
    are merged into weights that were frozen, where images took another way through its decoder, or where a weight is
    missing or has another shape.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} has no config.json; give a checkpoint: best, final or checkpoint-N of a run"
        )
    theirs = VisualChatConfig.from_pretrained(folder)
    if is_merged(folder):
        raise CheckpointError(
            f"{folder} has adapters merged into its decoder or encoder, or was written by save_pretrained; start from a"
            " checkpoint in the trained form (checkpoint-N, or a run with --checkpoint_form trained), or train on with"
            " that decoder's own folder"
        )
    held = names_of(model, (*PUBLISHED, *(theirs.trained_parts or ())))
    places = {plain_name(name): parameter for name, parameter in model.named_parameters() if name in held}
    if theirs.image_gate != "none" and model.model.image_gate is None:
        raise CheckpointError(
            f"{folder} has learnt an image gate that this run has not; give --image_gate head"
        )
    before, now = (
        f"--image_layers {each.image_layers} --image_summary {'mean' if each.image_summary_token_id else 'none'}"
        for each in (theirs, model.config)
    )
    if before != now:
        raise CheckpointError(f"{folder} has learnt with {before}, this run has {now}; give the former")
    found: set[str] = set()
    for name, tensor in _learnt(folder, set(places)):
        parameter = places[name]
        if not parameter.is_floating_point():
            raise CheckpointError(
                f"{folder} has trained weights of the {'encoder' if name.startswith(ENCODER) else 'decoder'}, which"
                " --frozen_bits would quantise; leave it out"
            )
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        if shape != tuple(tensor.shape):
            raise CheckpointError(
                f"{name} is {list(tensor.shape)} in {folder}, but {list(shape)} here: is it of the same decoder,"
                " encoder, projector and LoRA rank?"
            )
        with gathered(parameter, write=True), torch.no_grad():
            parameter.copy_(tensor)
        found.add(name)
    if theirs.image_gate == "none" and theirs.attention == "mmca" and model.model.image_gate is not None:
        with gathered(*model.model.image_gate.parameters(), write=True), torch.no_grad():
            for factors in model.model.image_gate.parameters():
                factors.fill_(1.0)
    missing = sorted(name for name in set(places) - found if not is_lora(name))
    if theirs.image_gate == "none":
        missing = [name for name in missing if not name.startswith(GATE)]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing[:3])}: its projector is {theirs.projector_type}, that of this run"
            f" {model.config.projector_type}; give the same --vis_proj"
        )
    model.config.trained_parts = of_base_models(model.config.trained_parts, theirs.trained_parts)
    return len(found)


def is_merged(folder: str | Path) -> bool:
    """Whether a checkpoint's weights can no longer be told from its base models': adapters are merged into them, or it
    was written by `save_pretrained`.
    """
    config = VisualChatConfig.from_pretrained(folder)
    return config.checkpoint_form == "full" and not config.frozen_from


def _learnt(folder: Path, names: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights called so, one after the other; `CheckpointError` for adapters that are not among them."""
    files = sorted(folder.glob("model*.safetensors"))
    trained = folder / TRAINED_WEIGHTS
    if trained.is_file():
        files = [trained]
    if not files:
        raise CheckpointError(f"{folder} holds no weights; copy the whole checkpoint")
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                homeless = [name for name in weights.keys() if is_lora(name) and name not in names]  # noqa: SIM118
                if homeless:
                    raise CheckpointError(
                        f"{folder} has adapters that this run has not ({homeless[0]}); give the same --lang_lora_dim,"
                        " --vis_lora_dim and names of modules"
                    )
                for name in sorted(names.intersection(weights.keys())):  # all processes in the same order
                    yield name, weights.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged ({error}); copy the checkpoint again") from error
