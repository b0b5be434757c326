"""Local images in requests: nothing outside the folder is read, and its absence looks like any other."""

import os
import socket
import threading

import pytest
from helpers.images import encoded

from qwen_vl.serving.media import MediaError
from qwen_vl.serving.media import local_files as module
from qwen_vl.serving.media.local_files import path_of, read_file


@pytest.fixture
def folder(tmp_path):
    """Return a folder of images, with links, next to a folder with a secret."""
    (tmp_path / "images" / "deep").mkdir(parents=True)
    (tmp_path / "images-secret").mkdir()
    for name in ("images/a.png", "images/deep/b.png", "images/white space%41.png", "images-secret/s.png"):
        (tmp_path / name).write_bytes(encoded())
    folder = tmp_path / "images"
    (folder / "inside").symlink_to("deep/b.png")
    (folder / "outside").symlink_to("../images-secret/s.png")
    (folder / "folder").symlink_to("../images-secret")
    (folder / "chain").symlink_to("outside")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nothing")
    (folder / "null").symlink_to("/dev/null")
    os.mkfifo(folder / "pipe")
    return folder


def reason_of(path, folder, max_bytes=10_000):
    with pytest.raises(MediaError) as caught:
        read_file(path_of(path), folder, max_bytes)
    return caught.value


@pytest.mark.parametrize(
    "path",
    [
        "a.png",
        "./a.png",
        "deep/b.png",
        "deep/../a.png",
        "a.png/",
        "inside",
        "{}/a.png",
        "{}/deep/b.png",
        "white space%41.png",
    ]
    + ["file://{}/a.png", "file://localhost{}/a.png", "FILE://{}/white%20space%2541.png"],
)
def test_files_of_the_folder(folder, path):
    assert read_file(path_of(path.format(folder)), folder, 10_000) == encoded()


FORBIDDEN = ["missing.png", "deep/missing.png", "../images-secret/s.png", "{}-secret/s.png", "folder/s.png", "folder"]
FORBIDDEN += [
    "/etc/passwd",
    "../../../../../../etc/passwd",
    "deep/../../images-secret/s.png",
    "outside",
    "chain",
    "loop",
]
FORBIDDEN += ["{}/../images-secret/s.png", "dangling", "null", "pipe", "deep", ".", "..", "", "/", "{}", "{}/"]
FORBIDDEN += ["a.png/x", "a.png\0", "\0", "a" * 5000, "d/" * 3000, "\ud800", "~/a.png", "$HOME/a.png", "*.png"]
FORBIDDEN += ["/dev/zero", "/dev/stdin", "/proc/self/environ", "/proc/self/fd/0", "\\etc\\passwd", "A.PNG"]
FORBIDDEN += ["file:///etc/passwd", "file://{}/%2e%2e/images-secret/s.png", "file://{}/a.png%00", "file:/etc/passwd"]
FORBIDDEN += ["file://", "file:///", "file://{}/outside", "file://a.example{}/a.png", "file:a.png"]
FORBIDDEN += ["%2e%2e/images-secret/s.png", "{}/white%20space%2541.png", "http:/127.0.0.1/a.png"]


@pytest.mark.parametrize("path", FORBIDDEN)
def test_one_answer_for_missing_forbidden_and_outside(folder, path):
    error = reason_of(path.format(folder), folder)
    assert (error.reason, str(error)) == ("file", str(MediaError("file")))


def test_files_without_permission(folder):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (folder / "a.png").chmod(0)
    assert reason_of("a.png", folder).reason == "file"


def test_sockets_and_hard_links(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("sock")
        assert reason_of("sock", folder).reason == "file"
    os.link("../images-secret/s.png", "linked")  # made by who may write into the folder: part of it
    assert read_file("linked", folder, 10_000) == encoded()


def test_a_pipe_is_not_opened(folder):
    """Check that a writer who waits for a reader still waits: to open a pipe or device may do something by itself."""
    opened = threading.Event()

    def write():
        with open(folder / "pipe", "wb"):
            opened.set()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    assert reason_of("pipe", folder).reason == "file"
    assert not opened.wait(0.2)
    os.close(os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK))
    writer.join(2)
    assert not writer.is_alive()


@pytest.mark.parametrize("replaced", ["deep", "deep/b.png"])
def test_a_link_that_appears_after_the_check(folder, monkeypatch, replaced):
    """Check that a part of the path that becomes a link between check and opening leads nowhere."""
    open_below = module._open_below

    def late(root, parts):
        os.rename(folder / replaced, folder / "old")
        target = "../images-secret" if replaced == "deep" else folder.parent / "images-secret" / "s.png"
        (folder / replaced).symlink_to(target)
        (folder.parent / "images-secret" / "b.png").write_bytes(encoded())
        return open_below(root, parts)

    monkeypatch.setattr(module, "_open_below", late)
    assert reason_of("deep/b.png", folder).reason == "file"


def test_descriptors_are_closed_and_size_is_limited(folder):
    def num_open():
        return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    before = num_open()
    assert read_file("a.png", folder, len(encoded())) == encoded()
    assert reason_of("a.png", folder, len(encoded()) - 1).reason == "bytes"
    for path in ("deep", "pipe", "null", "missing", "deep/missing", "a.png/x"):
        reason_of(path, folder)
    assert num_open() == before


def test_the_folder_may_be_a_link(folder):
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert read_file("deep/b.png", link, 10_000) == read_file(f"{link}/a.png", link, 10_000) == encoded()
    assert reason_of("outside", link).reason == reason_of("../images-secret/s.png", link).reason == "file"
