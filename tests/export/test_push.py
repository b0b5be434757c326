"""`push`: models and adapters on both hubs, from a server on this machine, and what is refused before and by a hub."""

import json
import shutil

import pytest
from helpers import hub_server
from helpers.adapters import write_adapter
from helpers.commands import exit_code

from qwen_vl.adapters.adapter import Adapter
from qwen_vl.checkpoint import loading
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.export.export import export
from qwen_vl.export.push import check, push

HUBS = pytest.mark.parametrize("prefix", ["hf", "ms"])


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server.hub_server() as server:
        hub_server.use(server, monkeypatch, tmp_path, token=hub_server.TOKEN)
        yield server


@pytest.fixture
def model(make_checkpoint, tmp_path):
    export(make_checkpoint(), output_dir=tmp_path / "export")
    (tmp_path / "export" / "trainer_state.json").write_text("{}")
    (tmp_path / "export" / "checkpoint-1").mkdir()
    (tmp_path / "export" / "checkpoint-1" / "optimizer.pt").touch()
    return tmp_path / "export"


@HUBS
def test_a_pushed_model_comes_back_with_its_card_and_nothing_of_the_run(hub, model, capsys, monkeypatch, prefix):
    assert exit_code(["push", model, f"{prefix}:owner/mine", "--private"]) == 0
    assert f"uploaded to {hub.address}" in capsys.readouterr().out
    repo = hub.repos["model", "owner/mine"]
    files = repo.revisions["main" if prefix == "hf" else "master"]
    assert repo.private and not {"trainer_state.json", "run.json"} & files.keys()
    assert not [path for path in files if "/" in path]
    card = files["README.md"].decode()
    assert 'AutoTokenizer.from_pretrained("owner/mine"' in card and "## License" in card
    hub_server.new_process(monkeypatch)
    assert ModelFolder.open(f"{prefix}:owner/mine").fingerprint == loading.fingerprint(model)
    assert {file.name for file in model.glob("*.py")} <= files.keys() and "chat_template.jinja" in files
    assert exit_code(["push", model, f"{prefix}:owner/mine"]) == 0, "again, into a repository that exists"


@HUBS
def test_a_pushed_adapter_names_no_path_of_this_machine_and_is_used_by_name(
    hub, make_checkpoint, tmp_path, monkeypatch, prefix
):
    folder = write_adapter(make_checkpoint(), tmp_path / "adapter")
    push(folder, f"{prefix}:owner/adapter")
    files = hub.repos["model", "owner/adapter"].revisions["main" if prefix == "hf" else "master"]
    assert not [path for path, content in files.items() if str(make_checkpoint()).encode() in content]
    assert json.loads(files["base.json"])["name"] == make_checkpoint().name
    assert "qwen-vl chat owner/adapter" in files["README.md"].decode()
    hub_server.new_process(monkeypatch)
    assert ModelFolder.open(f"{prefix}:owner/adapter").is_adapter
    adapter = Adapter.open(f"{prefix}:owner/adapter")
    assert adapter.shapes() == Adapter.open(folder).shapes()
    assert adapter.find_base(make_checkpoint()).path == str(make_checkpoint())


@HUBS
@pytest.mark.parametrize(
    "name, options, token, said",
    [
        ("owner/new", {}, None, "an upload to .* needs a token; log in"),
        ("owner/new", {}, "stale", r"does not know the token \(401\)"),
        ("other/new", {}, hub_server.TOKEN, r"does not let this token write there \(403\); use a token with write"),
        ("other/theirs", {}, hub_server.TOKEN, r"does not let this token write there \(403\)"),
        ("owner/public", {"private": True}, hub_server.TOKEN, "--private, but .* has it as a public repository"),
        ("nothing", {}, hub_server.TOKEN, "nothing: not a name on a hub; write OWNER/NAME"),
    ],
)
def test_what_a_hub_refuses_is_one_clear_line(hub, model, monkeypatch, tmp_path, prefix, name, options, token, said):
    hub.add("other/theirs", {}, is_ours=False)
    hub.add("owner/public", {})
    hub_server.use(hub, monkeypatch, tmp_path, token=token)
    with pytest.raises((PermissionError, ValueError), match=said) as raised:
        push(model, name if name == "nothing" else f"{prefix}:{name}", **options)
    assert "\n" not in str(raised.value)
    assert not hub.blobs and ("model", "owner/new") not in hub.repos


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json, so it is no model, or was not written"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"no model\.safetensors and no pytorch_model"),
        (lambda folder: (folder / "qwen.tiktoken").unlink(), r"has no qwen\.tiktoken"),
        (lambda folder: cut(folder / "model.safetensors"), "the weights cannot be read"),
        (lambda folder: resize(folder / "config.json"), "num_hidden_layers|missing|not in the files"),
        (lambda folder: (folder / ".complete").mkdir(), "a run was killed while it replaced the model there"),
        (shutil.rmtree, "no such folder; give that of a model or an adapter"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_before_anything_is_sent(model, damage, said):
    check(model)
    damage(model)
    with pytest.raises((OSError, ValueError), match=said):
        check(model)


def cut(file):
    file.write_bytes(file.read_bytes()[:-1000])


def resize(file):
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 3}))


def test_the_branch_and_the_hub_of_the_flags(hub, model):
    assert exit_code(["push", model, "owner/mine", "--revision", "v2"]) == 0
    revisions = hub.repos["model", "owner/mine"].revisions
    assert "model.safetensors" in revisions["v2"] and not revisions["main"]
    assert exit_code(["push", model, "owner/other", "--hub", "modelscope"]) == 0
    assert "model.safetensors" in hub.repos["model", "owner/other"].revisions["master"]
