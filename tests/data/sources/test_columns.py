"""Columns as conversations, images in tables, and data sets of hubs: the same records for every reader."""

import io
import json

import datasets
import pytest
from helpers import hub_server
from helpers.commands import exit_code
from helpers.data_files import error_of, samples
from PIL import Image
from pyarrow import parquet

from qwen_vl.checkpoint import loading
from qwen_vl.data import conversations, image_files, skip_manifests
from qwen_vl.data.build import SourceOptions, load_file, stream
from qwen_vl.data.chatml import EncodeOptions
from qwen_vl.data.collator import ConversationCollator
from qwen_vl.data.mixing import parse_sources
from qwen_vl.data.sources import hub_data, locating
from qwen_vl.data.sources.streaming import StreamOptions
from qwen_vl.evaluation.readers import conversations as evaluation_reader

COLORS = ("red", "green", "blue", "white")
MAP = """
data: {data}
columns:
  id: number
  images: picture
  user: "What is this? {{hint}}"
  assistant: color
"""


def png(color, size=(32, 32)):
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def rows(colors=COLORS):
    return [
        {"number": index, "picture": {"bytes": png(color), "path": f"{color}.png"}, "color": color, "hint": "Be brief."}
        for index, color in enumerate(colors)
    ]


def dataset(found, column="picture", kind=None):
    return datasets.Dataset.from_list(found).cast_column(column, kind or datasets.Image())


@pytest.fixture
def tables(tmp_path):
    """Return a folder of two Parquet files as `datasets` writes them, and a map of their columns beside it."""
    (tmp_path / "shards").mkdir()
    for part in (0, 1):
        file = tmp_path / f"shards/train-0000{part}-of-00002.parquet"
        dataset(rows()[2 * part : 2 * part + 2]).to_parquet(file, batch_size=1)
    (tmp_path / "map.yaml").write_text(MAP.format(data="shards"))
    return tmp_path


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    with hub_server.hub_server() as server:
        hub_server.use(server, monkeypatch, tmp_path)
        hub_data.hub_files.cache_clear()
        yield server
    hub_data.hub_files.cache_clear()


def colors_of(path, make_checkpoint, **options):
    """Return the color that the collator opens for each sample, from memory, from the cache and from a stream."""
    tokenizer, encoding = loading.load_tokenizer(make_checkpoint()), EncodeOptions(max_length=512)
    collate = ConversationCollator(tokenizer, 8)
    plain = load_file(path, tokenizer, encoding, SourceOptions("none"))
    cached = load_file(path, tokenizer, encoding, SourceOptions(options["cache"]))
    streamed = stream(parse_sources([path]), tokenizer, encoding, StreamOptions(epochs=1))
    found = []
    for items in ([plain[i] for i in range(len(plain))], [cached[i] for i in range(len(cached))], list(streamed)):
        pixels = [collate([sample])["pixel_values"][0].mean((1, 2)).tolist() for sample in items]
        found.append(
            sorted(
                (sample["id"], tuple(round(value, 3) for value in mean))
                for sample, mean in zip(items, pixels, strict=True)
            )
        )
    assert found[0] == found[1] == found[2]
    return found[0]


def test_images_of_parquet_are_trained_on_without_being_written_out(tables, make_checkpoint):
    path = str(tables / "map.yaml")
    before = sorted(tables.rglob("*"))
    records = conversations.read(path)
    assert [record["id"] for record in records] == [0, 1, 2, 3]
    user, assistant = records[3]["conversations"]
    assert user["value"] == (
        "Picture 1: <img>table://train-00001-of-00002.parquet#1/picture/0</img>\nWhat is this? Be brief."
    )
    assert assistant == {"from": "assistant", "value": "white"}
    assert sorted(tables.rglob("*")) == before
    seen = colors_of(path, make_checkpoint, cache=str(tables / "cache"))
    assert len({mean for _, mean in seen}) == 4, "each sample has its own image"
    image = image_files.read("table://train-00001-of-00002.parquet#0/picture/0", [str(tables / "shards")])
    assert image.getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("write", ["to_parquet", "save_to_disk"])
def test_a_table_with_our_turns_and_a_column_of_images_needs_no_map(tmp_path, write):
    turns = [{"from": "human", "value": "Compare <image> and <image>."}, {"from": "gpt", "value": "red, green"}]
    found = [
        {
            "id": "a",
            "images": [{"bytes": png(color), "path": None} for color in ("red", "green")],
            "conversations": turns,
        },
        {"id": "b", "images": [], "conversations": [{**turn, "value": "Hi"} for turn in turns]},
    ]
    getattr(dataset(found, "images", [datasets.Image()]), write)(tmp_path / "d.parquet")
    path = tmp_path / "d.parquet"
    first, second = conversations.read(path)
    user = first["conversations"][0]
    assert user["from"] == "user" and user["value"].startswith("Compare Picture 1: <img>table://")
    assert "/images/1</img>." in user["value"]
    assert second["conversations"][0] == {"from": "user", "value": "Hi"}
    (record, _) = evaluation_reader.read({"records": path})
    assert [image.open().getpixel((0, 0)) for image in record.images] == [(255, 0, 0), (0, 128, 0)]
    assert record.images[0].digest() != record.images[1].digest()


def test_check_preview_and_evaluation_read_the_same_images(tables, make_checkpoint, capsys):
    path = tables / "map.yaml"
    assert exit_code(["data", "check", path, "--workers", "1"]) == 0
    assert "no errors" in capsys.readouterr().out
    assert exit_code(["data", "preview", path, "--model", make_checkpoint(), "--out", tables / "page.html"]) == 0
    assert (tables / "page.html").read_text().count("data:image/") >= 4
    sources = [record.images[0] for record in evaluation_reader.read({"records": path})]
    assert [source.read() for source in sources] == [png(color) for color in COLORS]
    damaged = rows()
    damaged[2]["picture"] = {"bytes": b"no image", "path": "x.png"}
    dataset(damaged).to_parquet(tables / "shards/train-00000-of-00002.parquet")
    assert exit_code(["data", "check", path, "--workers", "1"]) == 1
    said = capsys.readouterr().out
    assert "not an image that Pillow reads" in said and "/train-00000-of-00002.parquet[2]" in said


@pytest.mark.parametrize("write", ["to_parquet", "save_to_disk"])
def test_an_image_without_bytes_is_a_file_beside_the_table_or_missing_before_a_run(tmp_path, write):
    """As `datasets` stores images that were given by path, if it does not embed them."""
    found = [{"number": 0, "color": "red", "hint": "", "picture": {"bytes": None, "path": "red.png"}}, *rows()[1:3]]
    found[2]["picture"] = {"bytes": None, "path": "gone.png"}
    table = datasets.Dataset.from_list(found)
    getattr(table, write)(tmp_path / "t.parquet")
    beside = tmp_path if write == "to_parquet" else tmp_path / "t.parquet"
    (beside / "red.png").write_bytes(png("red"))
    (tmp_path / "map.yaml").write_text(
        MAP.format(data="t.parquet").replace('"What is this? {hint}"', '{text: "What is this?"}')
    )
    message = error_of(conversations.read, tmp_path / "map.yaml")
    assert "1 problem in 3 records" in message and "#2/picture/0" in message and "no such file" in message
    first, second, _ = conversations.read(tmp_path / "map.yaml", check_images=False)
    folders = conversations.search_dirs(tmp_path / "map.yaml")
    for record, color in ((first, (255, 0, 0)), (second, (0, 128, 0))):
        reference = record["conversations"][0]["value"].split("<img>")[1].split("</img>")[0]
        assert image_files.read(reference, folders).getpixel((0, 0)) == color


def test_caches_and_manifests_see_changes_of_data_and_map(tables, make_checkpoint):
    path = str(tables / "map.yaml")

    def digests():
        tokenizer, encoding = loading.load_tokenizer(make_checkpoint()), EncodeOptions(max_length=512)
        streamed = stream(parse_sources([path]), tokenizer, encoding, StreamOptions(epochs=1))
        return skip_manifests.sha256(path), streamed.fingerprint

    first = digests()
    (tables / "map.yaml").write_text(MAP.format(data="shards").replace("Be brief", "Say it") + "  category: hint\n")
    second = digests()
    dataset(rows(("red", "black"))).to_parquet(tables / "shards/train-00000-of-00002.parquet", batch_size=1)
    third = digests()
    for before, after in ((first, second), (second, third), (first, third)):
        assert before[0] != after[0] and before[1] != after[1]


@pytest.mark.parametrize(
    "text, said",
    [
        ("- a", "a map of columns has the keys data"),
        ("data: shards", "columns: missing"),
        ("data: shards\ncolumns: {user: a}", "name conversations, or both user and assistant"),
        ("data: shards\ncolumns: {usr: a, user: a, assistant: b}", "columns.usr: unknown; use id,"),
        ("data: shards\ncolumns: {user: 1, assistant: b}", "columns.user: a number; use the name of a column"),
        ("data: shards\nformat: mine\ncolumns: {conversations: a}", 'format: "mine"; use llava,'),
        ("data: other.yaml\ncolumns: {conversations: a}", "data: names another map"),
        ("data: [", "not YAML"),
        (MAP.format(data="shards").replace("color", "paint"), "columns.assistant: no column 'paint' in"),
        (MAP.format(data="shards").replace("{hint}", "{hints}"), "columns.user: no column 'hints' in"),
        ("data: shards\ncolumns: {user: Say it., assistant: color}", 'or write a fixed text as {text: "Say it."}'),
        (MAP.format(data="shards").replace("assistant: color", "assistant: number"), "a number; columns.assistant"),
    ],
)  # fmt: skip
def test_a_wrong_map_is_one_clear_error(tables, text, said):
    (tables / "map.yaml").write_text(text)
    assert said in error_of(conversations.read, tables / "map.yaml")


def test_a_map_renames_the_keys_of_json_and_reads_other_formats(tmp_path):
    talk = [{"role": "user", "content": "Hi <image>"}, {"role": "assistant", "content": "Hello"}]
    (tmp_path / "d.jsonl").write_text(json.dumps({"name": "x", "chat": talk, "shot": "a.png"}) + "\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "m.yml").write_text(
        "data: d.jsonl\nformat: openai\ncolumns: {id: name, conversations: chat, images: shot}"
    )
    (record,) = conversations.read(tmp_path / "m.yml")
    assert record["id"] == "x" and "<img>a.png</img>" in record["conversations"][0]["value"]


@pytest.mark.parametrize("prefix", ["hf", "ms"])
def test_a_data_set_of_a_hub_is_read_by_datasets_once_and_stays_without_a_network(
    hub, make_checkpoint, monkeypatch, tmp_path, prefix
):
    for split, colors in (("train", COLORS), ("test", ("black",))):
        dataset(rows(colors)).to_parquet(tmp_path / f"up/data/{split}-00000-of-00001.parquet")
    hub.add("owner/colors", tmp_path / "up", kind="dataset")
    name = f"{prefix}:owner/colors"
    assert "name one of them, such as" in error_of(locating.data_files, name)
    assert "has no split 'val', only" in error_of(locating.data_files, f"{name}:val")
    (tmp_path / "map.yaml").write_text(MAP.format(data=f"{name}:train"))
    seen = colors_of(str(tmp_path / "map.yaml"), make_checkpoint, cache=str(tmp_path / "cache"))
    assert [number for number, _ in seen] == [0, 1, 2, 3] and len({mean for _, mean in seen}) == 4
    hub_server.new_process(monkeypatch, is_online=False)
    hub_data.hub_files.cache_clear()
    assert len(conversations.read(tmp_path / "map.yaml")) == 4
    assert exit_code(["data", "check", tmp_path / "map.yaml", "--workers", "1"]) == 0


def test_conversations_of_a_hub_are_given_by_name_with_a_weight_and_a_revision(hub, tmp_path, make_checkpoint):
    talk = [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello"}]
    lines = "".join(json.dumps({"id": f"r{index}", "conversations": talk}) + "\n" for index in range(3))
    repo = hub.add("owner/talks", {"train.jsonl": lines}, kind="dataset")
    repo.revisions["v1"] = {"train.jsonl": lines.splitlines(keepends=True)[0].encode()}
    (source,) = parse_sources(["hf:owner/talks:train:2"])
    assert (source.path, source.weight) == ("hf:owner/talks:train", 2)
    assert len(conversations.read("hf:owner/talks")) == 3
    assert [record["id"] for record in conversations.read("hf:owner/talks@v1:train")] == ["r0"]
    tokenizer = loading.load_tokenizer(make_checkpoint())
    assert samples("hf:owner/talks", tokenizer, tmp_path).keys() == {"r0", "r1", "r2"}


def test_what_is_no_data_set_of_a_hub_is_one_clear_error(hub):
    hub.add("owner/nothing", {"README.md": "empty"}, kind="dataset")
    with pytest.raises(FileNotFoundError, match="Hugging Face has no such data set, or it is private"):
        conversations.read("hf:owner/nowhere")
    assert "`datasets` cannot read it (" in error_of(conversations.read, "hf:owner/nothing")
    assert "no name of a data set; write hf:OWNER/NAME:SPLIT" in error_of(conversations.read, "hf:owner")


def test_a_large_row_group_is_warned_of(tmp_path, monkeypatch, caplog):
    parquet.write_table(dataset(rows()).data.table, tmp_path / "d.parquet")
    (tmp_path / "map.yaml").write_text(MAP.format(data="d.parquet"))
    monkeypatch.setattr("qwen_vl.data.sources.table_files.LARGE_GROUP", 100)
    conversations.read(tmp_path / "map.yaml")
    assert "row groups of 0 MiB, of which one is read for each image" in caplog.text
