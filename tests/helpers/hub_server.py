"""A server on this machine that answers as the Hugging Face hub and ModelScope do: downloads, and uploads of models.

It holds repositories as {revision: {path: bytes}}. What their clients send and expect is in the source of
`huggingface_hub` and `modelscope_hub`.
"""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import constants

from qwen_vl.hubs import hugging_face as hugging_face_client
from qwen_vl.hubs import model_scope as model_scope_client

TOKEN = "token-of-the-owner"


class Repo:
    """A repository. private: only TOKEN opens it. gated: no token opens it. is_ours: whether TOKEN may write."""

    def __init__(self, files=(), *, private=False, gated=False, is_ours=True, kind="model", branch="main"):
        self.kind, self.private, self.gated, self.is_ours = kind, private, gated, is_ours
        self.revisions = {branch: dict(files), "master" if branch == "main" else "main": dict(files)}

    def commit(self, revision):
        """Return a commit hash of a revision, which depends on its content."""
        files = self.revisions[revision]
        text = json.dumps([(path, hashlib.sha256(files[path]).hexdigest()) for path in sorted(files)])
        return hashlib.sha1(text.encode()).hexdigest()

    def files(self, revision):
        """Return {path: bytes} of a branch, tag or commit, None if there is no such revision."""
        for name, files in self.revisions.items():
            if revision in (name, self.commit(name)):
                return files
        return None


class Hub:
    """The state of the server: repositories by (kind, name), and what was asked of it."""

    def __init__(self):
        self.repos, self.requests, self.cuts, self.blobs = {}, [], {}, {}
        self.address = ""

    def add(self, name, files, **options):
        """Add a repository and return it. files: {path: bytes or text}, or a folder."""
        if not isinstance(files, dict):
            files = {str(path.relative_to(files)): path.read_bytes() for path in files.rglob("*") if path.is_file()}
        files = {path: content.encode() if isinstance(content, str) else content for path, content in files.items()}
        repo = Repo(files, **options)
        self.repos[repo.kind, name] = repo
        return repo

    def cut(self, path, after):
        """Close the connection after so many bytes when a file is asked for the next time."""
        self.cuts[path] = after

    def downloads(self, path):
        """Return the Range headers of all downloads of a file, None where there was none."""
        return [headers.get("Range") for method, asked, headers in self.requests if method == "GET" and path in asked]


class Reply(Exception):
    """An answer: its status, content (bytes, or what becomes JSON) and headers."""

    def __init__(self, content=b"", status=200, **headers):
        super().__init__(status)
        is_raw = isinstance(content, bytes)
        self.content, self.status = content if is_raw else json.dumps(content).encode(), status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.path = None  # of a file


def file_reply(path, content, **headers):
    reply = Reply(content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', **headers)
    reply.path = path
    return reply


# ---- Hugging Face ---------------------------------------------------------------------------------------------------


def hf_error(status, code, message=""):
    return Reply({"error": message or code}, status, X_Error_Code=code, X_Error_Message=message or code)


def hf_repo(hub, kind, name, token, *, write=False):
    """Return a repository that a token opens, or raise the Reply that the hub gives."""
    repo = hub.repos.get((kind, name))
    if repo is None or (repo.private and token != TOKEN):
        raise hf_error(404 if token == TOKEN else 401, "RepoNotFound", "Repository not found")
    if repo.gated:
        raise hf_error(403, "GatedRepo", "Access to this model is restricted")
    if write and (token != TOKEN or not repo.is_ours):
        raise hf_error(403, "", "Forbidden: you do not have the rights to write")
    return repo


def hugging_face(hub, method, parts, query, body, token):
    """Return the Reply of the Hugging Face hub, None for an address that it does not have."""
    kind = "model"
    if parts[:1] == ["datasets"]:
        kind, parts = "dataset", parts[1:]
    if parts[2:3] == ["resolve"]:
        repo = hf_repo(hub, kind, "/".join(parts[:2]), token)
        return hf_file(repo, unquote(parts[3]), "/".join(parts[4:]))
    if parts[:2] == ["api", "whoami-v2"]:
        return Reply({"name": "owner", "type": "user", "orgs": []} if token == TOKEN else {}, 200 if token else 401)
    if parts == ["api", "validate-yaml"]:
        return Reply({"errors": [], "warnings": []})
    if parts == ["api", "repos", "create"]:
        return hf_create(hub, json.loads(body), token)
    if parts[1:2] and parts[1].endswith(".git"):
        return lfs_batch(hub, json.loads(body))
    if parts[0] == "api" and parts[1] in ("models", "datasets"):
        return hf_api(hub, parts[1].removesuffix("s"), "/".join(parts[2:4]), parts[4:], body, token)
    return None


def hf_file(repo, revision, path):
    files = repo.files(revision)
    if files is None:
        return hf_error(404, "RevisionNotFound")
    commit = next(repo.commit(name) for name, found in repo.revisions.items() if found is files)
    if path not in files:
        reply = hf_error(404, "EntryNotFound")
        reply.headers["X-Repo-Commit"] = commit
        return reply
    return file_reply(path, files[path], X_Repo_Commit=commit, Accept_Ranges="bytes")


def hf_create(hub, asked, token):
    if token != TOKEN:
        return hf_error(401, "", "Invalid username or password.")
    name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
    if ("model", name) in hub.repos:
        return Reply({"error": "You already created this model repo", "url": f"{hub.address}/{name}"}, 409)
    if asked.get("organization") not in (None, "owner"):
        return hf_error(403, "", "You don't have the rights to create a model under this namespace")
    hub.add(name, {}, private=bool(asked.get("private") or asked.get("visibility") == "private"))
    return Reply({"url": f"{hub.address}/{name}", "name": name})


def hf_api(hub, kind, name, rest, body, token):
    repo = hf_repo(hub, kind, name, token, write=bool(rest) and rest[0] in ("preupload", "commit", "branch"))
    if rest[:1] == ["branch"]:
        repo.revisions.setdefault(unquote(rest[1]), {})
        return Reply({})
    revision = unquote(rest[1]) if len(rest) > 1 else "main"
    files = repo.files(revision)
    if files is None:
        return hf_error(404, "RevisionNotFound")
    if rest[:1] == ["tree"]:
        return Reply([{"type": "file", "path": path, "size": len(files[path]), "oid": path} for path in sorted(files)])
    if rest[:1] == ["preupload"]:
        asked = json.loads(body)["files"]
        modes = ["lfs" if file["path"].endswith(".safetensors") else "regular" for file in asked]
        pairs = zip(asked, modes, strict=True)
        return Reply({"files": [{"path": f["path"], "uploadMode": m, "shouldIgnore": False} for f, m in pairs]})
    if rest[:1] == ["commit"]:
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            if entry["key"] == "lfsFile":
                files[entry["value"]["path"]] = hub.blobs[entry["value"]["oid"]]
        url = f"{hub.address}/{name}/commit/{repo.commit(revision)}"
        return Reply({"commitOid": repo.commit(revision), "commitUrl": url, "pullRequestUrl": None})
    siblings = [{"rfilename": path} for path in sorted(files)]
    return Reply({"id": name, "sha": repo.commit(revision), "siblings": siblings, "private": repo.private})


def lfs_batch(hub, asked):
    """Return where each object is to be uploaded."""
    objects = []
    for entry in asked["objects"]:
        href = f"{hub.address}/blobs/{entry['oid']}"
        actions = {} if entry["oid"] in hub.blobs else {"actions": {"upload": {"href": href, "header": {}}}}
        objects.append({"oid": entry["oid"], "size": entry["size"], **actions})
    return Reply({"transfer": "basic", "objects": objects})


# ---- ModelScope -----------------------------------------------------------------------------------------------------


def ms_error(status, message):
    return Reply({"Code": status, "Message": message, "Success": False}, status)


def ms_repo(hub, kind, name, token, *, write=False):
    repo = hub.repos.get((kind, name))
    if repo is None:
        raise ms_error(404, "Not Found")
    if repo.private and token != TOKEN:
        raise ms_error(401 if not token else 403, "access denied")
    if repo.gated or (write and (token != TOKEN or not repo.is_ours)):
        raise ms_error(403, "access denied")
    return repo


def model_scope(hub, method, parts, query, body, token):
    """Return the Reply of ModelScope, None for an address that it does not have."""
    if parts[0] == "openapi":
        return ms_openapi(hub, parts[2:], token)
    parts = parts[2:]  # behind /api/v1
    if parts == ["models"] and method == "POST":
        return ms_create(hub, json.loads(body), token)
    if parts[0] == "repos":
        return ms_write(hub, "/".join(parts[2:4]), parts[4:], body, token)
    repo = ms_repo(hub, parts[0].removesuffix("s"), "/".join(parts[1:3]), token)
    if parts[3:] == []:
        return Reply({"Code": 200, "Data": {"Name": parts[2], "Path": parts[1]}})
    if parts[3:] == ["revisions"]:
        return Reply({"Code": 200, "Data": {"RevisionMap": {"Branches": [{"Revision": r} for r in repo.revisions]}}})
    files = repo.files(query.get("Revision", "master"))
    if files is None:
        return ms_error(404, "Not Found")
    if parts[3:] in (["repo", "files"], ["repo", "tree"]):
        entries = [{"Path": path, "Type": "blob", "Size": len(content), "Sha256": hashlib.sha256(content).hexdigest()}
                   for path, content in sorted(files.items())]  # fmt: skip
        return Reply({"Code": 200, "Data": {"Files": entries}, "Success": True})
    path = query["FilePath"]
    return file_reply(path, files[path]) if path in files else ms_error(404, "Not Found")


def ms_openapi(hub, parts, token):
    if parts[:2] == ["users", "me"]:
        found = {"username": "owner", "email": "owner@example.org"}
        return Reply({"success": True, "data": found}) if token == TOKEN else ms_error(401, "Invalid token")
    if parts[0] in ("models", "datasets"):
        repo = ms_repo(hub, parts[0].removesuffix("s"), "/".join(parts[1:3]), token)
        data = {"name": parts[2], "owner": parts[1], "private": repo.private, "visibility": 1 if repo.private else 5}
        return Reply({"success": True, "data": data})
    return ms_error(404, "Not Found")


def ms_create(hub, asked, token):
    if token != TOKEN:
        return ms_error(401, "user not logged in")
    name = f"{asked['Path']}/{asked['Name']}"
    if ("model", name) in hub.repos:
        return Reply({"Code": 10010101001, "Message": "already exists", "Success": False}, 400)
    if asked["Path"] != "owner":
        return ms_error(403, "no permission for this namespace")
    hub.add(name, {}, private=asked["Visibility"] == 1)
    return Reply({"Code": 200, "Data": {"Name": asked["Name"], "Path": asked["Path"]}})


def ms_write(hub, name, rest, body, token):
    repo = ms_repo(hub, "model", name, token, write=True)
    if rest[:1] == ["info"]:
        return Reply({"Code": 200, "Data": json.loads(lfs_batch(hub, json.loads(body)).content)})
    files = repo.revisions.setdefault(rest[1], {})
    for action in json.loads(body)["actions"]:
        lfs = action["type"] == "lfs"
        files[action["path"]] = hub.blobs[action["sha256"]] if lfs else base64.b64decode(action["content"])
    return Reply({"Code": 200, "Data": {"Sha": repo.commit(rest[1])}, "Success": True})


# ---- the server -----------------------------------------------------------------------------------------------------


def answer(hub, method, address, headers, body):
    """Return the Reply to a request."""
    hub.requests.append((method, address, dict(headers)))
    parts = [part for part in urlsplit(address).path.split("/") if part]
    query = {key: values[0] for key, values in parse_qs(urlsplit(address).query).items()}
    token = (headers.get("Authorization") or "").removeprefix("Bearer ") or None
    if parts[0] == "blobs":
        assert hashlib.sha256(body).hexdigest() == parts[1], "the client named another digest"
        hub.blobs[parts[1]] = body
        return Reply({"Code": 200})
    is_ms = parts[0] == "openapi" or parts[:2] == ["api", "v1"]
    try:
        reply = (model_scope if is_ms else hugging_face)(hub, method, parts, query, body, token)
    except Reply as refusal:
        reply = refusal
    return reply or Reply({"error": f"the server of this test has no {method} {address}"}, 501)


@contextmanager
def hub_server():
    """Yield the Hub of a running server, whose `address` takes the place of huggingface.co and modelscope.cn."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self):
            length = int(self.headers.get("Content-Length") or 0)
            chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
            body = read_chunks(self.rfile) if chunked else self.rfile.read(length)
            reply = answer(hub, self.command, self.path, self.headers, body)
            content, status = reply.content, reply.status
            asked = self.headers.get("Range")
            if reply.path and asked and self.command == "GET":
                start, _, stop = asked.removeprefix("bytes=").partition("-")
                stop = int(stop) + 1 if stop else len(content)
                reply.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
                content, status = content[int(start) : stop], 206
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "HEAD":
                return
            after = hub.cuts.pop(reply.path, None) if reply.path else None
            self.wfile.write(content[:after])
            if after is not None:
                self.close_connection = True

        do_GET = do_HEAD = do_POST = do_PUT = serve

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.05,))
    thread.start()
    hub.address = f"http://127.0.0.1:{http.server_port}"
    try:
        yield hub
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def read_chunks(file):
    """Return a body that is sent in chunks."""
    body = b""
    while size := int(file.readline().split(b";")[0], 16):
        body += file.read(size)
        file.readline()
    file.readline()
    return body


def use(hub, monkeypatch, tmp_path, *, token=None):
    """Let both clients of this process ask the Hub, and keep what they download in `tmp_path`."""
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.address)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "ms-home"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own for large files
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.setenv(name, token) if token else monkeypatch.delenv(name, raising=False)
    new_process(monkeypatch)


def new_process(monkeypatch, *, is_online=True):
    """Allow or forbid the network, and forget what the process knows of hubs, as a new process does."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0" if is_online else "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not is_online)
    hugging_face_client.COMMITS.clear()
    hugging_face_client.UNREACHABLE.clear()
    model_scope_client.listing.cache_clear()
    model_scope_client.client.cache_clear()
