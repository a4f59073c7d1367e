"""Encode a video with the 500M architecture, random weights, once per line of standard input; run by `speed.py`.

It also runs in a checkout of 50e9628, whose modules have other names. Each line of output is a JSON object: seconds and
processor seconds of the encode, its peak memory, and the median seconds of a first token from the attached adapter.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

import v2l

try:
    from v2l.bench.random_model import random_model
    from v2l.bench.resources import PeakMemory
    from v2l.inference.ask import question_embeddings
except ImportError:
    from v2l.answer import question_embeddings
    from v2l.arch import random_model
    from v2l.machine import PeakMemory

FIRST_TOKENS = 9


def timed(work):
    """Run a function; return its result, and the seconds and processor seconds that it took."""
    start, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - start, time.process_time() - processor


@torch.inference_mode()
def measure(vlm, hypernetwork, video):
    """Encode the video and answer from the adapter."""
    peak = PeakMemory(vlm.device)
    adapter, seconds, processor = timed(lambda: v2l.encode(video, vlm, hypernetwork))
    found = {"encode": seconds, "encode, processor": processor, "peak memory in MB": peak.bytes() / 1e6}
    prompt = question_embeddings("what is on the whiteboard?", vlm)
    with v2l.applied(vlm, adapter):
        firsts = [timed(lambda: next(vlm.greedy([prompt], 1)))[1:] for _ in range(FIRST_TOKENS)]
    first, processor = (statistics.median(column) for column in zip(*firsts, strict=True))
    return found | {"first token": first, "first token, processor": processor}


if __name__ == "__main__":
    dtype, video = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        models = random_model("smolvlm2-500m", Path(folder), "cpu", getattr(torch, dtype))
        for _ in sys.stdin:
            print(json.dumps(measure(*models, video)), flush=True)
