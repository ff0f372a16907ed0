"""What tells the kernel's out-of-memory killer from anybody else who sends SIGKILL."""

from pathlib import Path

VMSTAT = Path("/proc/vmstat")


def kernel_kills() -> int | None:
    """How many processes the kernel has killed for want of memory since it started, in whatever control group; None
    where it does not say."""
    try:
        lines = VMSTAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
