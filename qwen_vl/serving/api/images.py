"""The images of a request, read in threads of which there are only so many."""

import asyncio
import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from qwen_vl.serving.api.metrics import Metrics
from qwen_vl.serving.api.settings import ServerSettings
from qwen_vl.serving.conversation import SentImage
from qwen_vl.serving.media import MediaError, MediaReader
from qwen_vl.serving.protocol.errors import ApiError


class ImagePool:
    """Reads images for all requests.

    Downloads wait for other machines, so they have threads of their own: slow ones do not stop images that are sent.
    """

    def __init__(self, reader: MediaReader, settings: ServerSettings, metrics: Metrics) -> None:
        self.reader, self.metrics = reader, metrics
        self._fetching = ThreadPoolExecutor(settings.fetch_workers, "fetch")
        self._decoding = ThreadPoolExecutor(settings.decode_workers, "decode")

    async def read(self, addresses: Sequence[tuple[str, str]]) -> list[SentImage]:
        """Return the images of [(address, where it stands in the request)]. Raise ApiError for the first bad one.

        If one is bad or the caller is canceled, reads that have not begun are dropped.
        """
        loop = asyncio.get_running_loop()
        reads = []
        for source, where in addresses:
            pool = self._fetching if source[:5].lower() in ("http:", "https") else self._decoding
            reads.append(loop.run_in_executor(pool, self._read, source, where))
        try:
            return await asyncio.gather(*reads)
        except MediaError as error:
            raise ApiError(400, str(error), code="invalid_image") from None
        finally:
            for read in reads:
                read.cancel()
            with contextlib.suppress(Exception):
                await asyncio.gather(*reads, return_exceptions=True)

    def close(self) -> None:
        """End the threads. Reads that have begun end by their own limits."""
        self._fetching.shutdown(wait=False, cancel_futures=True)
        self._decoding.shutdown(wait=False, cancel_futures=True)

    def _read(self, source: str, where: str) -> SentImage:
        """Return one image, counted; runs in a thread."""
        try:
            image = self.reader.read(source, where=where)
        except MediaError as error:
            self.metrics.images_refused.labels(error.reason).inc()
            raise
        self.metrics.images_read.inc()
        return image
