"""The preview as an HTML page: data cannot break its markup, and it needs nothing else."""

import shutil
import subprocess

import pytest
from helpers.pages import Page
from PIL import Image, ImageColor

from qwen_vl.data.preview import html_page, preview
from qwen_vl.model.box_drawing_qwen import COLORS


def test_the_page_is_inert_and_needs_nothing_else(data, make_checkpoint):
    """Show markup in the data as text. Nothing is fetched and no script runs."""
    content = html_page.render(preview.preview(data, make_checkpoint()))
    parsed = Page(content)
    assert not {"script", "link", "iframe", "object", "form", "a"} & set(parsed.tags)
    for name, value in parsed.attributes:
        assert not name.startswith("on") and name != "href"
        if name == "src":
            assert value.startswith("data:image/")
    assert b"url(" not in content and b"@import" not in content and b"\x00" not in content and b"\x1b" not in content
    assert "<script>7</script>" in parsed.text and '</span><script>alert("1")' in parsed.text
    assert "\u2400\u241b\u2421" in parsed.text and "weight 2" in parsed.text
    assert "not opened1" in "".join(parsed.text.split("\n")) and "'gone&.png': no such file" in parsed.text
    assert parsed.tags.count("img") == 2  # and the missing one is an error in its place


def test_a_browser_shows_it(data, make_checkpoint, tmp_path):
    """Render with Chromium: images are shown, token colors are painted, no request is made."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium on this machine")
    page, shot = tmp_path / "preview.html", tmp_path / "shot.png"
    page.write_bytes(html_page.render(preview.preview(data, make_checkpoint())))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1600"]
    options += [f"--screenshot={shot}", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([browser, *options, page.as_uri()], capture_output=True, timeout=120, text=True)
    assert shot.is_file(), done.stderr[-2000:]
    colors = {color: count for count, color in Image.open(shot).convert("RGB").getcolors(2**22)}
    for color in ("#bfe8c9", "#eef0f3", COLORS[0], COLORS[-1]):
        assert colors.get(ImageColor.getrgb(color), 0) > 50, color
    assert "evil.example" not in done.stderr and "Refused" not in done.stderr
