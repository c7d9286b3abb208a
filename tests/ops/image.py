"""The image without a container engine: the Dockerfile's own build steps in a directory, and its user and root for what runs.

No engine runs where the tests do, so the base image is this machine's Python and the layers are not made. What is real: every
COPY and RUN of the build stage with its paths moved, the lock with its hashes, the wheel, the prefix; and, as root on Linux, a
mount namespace whose root is read-only, a tmpfs at /tmp, uid 10001, no capability and no way to gain one.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from facilitator.devstack.children import launched

ROOT: Final = Path(__file__).parents[2]
DOCKERFILE: Final = ROOT / "Dockerfile"
_BUILD_TIMEOUT_S: Final = 550
_INSIDE: Final = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
index=0
for kept in $KEPT; do index=$((index + 1)); mkdir "/mnt/$index"; mount --bind "$kept" "/mnt/$index"; done
mount -o remount,ro,bind /
mount -t tmpfs -o mode=1777,size=64m tmpfs /tmp
index=0
for kept in $KEPT; do
  index=$((index + 1)); mkdir -p "$kept"; mount --bind "/mnt/$index" "$kept"; mount -o remount,ro,bind "$kept"
done
umount --lazy /mnt
cd /tmp
exec setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continuation lines joined."""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines() if line.strip()]


def stages() -> list[list[tuple[str, str]]]:
    """Instructions of each stage, `FROM` first."""
    found: list[list[tuple[str, str]]] = []
    for instruction in instructions(DOCKERFILE.read_text("utf-8")):
        if instruction[0] == "FROM":
            found.append([])
        if found:
            found[-1].append(instruction)
    return found


def build(directory: Path) -> Path:
    """Carry out the build stage below `directory` and return the prefix that the image would hold."""
    source = directory / "src"
    source.mkdir(parents=True)
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(directory)}
    environment |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "HTTP", "http", "REQUESTS_"))}
    for instruction, arguments in stages()[0]:
        match instruction:
            case "ENV":
                environment |= dict(pair.split("=", 1) for pair in arguments.split())
            case "COPY":
                *names, target = arguments.split()
                for name in names:
                    _copy(
                        ROOT / name, source / target if len(names) == 1 and not target.endswith("/") else source / target / Path(name).name
                    )
            case "RUN":
                moved = re.sub(r"(?<![\w.])/(opt|wheel)(?=/| )", rf"{directory}/\1", arguments)
                subprocess.run(["sh", "-ec", moved], cwd=source, env=environment, check=True, timeout=_BUILD_TIMEOUT_S)
    return directory / "opt" / "facilitator"


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    elif target.is_dir() or str(target).endswith("."):
        shutil.copy(source, target / source.name if target.is_dir() else target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def confined(command: Sequence[str | Path], *, kept: Sequence[Path] = ()) -> list[str]:
    """The command as it runs in a pod: uid 10001, nothing writable but an empty /tmp, in which `kept` are shown read-only. Needs root."""
    inside = ["/usr/bin/env", f"KEPT={' '.join(map(str, kept))}", "unshare", "--mount", "sh", "-c", _INSIDE, "sh", *map(str, command)]
    return launched(inside, stop_signal=signal.SIGTERM, account=None)


def run_confined(
    command: Sequence[str | Path], *, kept: Sequence[Path] = (), environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        confined(command, kept=kept),
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
