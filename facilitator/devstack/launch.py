"""The first program of every child of the local stack: ties its life to ours, gives up root when told, becomes the real one.

Run as a script by `children.Child`, isolated from the package: it imports nothing of ours and must stay quick to start. On
Linux the kernel then signals the child when the process that started it is gone, `kill -9` included; elsewhere the next
start of the stack ends what was left.
"""

import argparse
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_SECUREBITS = 28
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
SECBIT_NO_SETUID_FIXUP = 1 << 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522


def prctl(*arguments: int) -> None:
    """Call prctl(2). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(*(ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:5])) != 0:
        raise OSError(ctypes.get_errno(), f"prctl{arguments} failed")


def keep_only(capability: int) -> None:
    """Hold this one capability through the coming exec, and no other. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    bit = 1 << capability
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)  # effective, permitted, inheritable; low words, then high
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), f"capset({capability}) failed")
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)


def become(uid: int, gid: int, *, see_all: bool) -> None:
    """Give up root for `uid`. With `see_all`, files stay in reach: for a checkout in a directory others cannot enter."""
    if see_all:
        prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)  # else setuid(2) drops capabilities, and access(2) ignores them
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if see_all:
        keep_only(CAP_DAC_OVERRIDE)


def main() -> None:
    """Become the program that stands after `--`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", type=int, required=True, help="pid whose death is ours")
    parser.add_argument("--signal", type=int, required=True, help="signal that asks the program to stop")
    parser.add_argument("--uid", type=int)
    parser.add_argument("--gid", type=int)
    parser.add_argument("--see-all", action="store_true")
    parser.add_argument("program", nargs="+")
    options = parser.parse_args()
    if options.uid is not None:
        become(options.uid, options.gid, see_all=options.see_all)
    if sys.platform == "linux":
        prctl(PR_SET_PDEATHSIG, options.signal)  # after the change of user, which clears it
    if os.getppid() != options.parent:
        sys.exit("launch: the starting process is gone")
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execv(options.program[0], options.program)


if __name__ == "__main__":
    main()
