"""The bytes of requests that are in memory at a time, of HTTP and gRPC together, and their bounds.
"""

import asyncio
from collections.abc import AsyncIterator

from scrd_fast.errors import OverloadedError
from scrd_fast.serving.messages import TooLargeError
from scrd_fast.serving.status import SlowRequestError


class Body:
    """A request's content, which counts until it is let go of."""

    def __init__(self, bodies: "Bodies") -> None:
        self._bodies, self.content, self.length = bodies, b"", 0

    def let_go(self) -> None:
        """The content is not needed any more."""
        self._bodies.let_go(self.length)
        self.content, self.length = b"", 0


class Bodies:
    """Reads the bodies of requests."""

    def __init__(self, most_bytes: int, seconds: float) -> None:
        """most_bytes: of one request; four such may be in memory. seconds: in which one must have
        come."""
        self.most_bytes, self.most_in_all = most_bytes, 4 * most_bytes
        self._seconds, self._held = seconds, 0

    async def read(self, parts: AsyncIterator[bytes], said: int = 0) -> Body:
        """What the parts are together. said: how many bytes there will be, 0 where that is not
        known. Raises TooLargeError, before anything is read where it is said, OverloadedError where
        others hold too much, and SlowRequestError."""
        self._check_size(said)
        body = Body(self)
        read = []
        try:
            async with asyncio.timeout(self._seconds):
                async for part in parts:
                    self._hold(body, len(part))
                    read.append(part)
        except BaseException as error:
            length = body.length
            body.let_go()
            if isinstance(error, TimeoutError):
                raise SlowRequestError(f"body: expected all of it within {self._seconds:g} s, got"
                                       f" {length} bytes") from None
            raise
        body.content = read[0] if len(read) == 1 else b"".join(read)
        return body

    def _check_size(self, length: int) -> None:
        if length > self.most_bytes:
            raise TooLargeError(f"body: expected at most {self.most_bytes} bytes, got {length}")

    def _hold(self, body: Body, more: int) -> None:
        self._check_size(body.length + more)
        if self._held + more > self.most_in_all:
            raise OverloadedError(f"body: expected at most {self.most_in_all} bytes of requests in"
                                  f" memory, got {self._held + more}")
        self._held += more
        body.length += more

    def let_go(self, count: int) -> None:
        """So many bytes are not needed any more."""
        self._held -= count
