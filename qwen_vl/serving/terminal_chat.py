"""Chat in the terminal: pictures by path, answers as they grow, boxes drawn into a file."""

import sys
import warnings
from pathlib import Path

from qwen_vl.model.chat_qwen import SYSTEM
from qwen_vl.model.download_qwen import PictureError
from qwen_vl.model.image_loading_qwen import open_picture
from qwen_vl.model.logits_qwen import LogitsError
from qwen_vl.model.memory_qwen import ChatMemory

BOX_FILE = "answer_boxes.png"
COMMANDS = """\
/image PATH   show a picture with the next question (a path or an http(s) address)
/clear        forget the conversation
/help         this list
/quit         end (so does Ctrl-D); Ctrl-C stops an answer"""


class Session:
    """One conversation with a model: its history, and the pictures that go with the next question.

    Answers are written to `out`, everything else to `notes`, both text streams.
    """

    def __init__(self, model, tokenizer, *, system=SYSTEM, out=None, notes=None):
        self.model, self.tokenizer, self.system = model, tokenizer, system
        self.out, self.notes = out or sys.stdout, notes or sys.stderr
        self.memory = ChatMemory()  # each picture is encoded once, and of a prompt only what is new
        self.clear()

    def clear(self):
        """Forget everything that was said and shown."""
        self.history, self.waiting, self.num_pictures = [], [], 0
        self.memory.forget_turns()

    def show(self, reference):
        """Add a picture to the next question; PictureError, and no change, if it cannot be opened."""
        reference = local_path(reference)
        open_picture(reference)
        self.waiting.append(reference)

    def ask(self, text):
        """Write the answer to a question as it grows and return it; only then is it part of the conversation.

        Raises ValueError for a question that cannot be encoded and PictureError for a picture in it.
        """
        labels = enumerate(self.waiting, start=self.num_pictures + 1)
        query = "".join(f"Picture {n}: <img>{reference}</img>\n" for n, reference in labels) + text
        shown = ""
        options = {"history": self.history, "system": self.system, "memory": self.memory}
        for answer in self.model.chat_stream(self.tokenizer, query, **options):
            # Text only grows at its end, except when a model invents a picture tag: then it is written anew.
            self.out.write(answer[len(shown) :] if answer.startswith(shown) else f"\n{answer}")
            self.out.flush()
            shown = answer
        self.out.write("\n")
        self.history.append((query, shown.strip()))
        self.num_pictures, self.waiting = self.num_pictures + len(self.waiting), []
        return shown.strip()

    def draw(self, answer, path):
        """Draw the boxes of an answer on the latest picture into the file `path`; say so, or why it was not possible.

        Nothing happens for an answer without boxes. Raises OSError when the file cannot be written.
        """
        if "<box>" not in answer:
            return
        with warnings.catch_warnings(record=True) as caught:  # of boxes that are malformed, and of missing fonts
            warnings.simplefilter("always")
            try:
                picture = self.tokenizer.draw_bbox_on_latest_picture(answer, self.history)
            except PictureError as error:  # gone since it was shown
                return self.note(f"the boxes of this answer cannot be drawn: {error}")
        for warning in caught:
            self.note(warning.message)
        if picture is None:
            return None if caught else self.note("this answer has boxes, but there is no picture to draw them on")
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        self.note(f"boxes drawn into {path}")

    def note(self, text):
        """One line for the user that is not part of the answer."""
        print(f"({text})", file=self.notes)


def local_path(reference):
    """A reference as typed by a person: quotes around it and ~ are resolved."""
    reference = reference.strip()
    if len(reference) > 1 and reference[0] == reference[-1] and reference[0] in "'\"":
        reference = reference[1:-1]
    return str(Path(reference).expanduser()) if reference.startswith("~") else reference


def free_path(path):
    """`boxes.png` -> the first of `boxes_1.png`, `boxes_2.png`, .. that does not exist."""
    path, number = Path(path), 1
    while (numbered := path.with_stem(f"{path.stem}_{number}")).exists():
        number += 1
    return numbered


def converse(session, box_file):
    """Read questions and commands from standard input until /quit or its end; problems are told, and it goes on."""
    print(f"Ask anything.\n{COMMANDS}", file=session.notes)
    for picture in session.waiting:
        session.note(f"the first question goes with {picture}")
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
        except LogitsError:  # these weights will not answer, whatever is asked: an error of the whole command
            raise
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=session.notes)
        except KeyboardInterrupt:
            session.note("stopped; this question and its answer are forgotten")


def command(session, line):
    """Do what a line that begins with a slash says."""
    name, _, argument = line.partition(" ")
    if name == "/image" and argument.strip():
        session.show(argument)
        session.note(f"the next question goes with {len(session.waiting)} picture(s)")
    elif name == "/clear":
        session.clear()
        session.note("forgotten")
    elif name == "/help":
        print(COMMANDS, file=session.notes)
    else:
        session.note(f"no command {line!r}; /help lists them")
