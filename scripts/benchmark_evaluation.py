"""python scripts/benchmark_evaluation.py [--quick] [--model FOLDER | --config FILE.json] [--rounds 3] [--out table.md]

What the ways of answering in `qwen-vl evaluate` bring, as Markdown: ratios of time, measured in alternating pairs in
one run, after a check that the answers are the same. Compared with two loops that work as the original scripts do: each
question opens and encodes its image and reads its whole prompt, one question in a pass, or eight left-padded ones; a
ranking reads the prompt once for each option. Then the time of scoring. Without --model a small random one is made
(configs/model/benchmark.json). --quick: few records, for a test of this script.
"""

import argparse
import io
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from qwen_vl.startup import prepare

if __name__ == "__main__":
    prepare()  # before torch is imported

import torch
from PIL import Image
from torch.nn import functional as F

from qwen_vl.adapters import inference
from qwen_vl.checkpoint import random_model
from qwen_vl.cli.run import run
from qwen_vl.evaluation.encoding import decode, encode, end_ids, option_ids
from qwen_vl.evaluation.generation import pad_left
from qwen_vl.evaluation.greedy import greedy_answers, greedy_config, rank_options
from qwen_vl.evaluation.metrics import cider, vqa_accuracy
from qwen_vl.evaluation.records import Decoding, ImageSource, Prompt
from qwen_vl.families import v1 as family
from qwen_vl.model.image_processing_qwen import pixels
from qwen_vl.terminal import markdown_table
from qwen_vl.training.monitor import flops

CONFIG = Path(__file__).resolve().parents[1] / "configs/model/benchmark.json"
DECODING = Decoding(10)  # of the short answers of VQA
BATCH_SIZE, ROWS = 32, 8  # of `qwen-vl evaluate`; of the original scripts
OPTIONS = 4
WORDS = [
    "what",
    "is",
    "the",
    "color",
    "of",
    "a",
    "small",
    "cup",
    "on",
    "that",
    "table",
    "and",
    "how",
    "many",
    "people",
    "are",
    "near",
    "it",
    "in",
    "the",
    "room",
]
CAPTION = [
    "a",
    "man",
    "and",
    "two",
    "dogs",
    "on",
    "the",
    "beach",
    "near",
    "some",
    "blue",
    "water",
    "with",
    "an",
    "old",
    "boat",
]


def questions(num_images, each, ending, seed=0):
    """Raw prompts about images of 640 x 480, `each` of them on every image, in the order of the images."""
    rng, prompts = random.Random(seed), []
    for number in range(num_images):
        content = io.BytesIO()
        noise = Image.effect_noise((64, 48), 90).resize((640, 480)).convert("RGB")
        noise.save(content, "JPEG")
        image = ImageSource.from_bytes(f"{number}.jpg", content.getvalue())
        for _ in range(each):
            text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(4, 12)))
            prompts.append(Prompt((image, text + ending)))
    return prompts


def inputs_of(model, tokenizer, prompts):
    """Inputs of the model for left-padded rows; every row opens and will encode its own image."""
    encoded = [encode(prompt, tokenizer) for prompt in prompts]
    images = [pixels(source.open(), family.image_size(model.config)) for one in encoded for source in one.images]
    inputs = pad_left([one.ids for one in encoded], tokenizer.eod_id)
    inputs["pixel_values"] = torch.stack(images)
    return {key: value.to(model.device) for key, value in inputs.items()}


@torch.no_grad()
def texts_as_the_original(model, tokenizer, prompts, rows):
    """Answers of the model's own `generate`, so many prompts in a pass."""
    ends, texts = end_ids(tokenizer, DECODING), []
    config = greedy_config(tokenizer, DECODING, ends)
    for start in range(0, len(prompts), rows):
        inputs = inputs_of(model, tokenizer, prompts[start : start + rows])
        output = model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :]
        for ids in output.tolist():
            end = next((place for place, one in enumerate(ids) if one in ends), len(ids))
            texts.append(decode(ids[:end], tokenizer, DECODING))
    return texts


@torch.no_grad()
def losses_as_the_original(model, tokenizer, prompts):
    """Losses of all options, each by a pass over its own whole prompt."""
    options, found = option_ids(tokenizer, OPTIONS), []
    for prompt in prompts:
        losses = []
        for option in options:
            inputs = inputs_of(model, tokenizer, [prompt])
            ids = torch.cat([inputs["input_ids"], torch.tensor([option], device=model.device)], dim=1)
            logits = model(ids, pixel_values=inputs["pixel_values"]).logits[0, -len(option) - 1 : -1]
            losses.append(F.cross_entropy(logits.float(), ids[0, -len(option) :]).item())
        found.append(losses)
    return found


def texts(model, tokenizer, prompts):
    """Our answers."""
    said = {}
    greedy_answers(
        model, tokenizer, prompts, DECODING, batch_size=BATCH_SIZE, on_batch=lambda one: said.update(dict(one))
    )
    return [said[number].text for number in range(len(prompts))]


def losses(model, tokenizer, prompts):
    """Our losses of the options."""
    said, counts = {}, [OPTIONS] * len(prompts)
    rank_options(model, tokenizer, prompts, counts, batch_size=BATCH_SIZE, on_batch=lambda one: said.update(dict(one)))
    return [said[number].losses for number in range(len(prompts))]


def check(ours, theirs, is_float32):
    """Raise RuntimeError unless answers are the same, losses within 1e-5. Only float32 is exact enough for that."""
    if not is_float32:
        return
    if isinstance(ours[0], str):
        equal = ours == theirs
    else:
        equal = torch.allclose(torch.tensor(ours), torch.tensor(theirs), rtol=0, atol=1e-5)
    if not equal:
        raise RuntimeError("the answers differ from those of one prompt at a time")


def compared(name, ours, theirs, model, count, rounds):
    """A row of the table: our time for a record, and how many times as long the other way takes, the median."""
    check(ours(), theirs(), model.dtype == torch.float32)
    pairs = [(flops.seconds_of(ours, model.device), flops.seconds_of(theirs, model.device)) for _ in range(rounds)]
    took = statistics.median(one for one, _ in pairs)
    times = statistics.median(other / one for one, other in pairs)
    return name, f"{took / count * 1000:.1f}", f"{times:.1f}"


def answering(model, tokenizer, *, records, rounds):
    """Markdown: what answering and ranking gain."""
    rows = []
    for each in (30, 1):
        prompts = questions(-(-records // each), each, " Answer:")[:records]
        for width, how in ((1, "one by one"), (ROWS, f"{ROWS} together")):
            name = f"answers, {each} question{'s' * (each > 1)} an image, against {how}"
            rows.append(
                compared(
                    name,
                    lambda asked=prompts: texts(model, tokenizer, asked),
                    lambda asked=prompts, width=width: texts_as_the_original(model, tokenizer, asked, width),
                    model,
                    len(prompts),
                    rounds,
                )
            )
    for each in (4, 1):
        prompts = questions(-(-records // 2 // each), each, "\nOptions: A. red\nB. blue\nC. green\nD. gray\nAnswer:")
        rows.append(
            compared(
                f"ranking of {OPTIONS} options, {each} question{'s' * (each > 1)} an image, against a pass an option",
                lambda asked=prompts: losses(model, tokenizer, asked),
                lambda asked=prompts: losses_as_the_original(model, tokenizer, asked),
                model,
                len(prompts),
                rounds,
            )
        )
    return markdown_table(("what", "ms a record", "times as fast"), rows)


def scoring(num_answers, num_images):
    """Markdown: seconds that the scores of so many answers and captions take."""
    rng = random.Random(0)
    said = [rng.choice(WORDS) for _ in range(num_answers)]
    accepted = [[rng.choice(WORDS) for _ in range(10)] for _ in range(1000)]

    def caption():
        return " ".join(rng.choice(CAPTION + WORDS) for _ in range(rng.randint(8, 14))) + "."

    captions = [caption() for _ in range(num_images)]
    references = [[caption() for _ in range(5)] for _ in range(num_images)]
    start = time.perf_counter()
    for number, one in enumerate(said):
        vqa_accuracy(one, accepted[number % len(accepted)])
    middle = time.perf_counter()
    cider(captions, references)
    end = time.perf_counter()
    rows = [
        (f"VQA accuracy of {num_answers:,} answers", f"{middle - start:.1f}"),
        (f"CIDEr of {num_images:,} captions, 5 references each", f"{end - middle:.1f}"),
    ]
    return markdown_table(("scoring", "seconds"), rows)


def main(argv=None):
    """Measure, print Markdown, and write it into --out."""
    parser = argparse.ArgumentParser(description="Speed of evaluation, as Markdown.", allow_abbrev=False)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help="model folder or hub name; without it a random one is made")
    which.add_argument("--config", default=CONFIG, help="configuration of the random model (default: %(default)s)")
    parser.add_argument("--records", type=int, default=120, help="questions of each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of each ratio (default: %(default)s)")
    parser.add_argument("--device", help="cuda, cpu .. (default: the GPU where there is one)")
    parser.add_argument("--dtype", default="auto", help="dtype of the weights (default: the file's)")
    parser.add_argument("--quick", action="store_true", help="few records, one round")
    parser.add_argument("--out", help="file for the table")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    size = {"records": 4, "rounds": 1} if args.quick else {"records": args.records, "rounds": args.rounds}
    with tempfile.TemporaryDirectory() as folder:
        path = args.model or Path(folder, "model")
        if args.model is None:
            random_model.build(args.config, path)
        model, tokenizer = inference.load(path, device=args.device, dtype=args.dtype)
        device = torch.cuda.get_device_name() if model.device.type == "cuda" else str(model.device)
        parts = [
            f"{args.model or args.config} in {str(model.dtype).removeprefix('torch.')} on {device}, batches of "
            f"{BATCH_SIZE}; answers are checked to be the same in float32.",
            answering(model, tokenizer, **size),
            scoring(2000, 50) if args.quick else scoring(200_000, 5000),
        ]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if args.out:
        Path(args.out).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(main)
