"""What `v2l --help` costs against importing what it is made of: `python tests/startup.py [RUNS]`.

The two run in turn, as whole processes; the ratio is that of their median times.
"""

import statistics
import subprocess
import sys
import time

HELP = [sys.executable, "-m", "v2l", "--help"]
IMPORTS = [sys.executable, "-c", "import typer, rich.table"]


def seconds(command: list[str]) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
seconds(HELP), seconds(IMPORTS)  # the first of each reads the disk
pairs = [(seconds(HELP), seconds(IMPORTS)) for _ in range(runs)]
ours, theirs = (1000 * statistics.median(times) for times in zip(*pairs, strict=True))
print(f"v2l --help {ours:.0f} ms, import typer, rich.table {theirs:.0f} ms: {ours / theirs:.2f} x ({runs} runs)")
