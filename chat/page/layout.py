"""What stands on the page, its example cards too, and what its buttons do."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image

from chat.generation.decoding import Sampling
from chat.images import open_image
from chat.page.page_session import AnswerSettings, PageSession, SharedEngine
from chat.saved_dialogues import DialogueFileError, load_dialogue
from chat.serving.errors import ApiError
from chat.serving.images import FORMATS
from utils.commands import ROOT
from utils.conversation import Image, ImageError, Turn
from utils.distributed import get_logger

logger = get_logger(__name__)

TITLE = "VisualChat"
STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
THEME = gr.themes.Default(
    primary_hue="blue",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],  # the machine's own: nothing is fetched
)
Typed = dict[str, Any]
"""What stands in the box: its `text`, and the paths of its `files`."""

EXAMPLES = "examples"
"""The folder of a checkpoint that holds dialogues, as /save and "Download" write them."""

IMAGES = ROOT / "eval" / "eval_data" / "image"
GENERAL_EXAMPLES = (
    ("What is in this image?", ("cat.jpg",)),
    ("What is different between image 1 and image 2?", ("street_day.png", "street_evening.png")),
    ("Tell the story of these four images.", ("comic_1.png", "comic_2.png", "comic_3.png", "comic_4.png")),
)
"""The cards of a checkpoint that brings none."""

NOTHING: Typed = {"text": "", "files": []}
_EXTENSIONS = [f".{kind.lower()}" for kind in (*FORMATS, "JPG")]


def build_page(
    shared: SharedEngine,
    name: str,
    defaults: AnswerSettings,
    most_tokens: int,
    examples: Sequence[dict[str, Any]],
    folder: Path,
) -> gr.Blocks:
    """The page over a model called `name`; downloads are written to `folder`."""
    with gr.Blocks(
        title=f"{name} · {TITLE}", analytics_enabled=False, fill_height=True, delete_cache=(3600, 86400)
    ) as page:
        session = gr.State(lambda: PageSession(shared), delete_callback=PageSession.clear)
        with gr.Row(elem_id="head"):
            gr.HTML(f"<h1>{TITLE}</h1><p title='the model'>{escape(name)}</p>", padding=False)
            new = gr.Button("New dialogue", elem_id="new", size="sm", scale=0, min_width=120, visible=False)
            download = gr.DownloadButton(
                "Download", elem_id="download", size="sm", scale=0, min_width=100, visible=False
            )
        chat = gr.Chatbot(
            elem_id="chat",
            show_label=False,
            scale=1,
            min_height=260,
            layout="bubble",
            render_markdown=False,  # an answer is text; as Markdown it could fetch things
            latex_delimiters=[],
            buttons=["copy"],
            allow_file_downloads=False,  # the visitor has them: they are his own
            placeholder="Ask about one image or several, over as many rounds as you like.",
            examples=list(examples),
        )
        status = gr.HTML(elem_id="status", padding=False)
        box = gr.MultimodalTextbox(
            elem_id="box",
            show_label=False,
            placeholder="Ask a question, add images",
            file_types=_EXTENSIONS,
            file_count="multiple",
            sources=["upload"],
            max_plain_text_length=100_000,
            autofocus=True,
        )
        settings = _settings(defaults, most_tokens)

        shown = [chat, status, box, new, download, session]
        private = {"api_visibility": "private", "show_progress": "hidden", "queue": True}

        def show(guest: PageSession, busy: bool = False, typed: Typed | None = None) -> tuple[Any, ...]:
            """The page as it is now; `typed` None leaves the box to who is typing there."""
            kept = _kept(guest, folder) if guest.turns and not busy else None
            return (
                chat_messages(guest.shown, guest.files),
                escape("answering …" if busy else guest.status),
                gr.MultimodalTextbox(
                    **({} if typed is None else {"value": typed}), submit_btn=not busy, stop_btn=busy
                ),
                gr.Button(visible=bool(guest.shown)),
                gr.DownloadButton(value=kept, visible=bool(guest.shown), interactive=kept is not None),
                guest,
            )

        def answer(
            guest: PageSession, question: str, files: Sequence[str], *wanted: Any
        ) -> Iterator[tuple[Any, ...]]:
            given_back = None
            try:
                images = guest.open_files(files)
                steps = guest.ask(question, images, _answer_settings(*wanted))
                yield show(guest, busy=True, typed=NOTHING)
                for _ in steps:
                    yield show(guest, busy=True)
            except (ApiError, ValueError) as error:  # the second: a setting that makes no sense
                gr.Warning(escape(getattr(error, "message", str(error))), title="Not asked")
                given_back = _typed(question, files)
            yield show(guest, typed=given_back)

        def submitted(typed: Typed, guest: PageSession, *wanted: Any) -> Iterator[tuple[Any, ...]]:
            if not typed["text"].strip():
                gr.Warning("Type a question; the images go with it.", title="Not asked")
                yield show(guest)
                return
            yield from answer(guest, typed["text"].strip(), typed["files"], *wanted)

        def retried(guest: PageSession, *wanted: Any) -> Iterator[tuple[Any, ...]]:
            turn = guest.undo()
            if turn is None:
                yield show(guest)
                return
            yield from answer(guest, turn.question, _files(turn, guest), *wanted)

        def undone(guest: PageSession) -> tuple[Any, ...]:
            turn = guest.undo()
            return show(guest, typed=None if turn is None else _typed(turn.question, _files(turn, guest)))

        def cleared(guest: PageSession) -> tuple[Any, ...]:
            guest.clear()
            return show(guest, typed=NOTHING)

        def example(chosen: gr.SelectData, guest: PageSession, *wanted: Any) -> Iterator[tuple[Any, ...]]:
            files = [each["path"] for each in chosen.value.get("files", ())]
            yield from answer(guest, chosen.value["text"], files, *wanted)

        at_once = {**private, "concurrency_limit": None}  # the engine says who is next
        box.submit(submitted, [box, session, *settings], shown, **at_once)
        chat.retry(retried, [session, *settings], shown, **at_once)
        chat.example_select(example, [session, *settings], shown, **at_once)
        chat.undo(undone, [session], shown, **private)
        box.stop(PageSession.stop, [session], None, **at_once)
        gr.on([new.click, chat.clear], cleared, [session], shown, **at_once)
    return page


def _settings(defaults: AnswerSettings, most_tokens: int) -> list[gr.components.Component]:
    """In the order in which `_answer_settings` takes them."""
    sampling = defaults.sampling
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        with gr.Row():
            length = gr.Slider(
                1, most_tokens, defaults.max_new_tokens, step=1, label="Tokens of an answer, at most"
            )
            temperature = gr.Slider(
                0, 2, sampling.temperature, step=0.05, label="Temperature (0: the likeliest token)"
            )
        with gr.Row():
            top_p = gr.Slider(0.05, 1, sampling.top_p, step=0.05, label="Top p")
            top_k = gr.Number(sampling.top_k, precision=0, minimum=0, label="Top k (0: all)")
            penalty = gr.Slider(1, 2, sampling.repetition_penalty, step=0.05, label="Repetition penalty")
            seed = gr.Number(sampling.seed, precision=0, label="Seed")
        system = gr.Textbox(
            defaults.system or "", label="System text", placeholder="empty: the checkpoint's own", max_lines=4
        )
    return [length, temperature, top_p, top_k, penalty, seed, system]


def _answer_settings(
    length: float, temperature: float, top_p: float, top_k: float, penalty: float, seed: float, system: str
) -> AnswerSettings:
    sampling = Sampling(float(temperature), float(top_p), int(top_k or 0), float(penalty), int(seed or 0))
    return AnswerSettings(sampling, int(length), system.strip() or None)


def _typed(question: str, files: Sequence[str]) -> Typed:
    return {"text": question, "files": list(files)}


def _files(turn: Turn, guest: PageSession) -> list[str]:
    return [guest.files[open_image(image).digest] for image in turn.images]


def _kept(guest: PageSession, folder: Path) -> str:
    """The dialogue as a file to download."""
    if guest.kept is None:
        guest.kept = Path(tempfile.mkdtemp(dir=folder)) / "dialogue.json"
    guest.save(guest.kept)
    return str(guest.kept)


def chat_messages(turns: Sequence[Turn], files: Mapping[str, str]) -> list[dict[str, Any]]:
    """Messages for `gr.Chatbot`; `files` has the path of each image's file by the image's digest."""
    numbers = count(1)
    messages: list[dict[str, Any]] = []
    for turn in turns:
        images = [_image(next(numbers), image, files[image.digest]) for image in map(open_image, turn.images)]
        messages.append({"role": "user", "content": [*images, _text(turn.question)]})
        messages.append({"role": "assistant", "content": [_text(turn.answer or "…")]})
    return messages


def _image(number: int, image: Image, path: str) -> dict[str, Any]:
    """An image component: its label is the caption, and what is read aloud has the file's name too."""
    caption = f"Image {number}"
    return {
        "type": "component",
        "component": "image",
        "value": {"path": path, "meta": {"_type": "gradio.FileData"}},
        "props": {"label": caption, "alt_text": f"{caption}: {image.name}" if image.name else caption},
        "constructor_args": {},
    }


def _text(text: str) -> dict[str, Any]:
    """A text as it is: as a bare string Gradio would take off its indentation."""
    return {"type": "text", "text": text}


def examples_of(checkpoint: Path, folder: Path) -> list[dict[str, Any]]:
    """The checkpoint's example cards, as `gr.Chatbot` takes them; their images are written to `folder`."""
    if not (checkpoint / EXAMPLES).is_dir():
        return [
            {"text": text, "files": [str(IMAGES / name) for name in names]}
            for text, names in GENERAL_EXAMPLES
            if all((IMAGES / name).is_file() for name in names)
        ]
    cards = []
    for file in sorted((checkpoint / EXAMPLES).glob("*.json")):
        try:
            turns, _ = load_dialogue(file)
        except (DialogueFileError, ImageError) as error:
            logger.warning("note: this example is left out: %s", error)
            continue
        for turn in turns[:1]:
            files = [_written(image, folder / file.stem / str(n)) for n, image in enumerate(turn.images, 1)]
            cards.append({"text": turn.question, "files": files})
    return cards


def _written(image: Image, place: Path) -> str:
    """An image of a saved dialogue as a file there; returns its path, with the ending of its format."""
    content = image.source
    assert isinstance(content, bytes)
    path = place.with_suffix(f".{(PIL.Image.open(BytesIO(content)).format or 'png').lower()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)
