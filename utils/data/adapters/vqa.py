"""Questions about pictures, with short answers: A-OKVQA and OCR-VQA.

A-OKVQA asks for knowledge and gives reasons (Schwenk et al. 2022, https://arxiv.org/abs/2206.01718). A record,
invented here in the published shape, and what becomes of it: the question and a "why?", the choice and then
its reasons::

    {"image_id": 4211, "question": "What is the umbrella for?", "choices": ["rain", "sun", "show", "snow"],
     "correct_choice_idx": 1, "rationales": ["the sky is clear", "People wear sunglasses."]}

    Turn("What is the umbrella for? How do you know?",
         "The answer is sun. The sky is clear. People wear sunglasses.",
         (Image("coco/train2017/000000004211.jpg"),))

OCR-VQA asks about book covers (Mishra et al. 2019, https://ocr-vqa.github.io). The file is one object of
records by id; one question of a record is drawn each time, and the picture bears the ending of its URL::

    {"0140000001": {"imageURL": "http://images.example/I/51ab.gif", "title": "Low Tide",
                    "questions": ["Who wrote this book?", "What is the title?"],
                    "answers": ["Ann Reed", "Low Tide"]}}

    Turn("Who wrote this book?", "Ann Reed", (Image("OCR_VQA/images/0140000001.gif"),))

Some covers were not to be had, and a picture of one pixel stands in their place: those records are left out.
"""

from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import PIL.Image

from utils.conversation import Conversation, Image, Turn
from utils.data.adapters.cleaning import as_sentence, one_line, pick
from utils.data.spec import LeftOut, RawRecord

WHY = (
    "Why?",
    "Why is that?",
    "How do you know?",
    "How can you tell?",
    "What makes you think so?",
    "Please say why.",
    "Give a reason.",
    "Explain your answer.",
)
"""Ways to ask for the reasons of an answer."""

_COCO_DIGITS = 12


def aokvqa(record: RawRecord) -> Conversation:
    """A question with a request for reasons, in words drawn; the right choice, then its reasons, each once."""
    fields = record.fields
    choices, right = fields["choices"], fields["correct_choice_idx"]
    if not 0 <= right < len(choices):
        raise record.error(f"its correct choice is number {right} of {len(choices)} choices")
    reasons = dict.fromkeys(as_sentence(reason) for reason in fields["rationales"] if reason.strip())
    answer = " ".join([f"The answer is {choices[right].strip()}.", *reasons])
    question = f"{one_line(fields['question'])} {pick(WHY, record.rng)}"
    image = record.image(f"{str(fields['image_id']).zfill(_COCO_DIGITS)}.jpg")
    return Conversation((Turn(question, answer, (image,)),), source=record.source)


def ocr_vqa(record: RawRecord) -> Conversation | LeftOut:
    """One question of a record, drawn, with its answer."""
    questions, answers = record.fields["questions"], record.fields["answers"]
    if not questions or len(questions) != len(answers):
        raise record.error(f"it has {len(questions)} questions and {len(answers)} answers")
    ending = PurePosixPath(urlsplit(record.fields["imageURL"]).path).suffix
    image = record.image(f"{record.fields['id']}{ending}")
    if _is_stand_in(image):
        return LeftOut("its image is a single pixel wide or high")
    question, answer = pick(list(zip(questions, answers, strict=True)), record.rng)
    return Conversation((Turn(one_line(question), answer.strip(), (image,)),), source=record.source)


def _is_stand_in(image: Image) -> bool:
    """Whether the picture is a line or a dot; only its header is read.

    A file that is missing or broken is none: it is named where pictures are decoded.
    """
    if not isinstance(image.source, Path):
        return False
    try:
        with PIL.Image.open(image.source) as opened:
            return min(opened.size) <= 1
    except (OSError, PIL.Image.DecompressionBombError):
        return False
