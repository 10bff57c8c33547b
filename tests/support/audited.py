"""python -m tests.support.audited WORK VERBS: run command lines (JSON) in one process and print, as
JSON, their exit codes and all that was written outside the folder WORK or sent, as far as Python
sees it.
"""

import json
import os
import sys
from typing import Any

from scrd_fast.cli import main

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.remove",
            "os.rmdir", "os.chmod", "os.chown", "os.utime")
_HARMLESS = ("socket.gethostname",)


def run(work: str, verbs: list[list[str]]) -> dict[str, Any]:
    found: list[str] = []
    root = os.path.realpath(work)

    def outside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # an open file
        real = os.path.realpath(os.fsdecode(path))
        return real not in (root, os.devnull) and not real.startswith(root + os.sep)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            bad = bool((flags or 0) & _WRITES) and outside(path)
        elif event in _CHANGES:
            bad = any(map(outside, arguments[:2]))
        else:
            bad = event.startswith("socket.") and event not in _HARMLESS
        if bad:
            found.append(f"{event}{arguments}")

    sys.addaudithook(hook)
    codes = {}
    for verb in verbs:
        try:
            main(verb)
        except SystemExit as ended:
            codes[verb[0]] = ended.code
    return {"codes": codes, "found": found}


if __name__ == "__main__":
    result = run(sys.argv[1], json.loads(sys.argv[2]))
    print()
    print(json.dumps(result))
