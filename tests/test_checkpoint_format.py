"""docs/checkpoint_format.md against the code: its tables of config keys, tensors, token ids and published numbers."""

import json
import math
import re
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import runs
from safetensors import safe_open

from qwen_vl.checkpoint import quantization
from qwen_vl.export.quantize import quantize
from qwen_vl.model import QWenConfig, QWenLMHeadModel, QWenTokenizer
from qwen_vl.model.chat_qwen import MAX_WINDOW_SIZE, SYSTEM
from qwen_vl.model.configuration_qwen import DEFAULT_QUERIES, PUBLISHED_VISUAL
from qwen_vl.model.image_processing_qwen import CLIP_MEAN, CLIP_STD
from qwen_vl.model.tokenization_qwen import SPLIT_PATTERN

PAGE = (Path(__file__).resolve().parents[1] / "docs/checkpoint_format.md").read_text(encoding="utf-8")
LAYOUT = {"group_size": 128, "desc_act": False, "damp": 0.01}
DTYPE_NAMES = {"F16": "float16", "I32": "int32"}
ODD_SIZES = {  # every symbol of the page has a value of its own
    "vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 5, "kv_channels": 8,
    "intermediate_size": 64,
    "visual": {"heads": 2, "image_size": 30, "image_start_id": 290, "layers": 4, "mlp_ratio": 1.33, "output_dim": 48,
               "patch_size": 6, "width": 20, "n_queries": 9},
}  # fmt: skip


def section(number):
    """Return the text of a section, white space as single spaces."""
    (text,) = re.findall(rf"^## {number}\. .*?$(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
    return " ".join(text.split())


def table(*headers):
    """Return the rows, {header: cell}, of the one table of the page whose headers begin with these."""
    lines = PAGE.splitlines()
    (start,) = (n for n, line in enumerate(lines) if tuple(cells(line)[: len(headers)]) == headers)
    names, rows = cells(lines[start]), []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(names, cells(line), strict=True)))
    assert rows
    return rows


def cells(line):
    """Return the cells of a line of a Markdown table; [] for any other line."""
    if not line.startswith("|"):
        return []
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def code(cell):
    """Return what stands between the first two backticks of a cell."""
    return cell.split("`")[1]


def keys_of(*headers):
    """Return {key: default} of a table of config keys, the defaults read as JSON."""
    return {
        code(row[headers[0]]): json.loads(code(row[headers[1]])) for row in table(*headers) if "`" in row[headers[1]]
    }


def numbers(cell):
    """Return the whole numbers of a cell such as "12288, 4096"."""
    return [int(number) for number in cell.split(",")]


def evaluate(expression, names):
    """Return the value of an expression of the page."""
    return eval(expression, {"__builtins__": {}, "int": int}, names)


def symbols_of(config):
    """Return {symbol: value} of the table of symbols for one config."""
    names = config.to_dict() | {"visual": SimpleNamespace(**{"n_queries": DEFAULT_QUERIES} | config.visual)}
    return {code(row["symbol"]): evaluate(code(row["value"]), names) for row in table("symbol", "value")}


def expand(pattern, symbols):
    """Return the names that a pattern such as `h.{i}.{ln_1,ln_2}.weight` stands for."""
    parts = re.split(r"\{(.*?)\}", pattern)
    ranges = {"i": symbols["L"], "j": symbols["N"]}
    choices = [
        [part] if n % 2 == 0 else map(str, range(ranges[part])) if part in ranges else part.split(",")
        for n, part in enumerate(parts)
    ]
    return ["".join(chosen) for chosen in product(*choices)]


def float_tensors(config):
    """Return {name: (shape, whether Int4 packs it)} of a float model, as the page has it."""
    symbols, tensors = symbols_of(config), {}
    for row in table("tensor", "shape"):
        shape = list(evaluate(f"[{code(row['shape'])}]", symbols))
        for name in expand(code(row["tensor"]), symbols):
            assert name not in tensors, name
            tensors[name] = shape, row["Int4"] == "packed"
    return tensors


def int4_tensors(config, group_size):
    """Return {name: (dtype, shape)} of the Int4 form of a model, as the page has it."""
    tensors = {}
    for name, (shape, is_packed) in float_tensors(config).items():
        if not is_packed:
            tensors[name] = "float16", shape
            continue
        symbols = {"O": shape[0], "I": shape[1], "G": group_size}
        for row in table("tensor", "dtype"):
            packed_name = name.removesuffix("weight") + code(row["tensor"])
            tensors[packed_name] = row["dtype"], evaluate(f"[{code(row['shape'])}]", symbols)
    return tensors


def meta_model(config):
    """Return the model of a config without storage."""
    with torch.device("meta"):
        return QWenLMHeadModel(config)


@pytest.mark.parametrize("sizes", [{}, ODD_SIZES], ids=["published", "odd"])
def test_tensors_are_those_of_the_model(sizes):
    config = QWenConfig(**sizes)
    values = symbols_of(config).values()
    assert not sizes or len(set(values)) == len(values)
    found = {name: list(tensor.shape) for name, tensor in meta_model(config).state_dict().items()}
    assert found == {name: shape for name, (shape, _) in float_tensors(config).items()}


def test_published_shapes_and_totals():
    config = QWenConfig()
    symbols, tensors = symbols_of(config), float_tensors(config)
    assert {code(row["symbol"]): int(row["published"]) for row in table("symbol", "value")} == symbols
    for row in table("tensor", "shape"):
        assert tensors[expand(code(row["tensor"]), symbols)[0]][0] == numbers(row["published"]), row
    total = sum(math.prod(shape) for shape, _ in tensors.values())
    assert f"{len(tensors)} tensors with {total:,} parameters: {2 * total:,} bytes in bfloat16" in section(2)


def test_biases_come_with_no_bias_false():
    with_biases = meta_model(QWenConfig(**ODD_SIZES, no_bias=False)).state_dict().keys()
    documented = float_tensors(QWenConfig(**ODD_SIZES))
    packed = {name for name, (_, is_packed) in documented.items() if is_packed}
    assert with_biases == documented.keys() | {name.removesuffix("weight") + "bias" for name in packed}


def test_int4_tensors_are_those_of_the_model():
    config = QWenConfig(quantization_config=quantize.quantization_config(**LAYOUT))
    documented = int4_tensors(config, LAYOUT["group_size"])
    state = quantization.replace_linears(meta_model(config), config).state_dict()
    assert {name: documented[name][1] for name in state} == {n: list(tensor.shape) for n, tensor in state.items()}
    integers = {name for name, tensor in state.items() if tensor.dtype == torch.int32}
    assert integers == {name for name, (dtype, _) in documented.items() if dtype == "int32"}
    zero_biases = documented.keys() - state.keys()  # loading drops them
    without_bias = [name for name, (_, packed) in float_tensors(config).items() if packed and "c_attn" not in name]
    assert zero_biases == {name.removesuffix("weight") + "bias" for name in without_bias}


def test_int4_totals_and_published_shapes():
    tensors = int4_tensors(QWenConfig(), LAYOUT["group_size"])
    size = sum(math.prod(shape) * {"float16": 2, "int32": 4}[dtype] for dtype, shape in tensors.values())
    assert f"{len(tensors):,} tensors of {size:,} bytes" in section(2)
    for row in table("tensor", "dtype"):
        name = f"transformer.h.0.attn.c_attn.{code(row['tensor'])}"
        assert tensors[name][1] == numbers(row["published, `attn.c_attn`"]), row


def test_files_hold_the_documented_tensors(make_checkpoint, make_int4_checkpoint):
    """Names and shapes of a float file; names, shapes and dtypes of an Int4 file."""
    folder = make_checkpoint()
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        stored = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
    config = QWenConfig.from_pretrained(folder)
    assert stored == {name: shape for name, (shape, _) in float_tensors(config).items()}

    folder = make_int4_checkpoint()
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        stored = {name: (DTYPE_NAMES[part.get_dtype()], part.get_shape()) for name, part in slices.items()}
    config = QWenConfig.from_pretrained(folder)
    assert stored == int4_tensors(config, config.quantization_config["group_size"])


def test_config_keys_and_defaults():
    config = QWenConfig()
    documented = keys_of("key", "default")
    assert documented.keys() == QWenConfig.__annotations__.keys() - {"visual"}
    assert documented == {key: getattr(config, key) for key in documented}
    assert keys_of("key of `visual`", "default") == PUBLISHED_VISUAL
    assert code(table("key of `visual`", "default")[-1]["key of `visual`"]) == "n_queries"
    written = quantize.quantization_config(**LAYOUT)
    documented = keys_of("key of `quantization_config`", "published")
    assert documented == {key: value for key, value in written.items() if not key.startswith("model_")}
    assert f"`max_window_size` {MAX_WINDOW_SIZE}" in section(1)


def test_tokens(published_vocab):
    tokenizer = QWenTokenizer(published_vocab)
    documented = {code(row["token"]): int(row["published id"]) for row in table("token", "published id")}
    assert documented == {token: tokenizer.special_tokens[token] for token in documented}
    unnamed = {token for token in tokenizer.special_tokens if re.fullmatch(r"<\|extra_\d+\|>", token)}
    assert unnamed | documented.keys() == tokenizer.special_tokens.keys()
    text = section(5)
    assert f"{len(tokenizer.mergeable_ranks)} lines" in text and f"{len(tokenizer)} ids" in text
    assert f"rows for {QWenConfig().vocab_size}" in text
    assert f"```\n{SPLIT_PATTERN}\n```" in PAGE


def test_constants_of_images_and_prompts():
    text = section(4)
    for values in (CLIP_MEAN, CLIP_STD):
        assert ", ".join(map(str, values)) in text
    assert SYSTEM in section(6)


def test_published_memory():
    published = runs.script("published_memory")
    lengths = [name for name in table("", "384 tokens")[0] if name]
    assert lengths == [f"{length} tokens" for length in published.LENGTHS]
    rows = {row[""]: tuple(float(row[length]) for length in lengths) for row in table("", "384 tokens")}
    expected = {f"{name}, GB": sizes for name, sizes in published.PUBLISHED_GB.items()}
    expected |= {f"{name}, seconds a step": times for name, times in published.PUBLISHED_SECONDS.items()}
    assert rows == expected
