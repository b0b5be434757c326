"""The page in a browser: boxes, a drawn box, visitors apart, a phone, Chinese, and no foreign request."""

import json
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from helpers.commands import exit_code
from PIL import Image

from qwen_vl.serving.answerers import EngineAnswerer
from qwen_vl.serving.demo.page import launch
from qwen_vl.serving.engine import Engine, EngineSettings, load

pytestmark = pytest.mark.slow
BOXES = "<ref>the left eye</ref><box>(300,330),(440,480)</box> and <ref>猫的鼻子</ref><box>(520,700),(640,850)</box>."


class Slow:
    """Answers with the text that a question asks for, a character at a time."""

    models = ("base", "tuned")

    def __init__(self):
        self.texts, self.open, self.asked = {}, 0, []

    def answer(self, turns, *, system, model, sharing_key):
        question = turns[-1].text
        self.asked.append((question, model, sharing_key))
        text = next((text for name, text in self.texts.items() if name in question), BOXES)
        self.open += 1
        try:
            for end in range(1, len(text) + 1):
                time.sleep(0.01)
                yield text[:end]
        finally:
            self.open -= 1


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("chromium is not installed")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def served():
    """Return (answerer, address) of a page."""
    answerer = Slow()
    blocks, address = launch(answerer, port=None, wait=False)
    yield answerer, address
    blocks.close()


@pytest.fixture
def visit(browser, served):
    """Return a function that opens the page as a new visitor."""
    contexts = []

    def opened(query="", width=1200, height=900, address=served[1]):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}))
        page = contexts[-1].new_page()
        page.goto(f"{address}{query}")
        page.wait_for_selector(".qv-example")
        page.wait_for_timeout(1500)  # the page's own start fills in its words
        return page

    yield opened
    for context in contexts:
        context.close()


def write(page, text):
    page.fill("#qv-field textarea", text)
    page.press("#qv-field textarea", "Enter")


def answered(page, number=1):
    """Wait until answer `number` is complete."""
    page.wait_for_selector(f".qv-it:not(.qv-live) >> nth={number - 1}", timeout=60_000)
    page.wait_for_selector(".qv-live", state="detached")


def draw(page, x1, y1, x2, y2):
    """Drag a box over the shown image, in parts of its sides."""
    area = page.locator(".qv-canvas:not([hidden])").bounding_box()
    page.mouse.move(area["x"] + area["width"] * x1, area["y"] + area["height"] * y1)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * x2, area["y"] + area["height"] * y2, steps=4)
    page.mouse.up()


def value(page):
    return page.input_value("#qv-field textarea")


def test_boxes_of_an_answer_and_a_box_that_is_drawn(visit, served, tmp_path):
    page = visit()
    page.click(".qv-example >> nth=0")
    page.wait_for_selector(".qv-canvas")
    page.press("#qv-field textarea", "Enter")
    answered(page)
    titles = page.eval_on_selector_all(".qv-it .qv-shape", "all => all.map(one => one.title)")
    assert sorted(titles) == ["the left eye", "猫的鼻子"]
    assert len(set(page.eval_on_selector_all(".qv-it .qv-text b", "all => all.map(one => one.style.color)"))) == 2
    image, shape = (page.locator(f".qv-it {name}").bounding_box() for name in (".qv-boxes > img", ".qv-shape >> nth=0"))
    assert abs((shape["x"] - image["x"]) / image["width"] - 0.3) < 0.01
    assert abs((shape["y"] + shape["height"] - image["y"]) / image["height"] - 0.48) < 0.01
    page.hover(".qv-it .qv-shape >> nth=0")
    page.wait_for_timeout(300)
    page.screenshot(path=tmp_path / "hover.png")
    draw(page, 0.6, 0.7, 0.3, 0.2)  # from right to left
    page.wait_for_function("document.querySelector('#qv-field textarea').value.includes('</box>')")
    numbers = [int(number) for number in value(page).translate(str.maketrans("(),/<>box", "         ")).split()]
    assert all(abs(found - meant) <= 6 for found, meant in zip(numbers, (300, 200, 600, 700), strict=True))
    page.screenshot(path=tmp_path / "drawn.png", full_page=True)
    page.click("#qv-field textarea")
    page.keyboard.press("End")
    page.keyboard.type(" What is it?")
    page.click("#qv-model input")
    page.click("[role=option]:has-text('tuned')")
    page.press("#qv-field textarea", "Enter")
    answered(page, 2)
    assert [model for _, model, _ in served[0].asked[-2:]] == ["base", "tuned"]
    assert [one.inner_text() for one in page.locator(".qv-name").all()] == ["base", "tuned"]
    assert page.locator(".qv-you >> nth=1").locator(".qv-shape").count() == 1
    page.wait_for_selector(".qv-rubber", state="detached")
    page.screenshot(path=tmp_path / "answer.png", full_page=True)


def test_what_is_downloaded_is_training_data(visit, tmp_path, capsys):
    page = visit()
    for number, color in enumerate(("red", "blue")):
        Image.new("RGB", (60, 40), color).save(tmp_path / f"{number}.png")
    page.set_input_files("#qv-field input[type=file]", [tmp_path / "0.png", tmp_path / "1.png"])
    page.wait_for_selector(".qv-canvas >> nth=1", state="attached")
    page.click("[data-show='1']")
    draw(page, 0.1, 0.1, 0.5, 0.5)
    page.wait_for_function("document.querySelector('#qv-field textarea').value.includes('Picture 1 <box>')")
    page.keyboard.type("?")
    page.press("#qv-field textarea", "Enter")
    answered(page)
    page.screenshot(path=tmp_path / "images.png", full_page=True)
    for number, said in enumerate((BOXES, "my own words")):
        with page.expect_download() as download:
            page.click("text=Download as")
        download.value.save_as(tmp_path / f"{number}.json")
        (record,) = json.loads((tmp_path / f"{number}.json").read_text(encoding="utf-8"))
        assert record["conversations"][1]["value"] == said
        assert exit_code(["data", "check", tmp_path / f"{number}.json"]) == 0, capsys.readouterr().out
        if number == 0:
            with page.expect_download():  # the same once more
                page.click("text=Download as")
            page.click("[data-do=answer]")
            page.wait_for_selector("#qv-edit-text textarea")
            page.screenshot(path=tmp_path / "edit.png", full_page=True)
            page.fill("#qv-edit-text textarea", "my own words")
            page.click("text=Save")
            page.wait_for_function("document.querySelector('.qv-it').innerText.includes('my own words')")
    page.click("[data-do=question]")
    page.fill("#qv-edit-text textarea", "another question")
    page.click("text=Save")
    page.wait_for_selector(".qv-live")
    answered(page)
    assert "another question" in page.inner_text(".qv-you")


def test_stop_regenerate_clear_and_a_closed_tab(visit, served, tmp_path):
    answerer, page = served[0], visit()
    answerer.texts["long"] = "word " * 400
    write(page, "a long story")
    page.wait_for_selector(".qv-live")
    page.wait_for_timeout(600)
    page.screenshot(path=tmp_path / "growing.png", full_page=True)
    page.type("#qv-field textarea", "the next question", delay=40)
    page.click("#qv-field .stop-button")
    answered(page)
    assert value(page) == "the next question"
    stopped = page.inner_text(".qv-it")
    assert 0 < len(stopped) < 1500 and answerer.open == 0
    page.click("text=Regenerate")
    page.wait_for_selector(".qv-live")
    page.wait_for_timeout(600)
    page.click("#qv-field .stop-button")
    answered(page)
    assert page.locator(".qv-it").count() == 1
    page.click("text=Clear")
    page.wait_for_selector(".qv-empty")
    assert page.locator(".qv-it").count() == 0
    write(page, "a long story")
    page.wait_for_selector(".qv-live")
    assert answerer.open == 1
    page.close()
    end = time.monotonic() + 15
    while answerer.open and time.monotonic() < end:
        time.sleep(0.1)
    assert answerer.open == 0


def test_nothing_that_an_answer_or_a_question_writes_is_loaded_or_run(visit, served, tmp_path):
    fetched, answerer, page = [], served[0], visit()

    class Bait(BaseHTTPRequestHandler):
        def do_GET(self):
            fetched.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bait)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    bait = f"http://127.0.0.1:{server.server_port}"
    evil = (
        f"![a]({bait}/1) <img src={bait}/2 onerror='window.bad=1'> ${{window.bad=1}} {{{{value}}}} [b]({bait}/3) "
        f"<script>window.bad = 1</script><iframe src={bait}/4></iframe><svg/onload=window.bad=1> {bait}/5 "
        f"<style>@import url({bait}/6)</style><link rel=stylesheet href={bait}/7> "
        f"$$\\href{{{bait}/8}}{{x}}$$ <img>{bait}/9</img>"
    )
    answerer.texts["markup"] = f'{evil}<ref>" onmouseover="window.bad=1" {evil}</ref><box>(1,1),(900,900)</box>'
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.click(".qv-example >> nth=0")
    page.wait_for_selector(".qv-canvas")
    write(page, f"markup {evil[: evil.index('<img>')]}")
    answered(page)
    page.hover(".qv-it .qv-shape")
    page.click("[data-do=answer]")
    page.wait_for_timeout(1000)
    page.screenshot(path=tmp_path / "markup.png", full_page=True)
    server.shutdown()
    assert page.evaluate("window.bad") is None and evil in page.inner_text(".qv-it")
    assert fetched == []
    assert not [url for url in asked if not url.startswith((served[1].rstrip("/"), "data:", "blob:"))]
    page.click("text=Download as")  # its <img> would name an image in a training record
    page.wait_for_selector(".qv-error")


def test_a_phone_and_chinese(visit, tmp_path):
    page = visit("?lang=zh", width=390, height=844)
    page.wait_for_selector("text=清空")
    page.screenshot(path=tmp_path / "phone-start.png", full_page=True)
    page.click(".qv-example >> nth=1")
    page.wait_for_selector(".qv-canvas")
    draw(page, 0.2, 0.1, 0.6, 0.6)
    page.wait_for_function("document.querySelector('#qv-field textarea').value.includes('</box>')")
    page.screenshot(path=tmp_path / "phone-drawn.png", full_page=True)
    page.press("#qv-field textarea", "Enter")
    answered(page)
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    board, field, samples = (page.locator(f"#qv-{name}").bounding_box()["y"] for name in ("board", "field", "examples"))
    assert page.locator("#qv-past").bounding_box()["y"] < board < field < samples
    page.set_viewport_size({"width": 1200, "height": 900})
    page.screenshot(path=tmp_path / "chinese.png", full_page=True)
    page.click("text=English")
    page.wait_for_selector("text=Regenerate")


def test_visitors_of_an_engine_are_answered_together_and_apart(browser, make_checkpoint, visit, tmp_path):
    model, tokenizer = load(make_checkpoint(), device="cpu")
    settings = EngineSettings(max_running=4, max_batch_tokens=48, page_size=16, kv_tokens=1024, num_images=4)
    with Engine.load(make_checkpoint(), settings=settings, name="tiny", device="cpu") as engine:
        greedy = {"do_sample": False, "max_new_tokens": 60}
        engine.generation_config.update(**greedy)
        blocks, address = launch(EngineAnswerer(engine), port=None, wait=False)
        try:
            pages = {color: visit(address=address) for color in ("red", "green")}
            for color, page in pages.items():
                Image.new("RGB", (30, 20), color).save(tmp_path / f"{color}.png")
                page.set_input_files("#qv-field input[type=file]", tmp_path / f"{color}.png")
                page.wait_for_selector(".qv-canvas")
            for color, page in pages.items():
                write(page, f"Is it {color}?")
            for color, page in pages.items():
                answered(page)
                query = f"Picture 1: <img>{tmp_path}/{color}.png</img>\nIs it {color}?"
                expected, _ = model.chat(tokenizer, query, **greedy)
                said = page.evaluate("document.querySelector('.qv-it .qv-text').textContent")
                assert said == expected != ""
                assert page.locator(".qv-you").count() == 1 and color in page.inner_text(".qv-you")
        finally:
            blocks.close()
    assert not engine.alive
