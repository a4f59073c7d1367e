"""Start the `v2l` command: the console script, and `python -m v2l`."""

import gc
import os
import signal
import sys


def main() -> None:
    """Import and run the command line. An interrupt during the imports or at exit leaves no traceback."""
    try:
        from v2l.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        gc.freeze()  # the memory goes with the process: to collect torch's million objects takes a tenth of a start
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))


if __name__ == "__main__":
    main()
