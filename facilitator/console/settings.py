"""What an operator may tune about the finance console."""

from dataclasses import dataclass
from typing import Final

from facilitator.units import Listen

_LISTEN: Final = Listen("127.0.0.1", 4023)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The `[console]` table."""

    listen: Listen = _LISTEN
    """Where the finance console is served. Keep it off the public ingress."""
    url: str | None = None
    """`https://host` under which browsers reach it. None: this machine only, at `console.listen`."""
    session_life_s: float = 28_800.0
    """How long somebody stays signed in, however busy."""
    session_idle_s: float = 1_800.0
    """How long an idle session stays open."""
    link_life_s: float = 600.0
    """How long a one-time link of `facilitator console link` opens."""
    pages_max: int = 3
    """Pages that are made at the same time; others wait, so that the console never takes the database from payments."""
    sign_ins_per_s: float = 0.5
    """Attempts to sign in per second from one address; beyond it 429."""
    sign_ins_burst: int = 10
    """Attempts that may come at once before that rate holds."""
    exports_max: int = 2
    """Files that are made at the same time, by all replicas together; others wait."""
    exports_waiting_max: int = 20
    """Files that may wait to be made; whoever asks for more is told to come back."""
    export_bytes_max: int = 1_073_741_824
    """Largest file that is made."""
    export_kept_s: float = 86_400.0
    """How long a file is kept for download; its bytes are in the database until then."""
    export_directory: str | None = None
    """Where files are made, with room for `exports_max` times twice `export_bytes_max`; None: the system's temporary directory."""
