"""The page itself: what is on it, and what its events do."""

import json
import mimetypes
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

try:
    import gradio as gr
except ImportError as error:
    raise ImportError(f"the web page needs gradio ({error}); install it with: pip install 'qwen-vl[web]'") from error

from qwen_vl.files import data_uri
from qwen_vl.serving.demo.scripts import CLICKS, CSS, DOWNLOAD, DRAWING
from qwen_vl.serving.demo.transcript import (
    board_html,
    error_html,
    examples_html,
    growing_html,
    question_html,
    transcript_html,
)
from qwen_vl.serving.demo.words import EXAMPLES, LANGUAGES, WORDS, language_of
from qwen_vl.serving.media.decode import decode
from qwen_vl.serving.media.policy import MediaPolicy
from qwen_vl.serving.session import Answerer, AskedImage, Session, Turn

EXAMPLES_DIR = Path(__file__).parents[3] / "data" / "examples"  # only in a checkout; an installed package has none
POLICY = MediaPolicy(media_urls="off")
SECONDS_BETWEEN_UPDATES = 0.08
MAX_THREADS = 256  # an answer takes one, while it waits for a token
DELETE_CACHE = (900, 3600)  # seconds between looks for old uploads, and the age at which they are deleted


class Conversation:
    """What the page keeps for one visitor: the session, and the uploaded files that are decoded already."""

    def __init__(self, answerer: Answerer) -> None:
        self.session = Session(answerer)
        self.files: dict[str, AskedImage] = {}
        self.edited: tuple[str, int] | None = None  # what the edit field holds: ("question" or "answer", index)

    def attach(self, paths: Sequence[str]) -> None:
        """Make the uploaded files the images of the next question. Raise ValueError for a file that is no image."""
        self.files = {path: self.files.get(path) or read_upload(path) for path in paths}
        self.session.waiting = list(self.files.values())


def read_upload(path: str) -> AskedImage:
    """Return an uploaded image, which keeps its bytes for the training record. Raise MediaError if it is refused."""
    with open(path, "rb") as file:
        content = file.read(POLICY.max_bytes + 1)
    if len(content) > POLICY.max_bytes:
        raise ValueError(f"the image has more than {POLICY.max_bytes} bytes; send a smaller file")
    opened = decode(content, max_pixels=POLICY.max_pixels, max_side=POLICY.max_side)
    kind = mimetypes.guess_type(path)[0] or "image/png"
    return AskedImage(data_uri(content, kind), opened)


def example_files(folder: str) -> list[tuple[str, str, str]]:
    """Return the examples whose image exists, with copies of the images in a folder that pages may serve."""
    found = []
    for name, english, chinese in EXAMPLES:
        if not name:
            found.append(("", english, chinese))
        elif (EXAMPLES_DIR / name).is_file():
            found.append((shutil.copy(EXAMPLES_DIR / name, folder), english, chinese))
    return found


def with_box(message: dict[str, Any], number: int, box: Sequence[int], num_images: int) -> dict[str, Any]:
    """Return the text field with a drawn box added. Without a name a box means the latest image, so others get one."""
    x1, y1, x2, y2 = (min(999, max(0, int(value))) for value in box)
    name = "" if number == num_images else f"Picture {number} "
    return {"text": f"{message['text']}{name}<box>({x1},{y1}),({x2},{y2})</box>", "files": message["files"]}


class Page:
    """The handlers of the page's events. Each gets the visitor's Conversation; nothing of a visitor is kept here."""

    def __init__(self, answerer: Answerer, language: str) -> None:
        self.answerer, self.language = answerer, language
        self.folder = tempfile.TemporaryDirectory(prefix="qwen_vl_examples_")
        self.examples = example_files(self.folder.name)

    def answering(
        self, talk: Conversation, turn: Turn, kept: int, stream: Iterator[str], words: dict[str, str], *opening: Any
    ) -> Iterator[Any]:
        """Yield (transcript, live, board, text field) while an answer grows; the first `kept` turns stay.

        opening: the board and the text field at first. Afterwards only the answer is sent, without the images, and what
        is typed in the meantime stays.
        """
        session, shown_at = talk.session, 0.0
        before = session.turns[:kept]
        images = [image for one in before for image in one.images]
        past = transcript_html(before, words, editable=False) if before else ""
        yield past + question_html(turn, images, words, None), growing_html("", words), *opening
        for text in stream:
            if time.monotonic() - shown_at > SECONDS_BETWEEN_UPDATES:
                shown_at = time.monotonic()
                yield gr.skip(), growing_html(text, words), gr.skip(), gr.skip()
        yield transcript_html(session.turns, words), "", self.board(talk, words), idle(words)

    def board(self, talk: Conversation, words: dict[str, str]) -> str:
        """Return the images of a conversation, to draw on."""
        return board_html(talk.session.images, words, len(talk.session.turns))

    def ask(self, talk: Conversation, message: dict[str, Any], model: str, language: str) -> Iterator[Any]:
        """Ask what the text field holds. Yield (transcript, live, board, text field)."""
        words, session = WORDS[language], talk.session
        try:
            talk.attach(message["files"])
            turn = Turn(message["text"], tuple(session.waiting))
            stream = session.ask(message["text"], model=self.named(model))
            opening = self.board(talk, words), busy(words)
            yield from self.answering(talk, turn, len(session.turns), stream, words, *opening)
            talk.files = {}
        except (ValueError, OSError) as error:
            yield self.failed(talk, error, words, message)

    def named(self, model: str) -> str | None:
        """Return the name of a chosen model, None where there is only one."""
        return model if len(self.answerer.models) > 1 else None

    def again(self, talk: Conversation, model: str, language: str) -> Iterator[Any]:
        """Answer the last question again. Yield as `ask`."""
        yield from self.ask_again(talk, len(talk.session.turns) - 1, None, model, language)

    def ask_again(self, talk: Conversation, index: int, text: str | None, model: str, language: str) -> Iterator[Any]:
        """Answer a question again, with a new text if given. Yield as `ask`."""
        words, session = WORDS[language], talk.session
        try:
            stream = session.ask_again(index, text, model=self.named(model))
            turn = session.turns[index] if 0 <= index < len(session.turns) else Turn("")
            turn = Turn(text if text is not None else turn.text, turn.images)
            opening = gr.skip(), busy(words, empty=False)
            yield from self.answering(talk, turn, max(index, 0), stream, words, *opening)
        except (ValueError, OSError) as error:
            yield self.failed(talk, error, words, None)

    def failed(self, talk: Conversation, error: Exception, words: dict[str, str], message: Any) -> Any:
        """Return the page after an error; a question goes back into the text field."""
        field = idle(words) if message is None else idle(words, message)
        if talk.session.is_busy:  # with another answer
            return gr.skip(), error_html(str(error), words), gr.skip(), gr.skip()
        return transcript_html(talk.session.turns, words), error_html(str(error), words), gr.skip(), field

    def attached(self, talk: Conversation, message: dict[str, Any], language: str) -> Any:
        """Return (board, live) after the files of the text field changed."""
        if talk.session.is_busy or list(talk.files) == message["files"]:
            return gr.skip(), gr.skip()
        try:
            talk.attach(message["files"])
        except (ValueError, OSError) as error:
            return gr.skip(), error_html(str(error), WORDS[language])
        return self.board(talk, WORDS[language]), ""

    def draw(self, talk: Conversation, message: dict[str, Any], event: gr.EventData) -> dict[str, Any]:
        """Return the text field with the box that the user drew."""
        return with_box(message, int(event.number), event.box, len(talk.session.images))

    def clear(self, talk: Conversation, language: str) -> Any:
        """Forget the conversation. Return (transcript, live, board, text field)."""
        words = WORDS[language]
        talk.session.clear()
        talk.files, talk.edited = {}, None
        return transcript_html([], words), "", board_html([], words), idle(words, {"text": "", "files": []})

    def edit(self, talk: Conversation, language: str, event: gr.EventData) -> Any:
        """Open the edit field. Return (panel, field)."""
        words, index = WORDS[language], int(event.index)
        if not 0 <= index < len(talk.session.turns) or event.what not in ("question", "answer"):
            return gr.skip(), gr.skip()
        turn = talk.session.turns[index]
        talk.edited = (event.what, index)
        text = turn.text if event.what == "question" else turn.answer
        return gr.Group(visible=True), gr.Textbox(value=text, label=words[f"edit_{event.what}"])

    def save(self, talk: Conversation, text: str, model: str, language: str) -> Iterator[Any]:
        """Save what was edited: an answer stays as corrected, a question is asked again. Yield as `ask`."""
        words, edited, talk.edited = WORDS[language], talk.edited, None
        if edited is None:
            return
        if edited[0] == "question":
            yield from self.ask_again(talk, edited[1], text, model, language)
            return
        try:
            talk.session.correct(edited[1], text)
        except ValueError as error:
            yield self.failed(talk, error, words, None)
            return
        yield transcript_html(talk.session.turns, words), "", gr.skip(), gr.skip()

    def record(self, talk: Conversation, language: str) -> Any:
        """Return (file content, live): the conversation as a training file."""
        try:
            file = {"time": time.time(), "records": [talk.session.record()]}  # the same file may be wanted again
            return json.dumps(file, ensure_ascii=False).replace("<", "\\u003c"), gr.skip()  # gradio warns of tags
        except ValueError as error:
            return gr.skip(), error_html(str(error), WORDS[language])

    def example(self, language: str, event: gr.EventData) -> dict[str, Any]:
        """Return the text field with an example."""
        path, english, chinese = self.examples[int(event.index) % len(self.examples)]
        return {"text": chinese if language == "zh" else english, "files": [path] if path else []}

    def speak(self, talk: Conversation, language: str) -> list[Any]:
        """Return every part of the page that has words, in a language and in the order of `build`."""
        words, session = WORDS[language], talk.session
        buttons = [gr.Button(words[name]) for name in ("regenerate", "clear", "download", "save", "cancel")]
        return [
            gr.Markdown(f"## {words['title']}\n{words['intro']}"),
            gr.skip() if session.is_busy else transcript_html(session.turns, words),
            self.board(talk, words),
            gr.MultimodalTextbox(placeholder=words["ask"]),
            *buttons,
            examples_html(self.examples, language),
            gr.Dropdown(label=words["model"]),
            gr.Markdown(words["warning"]),
        ]


def busy(words: dict[str, str], *, empty: bool = True) -> Any:
    """Return the text field during an answer: with a stop button."""
    value = {"value": {"text": "", "files": []}} if empty else {}
    return gr.MultimodalTextbox(submit_btn=False, stop_btn=True, placeholder=words["ask"], **value)


def idle(words: dict[str, str], message: dict[str, Any] | None = None) -> Any:
    """Return the text field when a question can be asked, filled with a message if given."""
    value = {} if message is None else {"value": message}
    return gr.MultimodalTextbox(submit_btn=True, stop_btn=False, placeholder=words["ask"], **value)


def text_field(words: dict[str, str]) -> gr.MultimodalTextbox:
    """Return the text field, which takes several images."""
    return gr.MultimodalTextbox(
        file_types=["image"], file_count="multiple", show_label=False, placeholder=words["ask"],
        max_plain_text_length=100_000, elem_id="qv-field",
    )  # fmt: skip


def head(words: dict[str, str], language: str) -> tuple[gr.Markdown, gr.Radio]:
    """Return the title with what the page is for, and the choice of a language."""
    languages = [(name, key) for key, name in LANGUAGES.items()]
    with gr.Row(elem_id="qv-top"):
        return gr.Markdown(f"## {words['title']}\n{words['intro']}"), gr.Radio(
            languages, value=language, show_label=False, container=False, scale=0, min_width=190, elem_id="qv-language"
        )


def aside(words: dict[str, str], answerer: Answerer) -> tuple[gr.Dropdown, gr.HTML, gr.Markdown]:
    """Return the choice of a model, the images to draw on, and a warning."""
    names = list(answerer.models)
    return (
        gr.Dropdown(names, value=names[0], label=words["model"], filterable=False, elem_id="qv-model"),
        gr.HTML(board_html([], words), js_on_load=DRAWING, elem_id="qv-board"),
        gr.Markdown(words["warning"], elem_id="qv-note"),
    )


def build(answerer: Answerer, language: str = "en") -> gr.Blocks:
    """Return the page over an answerer; `?lang=zh` in its address overrides the language."""
    page, words = Page(answerer, language), WORDS[language]
    with gr.Blocks(title=words["title"], analytics_enabled=False, delete_cache=DELETE_CACHE) as blocks:
        talk = gr.State(None)
        intro, switch = head(words, language)
        with gr.Row(elem_id="qv-page"):
            with gr.Column(scale=3, min_width=320):
                past = gr.HTML(transcript_html([], words), js_on_load=CLICKS, elem_id="qv-past")
                live = gr.HTML("", js_on_load=None, elem_id="qv-live")
                with gr.Group(visible=False, elem_id="qv-panel") as panel:
                    edit_text = gr.Textbox(lines=3, max_lines=12, elem_id="qv-edit-text")
                    with gr.Row():
                        save, cancel = gr.Button(words["save"], variant="primary"), gr.Button(words["cancel"])
                field = text_field(words)
                with gr.Row(elem_id="qv-buttons"):
                    again = gr.Button(words["regenerate"], size="sm", min_width=90)
                    clear = gr.Button(words["clear"], size="sm", min_width=90)
                    download = gr.Button(words["download"], size="sm", min_width=180, scale=2)
                samples = gr.HTML(examples_html(page.examples, language), js_on_load=CLICKS, elem_id="qv-examples")
            with gr.Column(scale=2, min_width=300):
                model, board, note = aside(words, answerer)
        file = gr.HTML("", html_template="", js_on_load=DOWNLOAD)
        shown = [past, live, board, field]
        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

        def start(request: gr.Request) -> list[Any]:
            key, conversation = language_of(request.query_params.get("lang"), language), Conversation(answerer)
            return [conversation, gr.Radio(value=key), *page.speak(conversation, key)]

        spoken = [intro, past, board, field, again, clear, download, save, cancel, samples, model, note]
        blocks.load(start, None, [talk, switch, *spoken], **hidden)
        switch.input(page.speak, [talk, switch], spoken, **hidden)
        field.submit(page.ask, [talk, field, model, switch], shown, concurrency_limit=None, **hidden)
        field.stop(lambda conversation: conversation.session.stop(), talk, None, concurrency_limit=None, **hidden)
        field.change(page.attached, [talk, field, switch], [board, live], concurrency_limit=None, **hidden)
        board.submit(page.draw, [talk, field], field, **hidden)
        again.click(page.again, [talk, model, switch], shown, concurrency_limit=None, **hidden)
        clear.click(page.clear, [talk, switch], shown, concurrency_limit=None, **hidden)
        past.submit(page.edit, [talk, switch], [panel, edit_text], **hidden)
        cancel.click(lambda: gr.Group(visible=False), None, panel, **hidden)
        save.click(lambda: gr.Group(visible=False), None, panel, **hidden).then(
            page.save, [talk, edit_text, model, switch], shown, concurrency_limit=None, **hidden
        )
        download.click(page.record, [talk, switch], [file, live], **hidden)
        samples.submit(page.example, switch, field, **hidden)
    return blocks


def launch(
    answerer: Answerer, *, language: str = "en", host: str = "127.0.0.1", port: int | None = 8000,
    share: bool = False, inbrowser: bool = False, wait: bool = True,
) -> tuple[gr.Blocks, str]:  # fmt: skip
    """Serve the page and return (page, address); `wait`: only when it is stopped. It serves no other files."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    blocks = build(answerer, language)
    blocks.queue(default_concurrency_limit=64, api_open=False)
    _, address, _ = blocks.launch(
        server_name=host, server_port=port, share=share, inbrowser=inbrowser, prevent_thread_lock=not wait,
        ssr_mode=False, run_history=False, enable_monitoring=False, max_file_size=POLICY.max_bytes, css=CSS,
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]), quiet=not wait,
        footer_links=[], show_error=False, max_threads=MAX_THREADS,
    )  # fmt: skip
    return blocks, address
