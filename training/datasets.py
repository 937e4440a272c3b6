"""The data that the command line asks for."""

from pathlib import Path

from transformers import PreTrainedConfig, ProcessorMixin

from training.arguments import DataArguments
from training.arguments.model_and_data import images_per_row
from utils.conversation import longest_dialogue
from utils.data import BadRecords, EncodedDataset, Mixture, PackedDataset, build_dataset, split_dataset
from utils.data.bad_records import BAD_SAMPLES
from utils.data.batching.encode import ImageFeatures
from utils.data.readers.conversion_cache import use_cache_folder
from utils.distributed import get_logger

logger = get_logger(__name__)


def bad_records(arguments: DataArguments, output_dir: str | Path) -> BadRecords:
    """An empty list of bad records, to be kept in the output folder."""
    return BadRecords(arguments.max_bad_fraction, arguments.strict, Path(output_dir, BAD_SAMPLES))


def read_parts(arguments: DataArguments, seed: int, bad: BadRecords) -> tuple[Mixture, Mixture]:
    """The conversations to learn from, and those to evaluate on.

    Records that are not in their dataset's format go to `bad` instead.
    """
    if arguments.data_cache_path:
        use_cache_folder(arguments.data_cache_path)
    dataset = build_dataset(
        arguments.dataset_names,
        arguments.data_path,
        samples=arguments.samples,
        concatenate=arguments.dataset_concatenate_samples,
        weights=arguments.dataset_weights,
        image_folder=arguments.image_folder,
        max_images=arguments.max_num_image_per_sample,
        seed=seed,
        bad=bad,
    )
    return split_dataset(dataset, arguments.data_train_split_ratio, seed)


def longest_conversation(arguments: DataArguments, decoder: PreTrainedConfig) -> int:
    """The tokens of a conversation at most: `--max_seq_len`, or the decoder's positions where they are fewer."""
    longest = longest_dialogue(decoder, arguments.max_seq_len)
    if longest < arguments.max_seq_len:
        logger.warning(
            "the decoder has %s positions, fewer than --max_seq_len %s: conversations have at most %s tokens",
            f"{longest:,}",
            f"{arguments.max_seq_len:,}",
            f"{longest:,}",
        )
    return longest


def make_rows(
    part: Mixture,
    processor: ProcessorMixin,
    arguments: DataArguments,
    seed: int,
    features: ImageFeatures | None = None,
    longest: int | None = None,
) -> EncodedDataset | PackedDataset:
    """What a batch is made of: a conversation a row, or with `--packing` several side by side.

    `features` of pictures stand in the place of their pixels; `longest` is `longest_conversation`, without which
    conversations have `--max_seq_len` tokens at most.
    """
    longest = longest or arguments.max_seq_len
    conversations = EncodedDataset(part, processor, longest, features=features, on_bad="skip")
    if not arguments.packing:
        return conversations
    rows = PackedDataset(conversations, arguments.max_seq_len, images_per_row(arguments), seed)
    counts = f"{len(conversations):,} conversations into {len(rows):,} rows"
    logger.info("packed %s, %.1f %% of their tokens used", counts, 100 * rows.fill)
    return rows
