"""The rounds of a chat: each line is a question, images, or a command."""

from collections.abc import Callable, Sequence

from chat.generation.sampling import SamplingError
from chat.image_paths import ImagePathError, leading_image_paths, local_path
from chat.loaded_images import LoadedImage, open_image
from chat.remote_images import RemoteImages
from chat.saved_dialogues import DialogueFileError
from chat.session import ChatError, ChatSession, Cost
from chat.terminal.commands import COMMANDS, OLD_WORDS, Leave, SettingError
from chat.terminal.screens import Screen
from utils.conversation import ConversationError, Image, ImageError

MAX_IMAGE_BYTES = 64 * 2**20

MISTAKES = (
    ChatError,
    ConversationError,
    DialogueFileError,
    ImageError,
    ImagePathError,
    SamplingError,
    SettingError,
    OSError,
    RuntimeError,  # torch's word for a device without memory left
)
"""What costs the user a line, and leaves everything as it was."""


class Repl:
    """A dialogue at the terminal: lines are read, evaluated, printed. Images wait for the next question."""

    def __init__(self, session: ChatSession, screen: Screen) -> None:
        self.session = session
        self.screen = screen
        self.waiting: tuple[LoadedImage, ...] = ()
        self._remote = RemoteImages(MAX_IMAGE_BYTES, anywhere=True)  # the user fetches for himself

    def run(self, read: Callable[[], str]) -> None:
        """Do what each line that is read says, until the user leaves; Ctrl-C stops an answer, or drops the line."""
        while True:
            try:
                self.handle(read())
            except (EOFError, Leave):
                return
            except KeyboardInterrupt:
                self.screen.note("Stopped. /quit or Ctrl-D leaves.")

    def handle(self, line: str) -> None:
        """Do what a line says. Raises `Leave`."""
        try:
            self._do(line.strip())
        except MISTAKES as error:
            self.screen.complain(str(error))

    def question(self, text: str) -> None:
        """Ask what may look like a command but is none."""
        try:
            self.ask(text)
        except MISTAKES as error:
            self.screen.complain(str(error))

    def _do(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        name = OLD_WORDS.get(line, name)
        if name in COMMANDS:
            COMMANDS[name].run(self, argument.strip())
            return
        paths, question = leading_image_paths(line)
        if not paths and name.startswith("/") and "/" not in name[1:]:
            raise ChatError(f"there is no command {name}; /help lists them")
        self.add_images(paths)
        if question:
            self.ask(question)

    def ask(self, question: str) -> None:
        """Ask with the images that wait, and show the answer as it comes."""
        pieces = self.session.ask(question, self.waiting)
        rounds = len(self.session.turns)
        self.screen.question(question)
        said = ""
        try:
            for piece in pieces:
                said += piece
                self.screen.piece(piece)
        finally:
            self.session.stop()
            if len(self.session.turns) > rounds:  # what was said stands, broken off or not
                self.waiting = ()
                cost = Cost(self.session.statistics[-1], len(self.session.images), self.session.max_seq_len)
                self.screen.end(said, cost)

    def add_images(self, places: Sequence[str]) -> None:
        """Images from files and from the web, for the next question: all of them or none."""
        new = [self._opened(place) for place in places]
        self.session.open_images([*self.waiting, *new])  # no more than may be in a dialogue
        before = len(self.session.images) + len(self.waiting)
        self.waiting = (*self.waiting, *new)
        for number, image in enumerate(new, start=before + 1):
            self.screen.note(f"  image {number}: {_shown(image)}, with the next question")

    def show_images(self) -> None:
        """All images by their numbers."""
        images = self.session.images
        for number, image in enumerate(images, start=1):
            self.screen.note(f"  image {number}: {_shown(open_image(image))}")
        for number, image in enumerate(self.waiting, start=len(images) + 1):
            self.screen.note(f"  image {number}: {_shown(image)}, with the next question")
        if not images and not self.waiting:
            self.screen.note("There are no images yet; /image FILE adds one.")

    def _opened(self, place: str) -> LoadedImage:
        if place.lower().startswith(("http://", "https://")):
            return open_image(Image(self._remote.fetch(place), place))
        return open_image(local_path(place))


def _shown(image: LoadedImage) -> str:
    return f"{image.name} ({image.size[0]} x {image.size[1]})"
