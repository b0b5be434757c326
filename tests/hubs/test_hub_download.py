"""Downloads from both hubs, from a server on this machine: revisions, resuming, the cache, and clear errors."""

import os
from pathlib import Path

import pytest
from helpers import hub_server
from huggingface_hub import file_download
from modelscope_hub import _legacy_api

from qwen_vl.checkpoint import loading
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.hubs import download

HUBS = pytest.mark.parametrize("prefix", ["hf", "ms"])


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server.hub_server() as server:
        hub_server.use(server, monkeypatch, tmp_path)
        yield server


@HUBS
def test_a_model_is_downloaded_file_by_file_once_and_stays_without_a_network(hub, make_checkpoint, monkeypatch, prefix):
    hub.add("owner/tiny", make_checkpoint())
    name = f"{prefix}:owner/tiny"
    loading.load_config(name)
    assert not hub.downloads("model.safetensors"), "a configuration needs no weights"
    model, tokenizer = loading.load_model(name), loading.load_tokenizer(name)
    assert loading.fingerprint(name) == loading.fingerprint(make_checkpoint())
    assert tokenizer.get_vocab() == loading.load_tokenizer(make_checkpoint()).get_vocab()
    assert len(hub.downloads("model.safetensors")) == 1 and model.num_parameters() > 0
    for is_online in (True, False):
        hub_server.new_process(monkeypatch, is_online=is_online)
        before = len(hub.requests)
        assert ModelFolder.open(name).fingerprint == loading.fingerprint(make_checkpoint())
        assert ModelFolder.open(name).is_chat
        assert len(hub.downloads("model.safetensors")) == 1
        assert is_online or len(hub.requests) == before, "offline nothing is asked"


@HUBS
def test_a_revision_is_pinned_and_a_branch_moves_on(hub, monkeypatch, prefix):
    repo = hub.add("owner/tiny", {"config.json": "1"})
    repo.revisions["v1"] = {"config.json": b"old"}
    commit = repo.commit("v1")

    def content(name):
        hub_server.new_process(monkeypatch)
        return Path(download.find_file(name, "config.json")).read_text()

    assert content(f"{prefix}:owner/tiny@v1") == content(f"{prefix}:owner/tiny@{commit}") == "old"
    assert content(f"{prefix}:owner/tiny") == "1"
    for files in repo.revisions.values():
        files["config.json"] = b"2"  # of the same size
    assert content(f"{prefix}:owner/tiny") == "2"


def test_all_files_of_a_process_are_of_one_commit(hub):
    repo = hub.add("owner/tiny", {"config.json": "1", "a.bin": "1"})
    repo.revisions["old"] = dict(repo.revisions["main"])
    download.find_file("owner/tiny", "config.json")
    repo.revisions["main"] = {"config.json": b"2", "a.bin": b"2"}  # pushed while the download runs
    assert Path(download.find_file("owner/tiny", "a.bin")).read_text() == "1"


@HUBS
def test_a_cut_download_is_resumed_where_it_stopped(hub, monkeypatch, prefix):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**20)  # it keeps whole chunks, of 10 MiB
    content = os.urandom(3_000_000)
    hub.add("owner/tiny", {"config.json": "{}", "model.safetensors": content})
    hub.cut("model.safetensors", 2_000_000)
    found = download.find_file(f"{prefix}:owner/tiny", "model.safetensors")
    assert Path(found).read_bytes() == content
    first, *later = hub.downloads("model.safetensors")
    assert first is None and len(later) == 1 and int(later[0].removeprefix("bytes=").split("-")[0]) > 0


@HUBS
@pytest.mark.parametrize(
    "name, error, said",
    [
        ("owner/nowhere", FileNotFoundError, r"no folder here, and .* has no such model, or it is private; check the"),
        ("owner/tiny@v9", FileNotFoundError, r"has owner/tiny, but not its revision 'v9'; name a branch, tag or"),
        ("owner/gated", PermissionError, r"refuses access \(403\); ask for access on its page, or log in"),
        (
            "owner/secret",
            OSError,
            r"private one, log in \(hf auth login\) or|refuses access \(401\).*API_TOKEN",
        ),
    ],
)
def test_what_a_hub_refuses_is_one_clear_line(hub, prefix, name, error, said):
    hub.add("owner/tiny", {"config.json": "{}"})
    hub.add("owner/gated", {"config.json": "{}"}, gated=True)
    hub.add("owner/secret", {"config.json": "{}"}, private=True)
    with pytest.raises(error, match=said) as raised:
        loading.load_config(f"{prefix}:{name}")
    assert "\n" not in str(raised.value) and name in str(raised.value)


@HUBS
def test_a_private_model_opens_with_the_token_of_the_environment(hub, monkeypatch, tmp_path, prefix):
    hub.add("owner/secret", {"config.json": "{}"}, private=True)
    hub_server.use(hub, monkeypatch, tmp_path, token=hub_server.TOKEN)
    assert download.find_file(f"{prefix}:owner/secret", "config.json")


@HUBS
def test_a_hub_that_cannot_be_reached_is_one_clear_line_but_a_cached_model_loads(hub, monkeypatch, tmp_path, prefix):
    monkeypatch.setattr(_legacy_api, "REPO_TREE_PAGE_RETRY_MAX_DELAY_SECONDS", 0)
    monkeypatch.setattr(file_download, "_DEFAULT_RETRY_ON_EXCEPTIONS", ())  # it would try again for 20 seconds
    hub.add("owner/tiny", {"config.json": "{}"})
    download.find_file(f"{prefix}:owner/tiny", "config.json")
    hub_server.new_process(monkeypatch)
    for variable in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    assert Path(download.find_file(f"{prefix}:owner/tiny", "config.json")).read_text() == "{}"
    assert download.find_file(f"{prefix}:owner/tiny", "generation_config.json") is None
    with pytest.raises(FileNotFoundError, match=r"no folder here, not downloaded yet, and .* cannot be reached \("):
        download.find_file(f"{prefix}:owner/other", "config.json")


def test_a_model_of_modelscope_loads_if_neither_of_its_sites_can_be_reached(hub, monkeypatch):
    hub.add("owner/tiny", {"config.json": "{}"})
    download.find_file("ms:owner/tiny", "config.json")
    hub_server.new_process(monkeypatch)
    monkeypatch.delenv("MODELSCOPE_ENDPOINT")  # without it, the client asks which site has the model
    monkeypatch.setattr("modelscope_hub._openapi.API_MAX_RETRIES", 1)
    for name in ("DEFAULT_ENDPOINT", "DEFAULT_INTL_ENDPOINT"):
        monkeypatch.setattr(f"modelscope_hub.constants.{name}", "http://127.0.0.1:9")
    assert Path(download.find_file("ms:owner/tiny", "config.json")).read_text() == "{}"
    assert download.find_file("ms:owner/tiny", "generation_config.json") is None


@HUBS
def test_a_data_set_is_downloaded_whole_and_stays_without_a_network(hub, monkeypatch, prefix):
    hub.add("owner/set", {"train.jsonl": "{}", "data/a.parquet": b"x"}, kind="dataset")
    folder = download.dataset_folder(f"{prefix}:owner/set")
    assert Path(folder, "data/a.parquet").read_bytes() == b"x"
    hub_server.new_process(monkeypatch, is_online=False)
    assert download.dataset_folder(f"{prefix}:owner/set") == folder
    with pytest.raises(FileNotFoundError, match="cannot be reached"):
        download.dataset_folder(f"{prefix}:owner/other")


@pytest.mark.parametrize("text", ["nowhere", "a/b/c", "./a/b", "~/a", "/a/b", "xx:a/b", "a/b@", "http://a/b"])
def test_what_is_no_name_is_never_asked_for(text):
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint folder; give a folder or a hub name such as"):
        download.find_file(text, "config.json")
