"""How fast a model scores, by which the service foresees when a request would be answered."""

import time

_LEARNING = 0.1  # weight of a request in the mean


class Pace:
    """How fast images are scored, as the ends of requests tell, and how many are under way."""

    def __init__(self) -> None:
        self.images = 0  # that were taken and are not scored
        self._each = 0.0  # seconds; 0: not known yet
        self._last = 0.0  # when a request ended, or began while nothing was under way

    def begin(self, count: int) -> None:
        """A request was taken."""
        if self.images == 0:
            self._last = time.perf_counter()
        self.images += count

    def measure(self, count: int) -> None:
        """A request's images are scored; `end` follows."""
        now = time.perf_counter()
        each, self._last = (now - self._last) / count, now
        self._each += (each - self._each) * (_LEARNING if self._each else 1)

    def end(self, count: int) -> None:
        """A request is over, however it ended."""
        self.images -= count

    def seconds(self, count: int) -> float:
        """Until what was taken is scored and `count` images more."""
        return (self.images + count) * self._each
