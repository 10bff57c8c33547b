"""rebuild_engine: an engine file's portable graph compiled again, for another machine."""

import os
from collections.abc import Mapping
from dataclasses import replace

from scrd_fast.backends.registry import backend_of, choose_backend, gpu_of
from scrd_fast.backends.source import Source
from scrd_fast.building.build import library_versions, write_built
from scrd_fast.building.work import count_work
from scrd_fast.engine import current as _current
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.engine_file import GOLDEN, NETWORK
from scrd_fast.engine.golden import renew, replay
from scrd_fast.engine.load import compile_file, read_runnable
from scrd_fast.engine.manifest import Manifest, Work
from scrd_fast.files import Contents, as_path, check_writable
from scrd_fast.graph.stored import QUANTISATION
from scrd_fast.machine import this_machine
from scrd_fast.precisions import QUANTISED
from scrd_fast.progress import Progress, silent
from scrd_fast.torch_state import own_state


@own_state()
def rebuild_engine(
    path: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, *,
    device: str | None = None, progress: Progress = silent,
) -> Engine:
    """Compile an engine file's portable graph again, for this machine, and load it.

    For a file that another machine or release compiled. Backend, precision and buckets stay as
    they were. out: the file to write, by default `path` itself. The golden images decide whether
    the result may be written: raises FidelityError where it does not reproduce them, and what
    `load_engine` and `build_engine` raise.
    """
    path = as_path(path, "path")
    target = path if out is None else as_path(out, "out")
    check_writable(target, "out")
    file = read_runnable(path)
    file.check()
    manifest, members = file.manifest, file.members
    backend = backend_of(manifest.backend)
    options = None if manifest.plan is None else manifest.plan.options
    choose_backend(manifest.backend, device)
    place = gpu_of(manifest.backend, device)
    runner = compile_file(path, manifest, members, device=place, progress=progress)
    manifest = replace(
        manifest, buckets=runner.buckets, precision_used=runner.precision_used(),
        machine=this_machine(place), plan=backend.ties(runner.version, options, place),
        versions=library_versions(manifest.backend, runner),
        fidelity=replace(manifest.fidelity, emulated=False),  # the replay below judges it here
        work=manifest.work or _work_of(manifest, members))
    engine = Engine(manifest, runner, target, device=device,
                    mapped=None if backend.on_gpu else file)
    try:
        replay(engine, members[GOLDEN], alike=False, whole=True, progress=progress)
        kept = {n: d for n, d in members.items() if n in (NETWORK, QUANTISATION)} | {
            GOLDEN: renew(engine, members[GOLDEN])}
        engine.manifest = write_built(target, manifest, kept, runner)
    except BaseException:
        engine.close()
        raise
    return _current.use(engine)


def _work_of(manifest: Manifest, members: Mapping[str, Contents]) -> Work:
    """The work of a file's network, which files of format 1 do not tell."""
    source = Source(members[NETWORK], members.get(QUANTISATION))
    return count_work(source.proto, manifest.spec,
                      source.quantisation if manifest.precision in QUANTISED else None)
