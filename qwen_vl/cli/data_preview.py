"""`qwen-vl data preview`: a page that shows conversations as they are trained on."""

from collections.abc import Sequence
from pathlib import Path

from qwen_vl.data.chatml import LOSS_ON, EncodeOptions
from qwen_vl.data.check.check import printable
from qwen_vl.data.preview import html_page, png_page
from qwen_vl.data.preview.preview import preview
from qwen_vl.files import whole_file

from .parsers import Parser, add_hub, name_models, positive

WRITERS = {"html": html_page.render, "png": png_page.render}  # format: (page) -> bytes


def main(argv: Sequence[str]) -> None:
    """Write the page that the command line asks for."""
    arguments = _parser().parse_args(argv)
    name_models(arguments, "model")
    out, form = _output(arguments.out, arguments.format)
    page = preview(
        arguments.file,
        arguments.model,
        num=arguments.num,
        ids=arguments.ids,
        image_folder=arguments.image_folder,
        encoding=EncodeOptions(
            max_length=arguments.max_length, loss_on=arguments.loss_on, control_tokens=arguments.allow_control_tokens
        ),
    )
    content = WRITERS[form](page)
    with whole_file(out) as file:
        file.write(content)
    print(printable(f"{out}: " + ", ".join(f"{what} {number}" for what, number in page.totals())))


def _output(out: str | None, form: str | None) -> tuple[Path, str]:
    """Return the path and the format (html or png) of the page. Either follows from the other if it is not given."""
    suffix = Path(out).suffix.lower().lstrip(".") if out else ""
    form = form or (suffix if suffix in WRITERS else "html")
    if suffix and suffix != form:
        raise ValueError(f"--out {out}: a page of format {form} ends with .{form}; correct --out or --format")
    return Path(out or f"preview.{form}"), form


def _parser() -> Parser:
    parser = Parser(
        prog="qwen-vl data preview",
        description="Write a page that shows conversations as they are trained on: images with their boxes, the "
        "turns, and every token with its loss mask.",
    )
    parser.add_argument("file", help="conversation file (docs/data.md)")
    parser.add_argument("--model", required=True, help="checkpoint whose tokenizer is used: a folder or a hub name")
    parser.add_argument("--out", help="the page to write (default: preview.html or preview.png)")
    parser.add_argument("--format", choices=WRITERS, help="html or png (default: what --out ends with, else html)")
    parser.add_argument("--num", type=positive, default=20, help="conversations shown, from the start (default: 20)")
    parser.add_argument("--ids", nargs="+", help="show the conversations with these ids instead")
    parser.add_argument("--image_folder", help="where relative images are, if not next to the file")
    parser.add_argument("--max_length", "--model_max_length", type=positive, help="as in a run: marks what it cuts")
    parser.add_argument("--loss_on", choices=LOSS_ON, default=LOSS_ON[0], help="as in a run (default: %(default)s)")
    parser.add_argument("--allow_control_tokens", action="store_true", help="markers such as <|im_end|> become tokens")
    add_hub(parser)
    return parser
