"""python scripts/benchmark_serving.py [--quick] [--model FOLDER | --config FILE.json ..] [--parts ..] [--out table.md]

What the batching engine of `qwen-vl serve` brings, as Markdown: ratios measured side by side in one run. Many clients
at once, each with an image of its own, against `model.chat` one by one; the fourth turn of a conversation about an
image against its first; memory after 500 and after 2,000 requests with different images. Answers are compared with
those of `model.chat`: a difference is an error. Without --model random ones are made, of configs/model/tiny.json and
benchmark.json with the vocabulary and the image spans of the published models, since these decide how fast answers are.
--quick: few requests, for a test of this script.
"""

import argparse
import base64
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from qwen_vl.startup import prepare

if __name__ == "__main__":
    prepare()  # before torch is imported

import numpy as np
import psutil
import torch
from PIL import Image

from qwen_vl.checkpoint import random_model
from qwen_vl.cli.run import run
from qwen_vl.model.chat_qwen import decode_answer
from qwen_vl.model.tokenization_qwen import SPECIAL_TOKENS
from qwen_vl.serving.api.app import create_app
from qwen_vl.serving.api.server import Server, address_of, listen
from qwen_vl.serving.api.settings import ServerSettings
from qwen_vl.serving.conversation import Message, SentImage
from qwen_vl.serving.engine import Engine, EngineRequest, EngineSettings, load
from qwen_vl.serving.media import MediaPolicy, MediaReader
from qwen_vl.serving.prompts import encode
from qwen_vl.terminal import markdown_table

CONFIGS = [Path(__file__).resolve().parents[1] / "configs/model" / name for name in ("tiny.json", "benchmark.json")]
LIKE_PUBLISHED = {"seq_length": 2048, "max_position_embeddings": 8192}
NUM_RANKS, NUM_QUERIES = 151_643, 256  # of the published models
PARTS = ("clients", "turns", "server", "memory")
AIMS = {"clients": "at least 4", "turns": "at most 0.25", "server": "at most 1.10", "memory": "at most 1.03"}
TURNS = 4
# Clients in a process of their own: the bodies of their requests come as JSON, seconds and texts of answers go out.
HTTP_CLIENTS = """
import http.client, json, sys, threading, time
address, bodies = json.load(sys.stdin)
answers = [None] * len(bodies)
def client(place):
    connection = http.client.HTTPConnection(address)
    connection.request("POST", "/v1/chat/completions", bodies[place], {"Content-Type": "application/json"})
    answers[place] = connection.getresponse().read().decode()
threads = [threading.Thread(target=client, args=(place,)) for place in range(len(bodies))]
start = time.perf_counter()
for thread in threads: thread.start()
for thread in threads: thread.join()
json.dump([time.perf_counter() - start, answers], sys.stdout)
"""
NAME = "served"


@dataclass(frozen=True)
class Size:
    """How much is measured. first, last: requests after which memory is compared."""

    clients: int
    tokens: int
    rounds: int
    first: int
    last: int


@dataclass(frozen=True)
class Result:
    """One line of the table. ratio: what the aim is about."""

    part: str
    what: str
    ratio: float
    detail: str


def build(config: Path, folder: Path) -> Path:
    """Return a new model folder of a configuration, but with the vocabulary and image spans of the published models."""
    values = json.loads(config.read_text(encoding="utf-8"))
    vocab_size = NUM_RANKS + len(SPECIAL_TOKENS)
    image_start_id = values["visual"]["image_start_id"] + vocab_size - values["vocab_size"]
    visual = {**values["visual"], "image_start_id": image_start_id, "n_queries": NUM_QUERIES}
    changed = folder / "config.json"
    changed.write_text(json.dumps({**values, **LIKE_PUBLISHED, "vocab_size": vocab_size, "visual": visual}))
    random_model.build(changed, folder / "model")
    return folder / "model"


def image_bytes(number: int, size: tuple[int, int] = (160, 120)) -> bytes:
    """Return the PNG file of an image that no other number gives."""
    levels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(levels).resize(size).save(content, "PNG")
    return content.getvalue()


def sent(content: bytes) -> SentImage:
    """Return the image of a file, as a request holds it."""
    return SentImage.of(Image.open(io.BytesIO(content)))


def ask(engine: Engine, messages: Sequence[Message], tokens: int) -> tuple[list[int], int, int, float]:
    """Return (ids of the answer, prompt tokens, those of them that were reused, seconds to the first token)."""
    start, first = time.perf_counter(), 0.0
    prompt = encode(engine.tokenizer, messages)
    ids: list[int] = []
    for event in engine.stream(EngineRequest("benchmark", NAME, prompt, tokens)):
        first = first or time.perf_counter() - start
        ids += event.ids
    if event.error:
        raise RuntimeError(event.error)
    return ids, len(prompt.ids), event.num_cached, first


def seconds_of(task: Callable[[], object]) -> float:
    """Return how long a task takes."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def at_once(tasks: Sequence[Callable[[], object]]) -> None:
    """Run all tasks, each in a thread of its own. An error of one is raised."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        for future in [pool.submit(task) for task in tasks]:
            future.result()


class Clients:
    """The same questions about different images, to `model.chat` one by one and to the engine at once."""

    def __init__(self, folder: Path, first: int, number: int) -> None:
        self.paths = [folder / f"{name}.png" for name in range(first, first + number)]
        for path in self.paths:
            path.write_bytes(image_bytes(int(path.stem)))
        self.said: dict[Path, str] = {}
        self.num_tokens = 0

    def question(self, path: Path) -> str:
        """Return what is asked about an image."""
        return f"What is in image {path.stem}, and where?"

    def chat(self, model, tokenizer, tokens: int) -> dict[Path, str]:
        """Return the answers of `model.chat`, one after another."""
        return {
            path: model.chat(
                tokenizer,
                f"Picture 1: <img>{path}</img>\n{self.question(path)}",
                do_sample=False,
                max_new_tokens=tokens,
            )[0]
            for path in self.paths
        }

    def engine(self, engine: Engine, tokens: int) -> None:
        """Ask the engine, all clients at once."""

        def client(path: Path) -> None:
            message = Message("user", (sent(path.read_bytes()), self.question(path)))
            ids = ask(engine, [message], tokens)[0]
            self.said[path] = decode_answer(ids, engine.tokenizer)
            with lock:
                self.num_tokens += len(ids)

        lock = threading.Lock()
        at_once([lambda path=path: client(path) for path in self.paths])


def clients(engine: Engine, reference, folder: Path, size: Size) -> list[Result]:
    """Compare many clients at once with one after another. Raise RuntimeError if any answer differs."""
    model, tokenizer = reference
    ratios, rates = [], []
    for number in range(size.rounds + 1):  # the first one warms up
        asked = Clients(folder, number * size.clients, size.clients if number else 2)
        ours = seconds_of(lambda asked=asked: asked.engine(engine, size.tokens))
        found: dict[Path, str] = {}
        theirs = seconds_of(lambda asked=asked, found=found: found.update(asked.chat(model, tokenizer, size.tokens)))
        different = [path.name for path in asked.paths if asked.said[path] != found[path]]
        if different:
            raise RuntimeError(f"answers differ from those of model.chat: {', '.join(different)}")
        if number:
            ratios.append(theirs / ours)
            rates.append(asked.num_tokens / ours)
    detail = f"{statistics.median(rates):.0f} tokens/s, all {size.rounds * size.clients} answers equal"
    what = f"{size.clients} clients at once against one by one, times as fast"
    return [Result("clients", what, statistics.median(ratios), detail)]


@contextlib.contextmanager
def serving(engine: Engine) -> Iterator[str]:
    """Yield the address of a server of the engine, in threads of this process."""
    settings = ServerSettings()
    server = Server(create_app(engine, settings, reader=MediaReader(MediaPolicy())), engine, settings)
    with listen("127.0.0.1", 0) as bound:
        thread = threading.Thread(target=server.serve_on, args=(bound,))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield address_of(bound).removeprefix("http://")
        finally:
            server.stop()
            thread.join()


def text_of(answer: str, is_streamed: bool) -> str:
    """Return the text of the answer of a server."""
    if not is_streamed:
        return json.loads(answer)["choices"][0]["message"]["content"]
    chunks = [json.loads(line.removeprefix("data: ")) for line in answer.splitlines() if line.startswith("data: {")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def body_of(content: bytes, text: str, tokens: int, *, is_streamed: bool = False) -> str:
    """Return the body of a request about an image file."""
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(content).decode()}"}}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": text}]}]
    return json.dumps(
        {"model": NAME, "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": is_streamed}
    )


def post_at_once(address: str, bodies: Sequence[str]) -> tuple[float, list[str]]:
    """Return how long it takes until clients in another process have all their answers, and the answers."""
    command = [sys.executable, "-S", "-c", HTTP_CLIENTS]
    done = subprocess.run(command, input=json.dumps([address, bodies]), capture_output=True, text=True, check=True)
    seconds, answers = json.loads(done.stdout)
    return seconds, answers


def http_seconds(address: str, asked: Clients, tokens: int, is_streamed: bool) -> float:
    """Return how long it takes until all clients have their answers from a server, and keep what was said."""
    bodies = [body_of(one.read_bytes(), asked.question(one), tokens, is_streamed=is_streamed) for one in asked.paths]
    seconds, answers = post_at_once(address, bodies)
    asked.said = {path: text_of(answer, is_streamed) for path, answer in zip(asked.paths, answers, strict=True)}
    return seconds


def server(engine: Engine, folder: Path, size: Size) -> list[Result]:
    """Compare answers over HTTP, whole and streamed, with the engine alone. Raise RuntimeError if one differs."""
    results = []
    with serving(engine) as address:
        for is_streamed in (False, True):
            ratios, took = [], []
            for number in range(size.rounds + 1):
                first = 30_000_000 + (number + is_streamed * 1000) * 1000
                alone, over_http = (Clients(folder, first + 500 * part, size.clients) for part in range(2))
                ours = seconds_of(lambda asked=alone: asked.engine(engine, size.tokens))
                theirs = http_seconds(address, over_http, size.tokens, is_streamed)
                said = dict(over_http.said)
                over_http.engine(engine, size.tokens)
                if said != over_http.said:
                    raise RuntimeError("answers over HTTP differ from those of the engine")
                if number:
                    ratios.append(theirs / ours)
                    took.append(theirs)
            how = "streamed" if is_streamed else "whole"
            what = f"{how} answers over HTTP against the engine alone, time"
            detail = f"{statistics.median(took):.2f} s for {size.clients} answers"
            results.append(Result("server", what, statistics.median(ratios), detail))
    return results


def turns(engine: Engine, size: Size) -> list[Result]:
    """Compare the fourth turn about an image with the first: prompt tokens computed, and time to the first token."""
    computed = []
    for number in range(size.rounds + 1):
        messages: list[Message] = []
        costs = []
        for turn in range(TURNS):
            text = f"Question {turn} about it?"
            parts = (text,) if turn else (sent(image_bytes(10_000_000 + number)), text)
            messages.append(Message("user", parts))
            ids, length, cached, first = ask(engine, messages, size.tokens)
            messages.append(Message("assistant", (decode_answer(ids, engine.tokenizer),)))
            costs.append((length - cached, first))
        if number:
            computed.append(costs)
    first, last = (statistics.median(costs[turn][0] for costs in computed) for turn in (0, -1))
    seconds = [statistics.median(costs[turn][1] for costs in computed) for turn in (0, -1)]
    detail = f"{last:g} of {first:g} tokens; first token after {seconds[1] * 1000:.0f} of {seconds[0] * 1000:.0f} ms"
    return [Result("turns", "prefill of a fourth turn against the first's", last / first, detail)]


def memory(engine: Engine, size: Size) -> list[Result]:
    """Compare the memory of a server after few and after many requests with different images."""
    process, used = psutil.Process(), []
    with serving(engine) as address:
        for start, end in ((0, size.first), (size.first, size.last)):
            for first in range(start, end, size.clients):
                numbers = range(first, min(first + size.clients, end))
                bodies = [body_of(image_bytes(20_000_000 + number), f"What is in {number}?", 2) for number in numbers]
                for answer in post_at_once(address, bodies)[1]:
                    text_of(answer, is_streamed=False)  # fails for an error
            used.append(process.memory_info().rss)
    detail = f"{used[1] / 2**20:.0f} MiB after {size.last}, {used[0] / 2**20:.0f} after {size.first}"
    return [Result("memory", "memory of a server after many requests against few", used[1] / used[0], detail)]


def table(results: Sequence[Result]) -> str:
    """Return the results as Markdown."""
    rows = [(one.what, f"{one.ratio:.2f}", AIMS[one.part], one.detail) for one in results]
    return markdown_table(("what", "ratio", "aim", "measured"), rows)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description="Speed of serving, as Markdown.", allow_abbrev=False)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help="model folder or hub name; without it random ones are made")
    which.add_argument("--config", nargs="+", default=CONFIGS, help="configurations of random models (default: two)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    parser.add_argument("--clients", type=int, default=32, help="clients at once (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of an answer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of each ratio (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=2000, help="requests of the part memory (default: %(default)s)")
    parser.add_argument("--device", help="cuda, cpu .. (default: the GPU where there is one)")
    parser.add_argument("--quick", action="store_true", help="few requests, one round")
    parser.add_argument("--out", help="file for the table")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def measure(path: str | Path, folder: Path, parts: Sequence[str], size: Size, device: str | None) -> str:
    """Return the Markdown of one model."""
    reference = load(path, device=device)
    engine = Engine.load(path, settings=EngineSettings(), name=NAME, device=device)
    results: list[Result] = []
    with engine:
        if "clients" in parts:
            results += clients(engine, reference, folder, size)
        if "turns" in parts:
            results += turns(engine, size)
        if "server" in parts:
            results += server(engine, folder, size)
        if "memory" in parts:
            results += memory(engine, size)
    model = reference[0]
    on = torch.cuda.get_device_name() if model.device.type == "cuda" else str(model.device)
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    return f"{millions:.0f} million weights in {str(model.dtype).removeprefix('torch.')} on {on}\n\n{table(results)}"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print Markdown, and write it into --out."""
    args = parse(argv)
    size = Size(args.clients, args.tokens, args.rounds, args.requests // 4, args.requests)
    if args.quick:
        size = Size(clients=3, tokens=6, rounds=1, first=4, last=8)
    texts = []
    for which in [args.model] if args.model else args.config:
        with tempfile.TemporaryDirectory() as name:
            path = which if args.model else build(Path(which), Path(name))
            texts.append(f"{which}: {measure(path, Path(name), args.parts, size, args.device)}\n")
            print(texts[-1], flush=True)
    if args.out:
        Path(args.out).write_text("\n".join(texts), encoding="utf-8")


if __name__ == "__main__":
    run(main)
