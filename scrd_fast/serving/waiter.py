"""From the engine's pending results to the event loop."""

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any

from scrd_fast.engine.engine import Pending, Result


class Waiter:
    """A thread that waits for batches in their order and tells the event loop."""

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[tuple[Pending, Callable[[Any], None]] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=f"wait for {name}", daemon=True)
        self._thread.start()

    async def wait(self, pending: Pending) -> Result:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def settle(outcome: Result | BaseException) -> None:
            if future.done():
                return
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        def tell(outcome: Result | BaseException) -> None:
            loop.call_soon_threadsafe(settle, outcome)

        self._queue.put((pending, tell))
        try:
            return await future
        except asyncio.CancelledError:
            pending.cancel()
            raise

    def close(self) -> None:
        """Wait for the end of all that was given."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            pending, tell = item
            try:
                outcome: Any = pending.result()
            except BaseException as error:  # whatever it is: who waits must hear of it
                outcome = error
            try:
                tell(outcome)
            except RuntimeError:  # the loop was closed: nobody waits
                continue
