"""Captions: pictures with descriptions, asked for in words drawn from a pool.

MiniGPT-4's detailed descriptions (Zhu et al. 2023, https://arxiv.org/abs/2304.10592). A record of the list
under "annotations", invented here in the published shape, and what becomes of it::

    {"image_id": "17", "caption": "A lighthouse stands on a cliff above a grey sea."}

    Turn("Please describe this picture.", "A lighthouse stands on a cliff above a grey sea.",
         (Image("cc_sbu_align/image/17.jpg"),))

COCO captions in Karpathy's file (Karpathy and Fei-Fei 2015, https://arxiv.org/abs/1412.2306). A record of the
list under "images"; one of its captions is drawn ("sentences" may also be a single one)::

    {"filename": "COCO_val2014_000000000042.jpg", "split": "train", "sentences": [
        {"raw": "A shoe on a shelf."}, {"raw": "Somebody put a shoe away."}]}

    Turn("What does this image show?", "Somebody put a shoe away.",
         (Image("coco/2014/COCO_val2014_000000000042.jpg"),))
"""

from utils.conversation import Conversation, Turn
from utils.data.adapters.cleaning import pick
from utils.data.spec import RawRecord

QUESTIONS = (
    "Describe the image.",
    "Describe this picture.",
    "Please describe this picture.",
    "Please describe the image.",
    "Could you describe what this picture shows?",
    "Can you describe the image for me?",
    "Would you describe this photo?",
    "What does this image show?",
    "What can be seen here?",
    "What is in this picture?",
    "What do you see in the image?",
    "What is this a picture of?",
    "What is shown here?",
    "Tell me what is in the image.",
    "Tell me what you see.",
    "Say what this image is about.",
    "Put this picture into words.",
    "How would you describe this image?",
    "How would you describe this scene to someone who cannot see it?",
    "Write a description of the image.",
    "Write a caption for this picture.",
    "Give a description of this photo.",
    "Explain what the picture shows.",
    "I would like to know what is in this image.",
)
"""Ways to ask for a description."""


def minigpt4(record: RawRecord) -> Conversation:
    """A description of a picture, asked for in a way that is drawn."""
    image_id, caption = record.fields["image_id"], record.fields["caption"]
    return _described(record, f"{image_id}.jpg", caption)


def coco_caption(record: RawRecord) -> Conversation:
    """One of a picture's captions, drawn, and asked for in a way that is drawn too."""
    sentences = record.fields["sentences"]
    sentences = [sentences] if isinstance(sentences, dict) else sentences
    if not sentences:
        raise record.error("it has no caption")
    return _described(record, record.fields["filename"], pick(sentences, record.rng)["raw"])


def _described(record: RawRecord, name: str, caption: str) -> Conversation:
    turn = Turn(pick(QUESTIONS, record.rng), caption.strip(), (record.image(name),))
    return Conversation((turn,), source=record.source)
