"""`--data_debug_path`: look at what the model is taught, on a page, and as text and images."""

from pathlib import Path

from training.data_report import Report, draw_samples, write_report
from training.extension import Extension, Prepared
from utils.data import EncodedDataset, PackedDataset
from utils.distributed import is_main_process

PAGE = "index.html"
_SAMPLES = 10


class SamplePage(Extension):
    """Writes it before training begins."""

    def prepare(self, parts: Prepared) -> None:
        if is_main_process():
            dump_samples(parts.learned, parts.data_arguments.data_debug_path, parts.arguments.seed)


def dump_samples(rows: EncodedDataset | PackedDataset, folder: str | Path, seed: int) -> None:
    """Write 10 conversations, or packed rows with at least as many: a page that shows them token by token, and of
    each conversation sample_N.txt, as the template renders it, and sample_N_image_M.png.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw_samples(rows, _SAMPLES, seed)
    write_report(Report("Training samples", {"--seed": str(seed)}, drawn), folder / PAGE)
    for number, sample in enumerate(sample for row in drawn for sample in row.samples):
        source = " + ".join(sample.sources)
        (folder / f"sample_{number}.txt").write_text(f"source: {source}\n\n{sample.text}\n")
        for position, image in enumerate(sample.conversation.images, start=1):
            image.open().save(folder / f"sample_{number}_image_{position}.png")
