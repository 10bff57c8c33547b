"""The models of a service by name and version, and what loads and unloads them."""

import asyncio
import os
import re
import sys
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scrd_fast.engine.engine import Engine
from scrd_fast.engine.load import load_engine
from scrd_fast.errors import ScrdError, expect
from scrd_fast.files import check_name
from scrd_fast.serving.model import ServedModel, Terms

_VERSION = re.compile(r"[1-9][0-9]{0,8}")
# Of an engine's threads beyond the service's own: the event loop, which parses and refuses, gets a
# core when it needs one, though the engine would keep all of them busy.
_NICENESS = 10


class NotFoundError(ScrdError):
    """No model of this name or version is served."""


class LoadError(ScrdError):
    """A model's file cannot be loaded."""


class ForbiddenError(ScrdError):
    """What the service was not started for."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model's engine file lies, and what clients call it."""

    name: str
    version: str
    path: Path

    @staticmethod
    def parse(text: str) -> "ModelSource":
        """Of PATH, NAME=PATH or NAME:VERSION=PATH; without a name the file's own, version 1."""
        named, found, path = text.partition("=")
        if not found:
            named, path = Path(text).stem, text
        name, _, version = named.partition(":") if found else (named, "", "")
        check_name(name, f"model {text!r}; write NAME=PATH")
        version = version or "1"
        expect(_VERSION.fullmatch(version) is not None, f"model {text!r}",
               "a version that is a number from 1", repr(version))
        return ModelSource(name, version, Path(path))


class Repository:
    """Models that clients find by name and version; the highest version where they name none."""

    def __init__(self, sources: Sequence[ModelSource], terms: Terms, *, trust: bool = False,
                 may_load: bool = False) -> None:
        """Loads nothing yet. may_load: whether clients may load and unload these models."""
        keys = [(each.name, each.version) for each in sources]
        for key in keys:
            expect(keys.count(key) == 1, "models", "names and versions that differ; write"
                   " NAME:VERSION=PATH", f"{key[0]} version {key[1]} twice")
        self.may_load = may_load
        self._sources = dict(zip(keys, sources, strict=True))
        self._terms, self._trust = terms, trust
        self._served: dict[tuple[str, str], ServedModel] = {}
        self._changing = asyncio.Lock()
        self._reasons: dict[tuple[str, str], str] = {}
        self._changes: set[asyncio.Task[None]] = set()

    @property
    def served(self) -> Mapping[tuple[str, str], ServedModel]:
        """Those that are loaded."""
        return self._served

    def find(self, name: str, version: str = "") -> ServedModel:
        """The loaded model of this name, of its highest version where none is given."""
        versions = self.versions(name)
        if not version and versions:
            version = versions[-1]
        found = self._served.get((name, version))
        if found is None:
            known = " or ".join(sorted({n for n, _ in self._served})[:20]) or "none"
            raise NotFoundError(f"model: expected {known}, got {name[:60]!r}"
                                f"{f' version {version[:12]!r}' if version else ''}")
        return found

    def versions(self, name: str) -> list[str]:
        """Of a model that are loaded, rising."""
        return sorted((v for n, v in self._served if n == name), key=int)

    def is_ready(self) -> bool:
        """Whether all models are loaded that should be."""
        faults = [each.fault for each in self._served.values() if each.fault is not None]
        return not self._reasons and not faults and bool(self._served)

    def index(self) -> list[dict[str, Any]]:
        """Name, version, state and reason of all, as the repository extension tells them."""
        found = []
        for key in self._sources:
            model = self._served.get(key)
            reason = self._reasons.get(key) or (model and model.fault) or ""
            is_ready = model is not None and model.fault is None
            found.append({"name": key[0], "version": key[1], "reason": reason,
                          "state": "READY" if is_ready else "UNAVAILABLE"})
        return found

    async def load_all(self) -> None:
        """Load every model; raises what the first that cannot be loaded raises."""
        for key in self._sources:
            await self._load(key)

    async def _change(self, change: Coroutine[Any, Any, None]) -> None:
        """Wait for a change, which goes on to its end where whoever asked for it goes away."""
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        await asyncio.shield(task)

    async def load(self, name: str) -> None:
        """Load all versions of a model, anew where they are loaded, as their files are now.

        A version that cannot be loaded keeps what is loaded of it. Raises NotFoundError and what
        loading raises, and ForbiddenError unless clients may load.
        """
        self._check_may_load()
        await self._change(self._load_known(name))

    async def _load_known(self, name: str) -> None:
        async with self._changing:
            for key in self._known(name):
                await self._load(key)

    async def unload(self, name: str) -> None:
        """Let go of all versions of a model; what they were given is answered first.

        Raises NotFoundError, and ForbiddenError unless clients may.
        """
        self._check_may_load()
        await self._change(self._unload_known(name))

    async def _unload_known(self, name: str) -> None:
        async with self._changing:
            for key in self._known(name):
                self._reasons.pop(key, None)
                if (model := self._served.pop(key, None)) is not None:
                    await model.close()

    def _known(self, name: str) -> list[tuple[str, str]]:
        found = [key for key in self._sources if key[0] == name]
        if not found:
            raise NotFoundError(f"model: expected one that the service was started with, got"
                                f" {name[:60]!r}")
        return found

    async def _load(self, key: tuple[str, str]) -> None:
        source = self._sources[key]
        try:
            engine = await self._load_engine(source.path)
        except ScrdError as error:
            # Clients hear it, and nothing of where files lie.
            reason = str(error).replace(str(source.path), source.path.name)
            if key not in self._served:
                self._reasons[key] = reason
            raise LoadError(reason) from error
        self._reasons.pop(key, None)
        before = self._served.get(key)
        self._served[key] = ServedModel(source.name, source.version, engine, self._terms)
        if before is not None:
            await before.close()

    async def _load_engine(self, path: Path) -> Engine:
        """The engine of a file, warm, whose threads give way to the service's own."""
        def load() -> Engine:
            _give_way()
            engine = load_engine(path, trust=self._trust)
            try:
                # All of its threads begin here, below this one, and no client need wait for what is
                # made once, for each size of batch.
                side = engine.spec.input_size
                for count in engine.manifest.buckets:
                    engine.score(np.zeros((count, side, side), np.uint8), maps=False)
            except BaseException:
                engine.close()
                raise
            return engine

        pool = ThreadPoolExecutor(1, "load")  # its thread never gets its priority back
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, load)
        finally:
            pool.shutdown(wait=False)

    async def close(self) -> None:
        """Answer what was taken, then let go of all."""
        await asyncio.gather(*self._changes, return_exceptions=True)
        async with self._changing:
            models, self._served = list(self._served.values()), {}
            for model in models:
                await model.close()

    def _check_may_load(self) -> None:
        if not self.may_load:
            raise ForbiddenError("repository: expected a service started with --allow-load, got"
                                 " one without")


def _give_way() -> None:
    """Lower the priority of this thread and of those that it will start."""
    if sys.platform == "linux":  # elsewhere a priority is the whole process's
        thread = threading.get_native_id()
        now = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, now + _NICENESS)
