"""Starts a program that cannot outlive the process that asked for it.

    python leash.py PARENT_PID PROGRAM ARGUMENT…

Linux sends the program SIGKILL when the parent dies, however it dies. This runs in the child, between fork and exec,
as a program of its own: a hook in the parent (preexec_fn) is not safe in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Ties this process to ``parent`` and becomes ``command``."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent ended before its child began")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
