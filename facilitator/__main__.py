"""`python -m facilitator`, and the console script."""

import sys
from importlib.util import find_spec

_SERVICE_ONLY = ("asyncpg", "uvloop", "web3")


def main() -> int:
    """Run the command line; where only the gateway kit is installed, say what is missing."""
    missing = [name for name in _SERVICE_ONLY if find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"facilitator: {', '.join(missing)} not installed: the commands need the service: pip install 'facilitator[service]'\n"
        )
        return 3
    from facilitator.cli import main as run  # noqa: PLC0415 - only where it can be imported

    return run()


if __name__ == "__main__":
    sys.exit(main())
