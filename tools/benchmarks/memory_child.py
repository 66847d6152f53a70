"""Run gradindex's command line; at its end print the process's peak memory to stderr."""

import atexit
import sys


def print_peak_memory() -> None:
    """Print the line of /proc with the peak, KiB: of this program alone.

    getrusage counts the program that started it too.
    """
    with open("/proc/self/status") as status:
        peak = next(line for line in status if line.startswith("VmHWM"))
    print(peak, file=sys.stderr)


if __name__ == "__main__":
    atexit.register(print_peak_memory)
    from gradindex.cli.main import main

    main()
