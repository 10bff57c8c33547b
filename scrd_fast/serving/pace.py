"""How fast a model scores, by which the service foresees when a request would be answered."""

import time

# Of what was measured, with each request more. Requests of a batch end together, so that their
# intervals are one long and many of almost nothing: the mean must be of several batches.
_FORGETTING = 0.02


class Pace:
    """How fast images are scored, as the ends of requests tell, and how many are under way."""

    def __init__(self) -> None:
        self.images = 0  # that were taken and are not scored
        self._seconds = self._scored = 0.0  # that it took for so many images
        self._last = 0.0  # when a request ended, or began while nothing was under way

    def begin(self, count: int) -> None:
        """A request was taken."""
        if self.images == 0:
            self._last = time.perf_counter()
        self.images += count

    def measure(self, count: int) -> None:
        """A request's images are scored; `end` follows."""
        now = time.perf_counter()
        self._seconds += now - self._last - _FORGETTING * self._seconds
        self._scored += count - _FORGETTING * self._scored
        self._last = now

    def end(self, count: int) -> None:
        """A request is over, however it ended."""
        self.images -= count

    def seconds(self, count: int) -> float:
        """Until what was taken is scored and `count` images more."""
        each = self._seconds / self._scored if self._scored else 0.0  # not known yet
        return (self.images + count) * each
