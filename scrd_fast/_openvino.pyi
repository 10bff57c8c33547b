from collections.abc import Sequence

from scrd_fast._native import Runner

class OpenVinoRunner(Runner):
    def __init__(
        self, onnx: bytes, precision: str, buckets: Sequence[int], throughput: bool
    ) -> None: ...
    def layers(self) -> list[tuple[str, str, str]]: ...
