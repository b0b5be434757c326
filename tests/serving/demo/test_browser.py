"""The page in a browser: an answer with boxes, a drawn box, two visitors, a narrow window, and no foreign request."""

import json
import shutil
import time

import pytest

from qwen_vl.serving.demo.page import launch

EVIL = '<img src="http://127.0.0.1:9/x"> ${1+1} {{value}} <script>window.bad = 1</script>'
ANSWER = f"<ref>the face</ref><box>(300,200),(620,700)</box> {EVIL}"


class Slow:
    models = ("base", "tuned")

    def answer(self, turns, *, system, model, sharing_key):
        for end in range(1, len(ANSWER) + 1):
            time.sleep(0.01)
            yield ANSWER[:end]


@pytest.fixture
def browser():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("chromium is not installed")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


def visit(browser, address, **options):
    page = browser.new_page(**options)
    page.goto(address)
    page.wait_for_selector(".qv-example")
    page.wait_for_timeout(1500)
    return page


@pytest.mark.slow
def test_the_page_in_a_browser(browser, tmp_path):
    blocks, address = launch(Slow(), port=None, wait=False)
    try:
        page, asked = visit(browser, address, viewport={"width": 1200, "height": 900}), []
        page.on("request", lambda request: asked.append(request.url))
        page.click(".qv-example >> nth=0")
        page.wait_for_selector(".qv-canvas")
        area = page.locator(".qv-canvas").bounding_box()
        page.mouse.move(area["x"] + area["width"] * 0.3, area["y"] + area["height"] * 0.2)
        page.mouse.down()
        page.mouse.move(area["x"] + area["width"] * 0.6, area["y"] + area["height"] * 0.7, steps=4)
        page.mouse.up()
        page.wait_for_function("document.querySelector('#qv-field textarea').value.includes('</box>')")
        assert "<box>(" in page.input_value("#qv-field textarea")
        page.screenshot(path=tmp_path / "drawn.png")
        page.press("#qv-field textarea", "Enter")
        page.wait_for_selector(".qv-boxes")
        page.screenshot(path=tmp_path / "answer.png", full_page=True)
        assert page.get_attribute(".qv-shape", "title") == "the face"
        assert page.evaluate("window.bad") is None and EVIL in page.inner_text(".qv-it")
        assert not [url for url in asked if not url.startswith((address.rstrip("/"), "data:", "blob:"))]
        with page.expect_download() as download:
            page.click("text=Download as")
        (record,) = json.loads(download.value.path().read_text(encoding="utf-8"))
        assert record["conversations"][1]["value"] == ANSWER

        page.click("[data-do=answer]")
        page.fill("#qv-edit-text textarea", "my own words")
        page.click("text=Save")
        page.wait_for_function("document.querySelector('.qv-it').innerText.includes('my own words')")
        page.click("text=Regenerate")
        page.wait_for_selector(".qv-live")
        page.wait_for_timeout(600)
        page.click("#qv-field .stop-button")
        page.wait_for_selector(".qv-it:not(.qv-live)")
        assert len(page.inner_text(".qv-it")) < len(ANSWER)
        page.set_viewport_size({"width": 390, "height": 844})
        page.screenshot(path=tmp_path / "phone.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390

        other = visit(browser, f"{address}?lang=zh", viewport={"width": 1200, "height": 900})
        other.wait_for_selector("text=清空")
        assert other.locator(".qv-you").count() == 0
        other.screenshot(path=tmp_path / "chinese.png")
        page.click("text=Clear")
        page.wait_for_selector(".qv-empty")
    finally:
        blocks.close()
