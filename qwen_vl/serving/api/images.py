"""The images of a request, read in threads of which there are only so many."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from qwen_vl.serving.api.metrics import Metrics
from qwen_vl.serving.conversation import SentImage
from qwen_vl.serving.media import MediaError, MediaReader
from qwen_vl.serving.protocol.errors import ApiError
from qwen_vl.serving.protocol.request import ImageAddress

READS_AT_ONCE = 4  # of one request, so that one with many images does not stop the others


class ImagePool:
    """Reads images for all requests, squashed to side x side pixels.

    Downloads wait for other machines, so they have threads of their own: slow ones do not stop images that are sent.
    """

    def __init__(self, reader: MediaReader, metrics: Metrics, *, side: int, fetch_workers: int) -> None:
        self.reader, self.metrics, self.side = reader, metrics, side
        self._fetching = ThreadPoolExecutor(fetch_workers, "fetch")
        self._decoding = ThreadPoolExecutor(reader.policy.num_decoders, "decode")

    async def read(self, addresses: Sequence[ImageAddress]) -> list[SentImage]:
        """Return the images of some addresses. Raise ApiError (400) for the first bad one.

        If one is bad or the caller is canceled, reads that have not begun are dropped.
        """
        loop, turns = asyncio.get_running_loop(), asyncio.Semaphore(READS_AT_ONCE)

        async def one(address: ImageAddress) -> SentImage:
            is_remote = address.source[:5].lower() in ("http:", "https")
            async with turns:
                return await loop.run_in_executor(self._fetching if is_remote else self._decoding, self._read, address)

        reads = [asyncio.ensure_future(one(address)) for address in addresses]
        try:
            return await asyncio.gather(*reads)
        except MediaError as error:
            raise ApiError(400, str(error), param=error.where, code="invalid_image") from None
        finally:
            for read in reads:
                read.cancel()

    def close(self) -> None:
        """End the threads. Reads that have begun end by their own limits."""
        self._fetching.shutdown(wait=False, cancel_futures=True)
        self._decoding.shutdown(wait=False, cancel_futures=True)

    def _read(self, address: ImageAddress) -> SentImage:
        """Return one image, counted; runs in a thread."""
        try:
            image = self.reader.read(address.source, where=address.where, side=self.side)
        except MediaError as error:
            self.metrics.images_refused.labels(error.reason).inc()
            raise
        self.metrics.images_read.inc()
        return image
