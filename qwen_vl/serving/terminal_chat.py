"""Chat in the terminal: images by path, streamed answers, boxes drawn into a file."""

import sys
import warnings
from pathlib import Path
from typing import TextIO

from qwen_vl.model import QWenLMHeadModel
from qwen_vl.model.chat_qwen import SYSTEM
from qwen_vl.model.download_qwen import ImageError
from qwen_vl.model.image_loading_qwen import read_image
from qwen_vl.model.logits_qwen import LogitsError
from qwen_vl.model.tokenization_qwen import QWenTokenizer
from qwen_vl.serving import session as sessions
from qwen_vl.serving.answerers import ModelAnswerer

BOX_FILE = "answer_boxes.png"
COMMANDS = """\
/image PATH   add an image to the next question (a path or an http(s) address)
/clear        forget the conversation
/help         this list
/quit         end (so does Ctrl-D); Ctrl-C stops an answer"""


class Session:
    """A `session.Session` with a model in a terminal.

    Answers are written to `out`, everything else to `notes`, both text streams.
    """

    def __init__(
        self,
        model: QWenLMHeadModel,
        tokenizer: QWenTokenizer,
        *,
        system: str = SYSTEM,
        out: TextIO | None = None,
        notes: TextIO | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.out, self.notes = out or sys.stdout, notes or sys.stderr
        self.answerer = ModelAnswerer(model, tokenizer)
        self.talk = sessions.Session(self.answerer, system=system, texts_name_images=True)

    @property
    def waiting(self) -> list[str]:
        """Return the references of the images that belong to the next question."""
        return [image.reference for image in self.talk.waiting]

    def clear(self) -> None:
        """Forget the conversation and its images."""
        self.talk.clear()
        self.answerer.memory.forget_turns()

    def show(self, reference: str) -> None:
        """Add an image to the next question. Raise ImageError, and change nothing, if it cannot be opened."""
        reference = local_path(reference)
        read_image(reference)
        self.talk.waiting.append(sessions.AskedImage(reference))

    def ask(self, text: str) -> str:
        """Stream the answer to a question to `out`, add both to the conversation and return the answer.

        An interrupted answer does not become part of the conversation.
        Raise ValueError if the question cannot be encoded, ImageError if an image in it cannot be opened.
        """
        shown = ""
        for answer in self.talk.ask(text):
            # Text only grows at its end, unless a model invents an image tag: then the whole text is written again.
            self.out.write(answer[len(shown) :] if answer.startswith(shown) else f"\n{answer}")
            self.out.flush()
            shown = answer
        self.out.write("\n")
        return shown.strip()

    def draw(self, answer: str, path: Path) -> None:
        """Draw the boxes of an answer on the latest image into the file `path`; note this, or why it is not possible.

        An answer without boxes changes nothing. Raise OSError if the file cannot be written.
        """
        if "<box>" not in answer:
            return
        turns = self.talk.turns
        history = [(query, turn.answer) for query, turn in zip(sessions.queries(turns), turns, strict=True)]
        with warnings.catch_warnings(record=True) as caught:  # about malformed boxes and missing fonts
            warnings.simplefilter("always")
            try:
                image = self.tokenizer.draw_bbox_on_latest_picture(answer, history)
            except ImageError as error:  # gone since it was shown
                return self.note(f"the boxes of this answer cannot be drawn: {error}")
        for warning in caught:
            self.note(warning.message)
        if image is None:
            return None if caught else self.note("this answer has boxes, but there is no image to draw them on")
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        self.note(f"boxes drawn into {path}")

    def note(self, text: object) -> None:
        """Print one line for the user that is not part of the answer."""
        print(f"({text})", file=self.notes)


def local_path(reference: str) -> str:
    """Return a reference that a user typed without the quotes around it, and with ~ expanded."""
    reference = reference.strip()
    if len(reference) > 1 and reference[0] == reference[-1] and reference[0] in "'\"":
        reference = reference[1:-1]
    return str(Path(reference).expanduser()) if reference.startswith("~") else reference


def free_path(path: str | Path) -> Path:
    """Return the first of `boxes_1.png`, `boxes_2.png`, .. that does not exist, if `path` is `boxes.png`."""
    path, number = Path(path), 1
    while (numbered := path.with_stem(f"{path.stem}_{number}")).exists():
        number += 1
    return numbered


def converse(session: Session, box_file: str | Path) -> None:
    """Read questions and commands from standard input until /quit or its end. Print errors and continue."""
    print(f"Ask anything.\n{COMMANDS}", file=session.notes)
    for image in session.waiting:
        session.note(f"the first question goes with {image}")
    while True:
        try:
            line = input("\nYou: ").strip()
        except EOFError:
            return
        try:
            if line == "/quit":
                return
            if line.startswith("/"):
                command(session, line)
            elif line:
                session.draw(session.ask(line), free_path(box_file))
        except LogitsError:  # these weights cannot answer any question: an error of the whole command
            raise
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=session.notes)
        except KeyboardInterrupt:
            session.note("stopped; this question and its answer are forgotten")


def command(session: Session, line: str) -> None:
    """Run the command of a line that begins with a slash."""
    name, _, argument = line.partition(" ")
    if name == "/image" and argument.strip():
        session.show(argument)
        session.note(f"the next question goes with {len(session.waiting)} image(s)")
    elif name == "/clear":
        session.clear()
        session.note("forgotten")
    elif name == "/help":
        print(COMMANDS, file=session.notes)
    else:
        session.note(f"no command {line!r}; /help lists them")
