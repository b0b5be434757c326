"""The images of requests: read in few threads, and one request does not stop another."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
from helpers.images import noise

from qwen_vl.serving.api.images import READS_AT_ONCE, ImagePool
from qwen_vl.serving.api.metrics import Metrics
from qwen_vl.serving.conversation import SentImage
from qwen_vl.serving.media import MediaError, MediaPolicy
from qwen_vl.serving.protocol.errors import ApiError
from qwen_vl.serving.protocol.request import ImageAddress


class Reader:
    """Reads "data:N" and "http://N" as images; holds those whose name is in `held` until `go` is set."""

    def __init__(self, num_decoders=8):
        self.policy, self.go, self.lock = MediaPolicy(num_decoders=num_decoders), threading.Event(), threading.Lock()
        self.reading, self.most, self.names = 0, 0, []

    def read(self, source, *, where, side):
        with self.lock:
            self.names.append(source)
            self.reading += 1
            self.most = max(self.most, self.reading)
        try:
            if "slow" in source:
                assert self.go.wait(10)
            if "bad" in source:
                raise MediaError("damaged", where=where)
            return SentImage.of(noise(5, 3)).squashed(side)
        finally:
            with self.lock:
                self.reading -= 1


@pytest.fixture
def reader():
    reader = Reader()
    yield reader
    reader.go.set()


def pool_of(reader):
    return ImagePool(reader, Metrics(SimpleNamespace()), side=8, fetch_workers=2)


def addresses(*sources):
    return [ImageAddress(source, f"messages[0].content[{number}]") for number, source in enumerate(sources)]


def test_one_request_reads_a_few_images_at_once(reader):
    async def run():
        pool = pool_of(reader)
        many = asyncio.ensure_future(pool.read(addresses(*[f"data:slow{number}" for number in range(12)])))
        while reader.reading < READS_AT_ONCE:
            await asyncio.sleep(0.01)
        (image,) = await asyncio.wait_for(pool.read(addresses("data:other")), 5)  # does not wait for the twelve
        assert (image.image.size, image.size) == ((8, 8), (5, 3))
        assert len(reader.names) == READS_AT_ONCE + 1
        reader.go.set()
        assert len(await many) == 12
        pool.close()

    asyncio.run(run())
    assert reader.most == READS_AT_ONCE + 1


def test_downloads_do_not_stop_images_that_are_sent(reader):
    async def run():
        pool = pool_of(reader)
        slow = asyncio.ensure_future(pool.read(addresses(*["HTTPS://slow"] * 4)))
        while reader.reading < 2:
            await asyncio.sleep(0.01)
        assert await asyncio.wait_for(pool.read(addresses("data:1", "file:2")), 5)
        reader.go.set()
        assert len(await slow) == 4
        pool.close()

    asyncio.run(run())


def test_after_a_bad_image_or_a_cancel_nothing_more_is_read(reader):
    async def run():
        pool = pool_of(reader)
        with pytest.raises(ApiError, match=r"^messages\[0\].content\[1\]: the image is damaged") as error:
            await pool.read(addresses("data:1", "data:bad", *["data:slow"] * 20))
        assert (error.value.status, error.value.code) == (400, "invalid_image")
        reading = asyncio.ensure_future(pool.read(addresses(*["data:slow"] * 20)))
        await asyncio.sleep(0.05)
        reading.cancel()
        reader.go.set()
        await asyncio.sleep(0.2)
        pool.close()

    asyncio.run(run())
    assert len(reader.names) <= 2 + 2 * READS_AT_ONCE
