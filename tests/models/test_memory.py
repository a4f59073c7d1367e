"""A failed allocation is one error with sizes and advice; a model that failed to load is not loaded again."""

import ctypes
import errno
import resource
import subprocess
import sys

import pytest
import torch

import v2l
from v2l.errors import ModelError, is_out_of_memory, reason
from v2l.evaluation.evaluate import Evaluation
from v2l.evaluation.setting import Setting
from v2l.inference import batch
from v2l.inference.model_loader import ModelLoader
from v2l.inference.readings import fill_reading
from v2l.inference.targets import Target
from v2l.io.manifest import Example
from v2l.io.text import amount
from v2l.models import loading
from v2l.models.device import failed_allocation, free_bytes, memory_errors
from v2l.models.language_model import LanguageModel
from v2l.models.loading import model_bytes, published_weights
from v2l.models.smolvlm import FrozenVLM
from v2l.training.teacher import with_teacher_answers
from v2l.video.sampling import Reading

CPU = torch.device("cpu")
FAILURES = [
    (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total"),
        5 * 2**29,
    ),
    (RuntimeError("MPS backend out of memory (MPS allocated: 5 GB). Tried to allocate 256.00 MB on"), 2**28),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 4096 bytes."), 4096),
    (RuntimeError("unable to mmap 2033 bytes from file <model.safetensors>: Cannot allocate memory (12)"), None),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), None),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), None),
    (MemoryError(), None),
]


def exhaust(*_):
    """Ask torch's allocator for more than any address space has."""
    return torch.empty(2**62, dtype=torch.uint8)


@pytest.mark.parametrize(("error", "size"), FAILURES)
def test_failed_allocations_are_known_by_class_or_text(error, size):
    assert is_out_of_memory(error) and failed_allocation(error) == size
    assert "--device" in reason(error)
    more = f"{amount(size)} more" if size else "more memory"
    with pytest.raises(ModelError, match=f"needs {more}"), memory_errors("it", CPU, torch.float32):
        raise error


def test_other_errors_pass():
    for error in (
        v2l.V2LError("out of memory"),
        RuntimeError("CUDA error: illegal memory access"),
        OSError(2, "no"),
    ):
        with pytest.raises(type(error)) as found, memory_errors("it", CPU, torch.float32):
            raise error
        assert found.value is error


def test_the_advice_follows_device_and_number_type():
    for device, dtype, expected in (
        (CPU, torch.float32, "use fewer, --dtype bfloat16 (half the size), another --device, or close"),
        (CPU, torch.bfloat16, "use fewer, another --device, or close"),
        (torch.device("meta"), torch.float16, "than there is; use fewer, --device cpu, or close"),
    ):
        with pytest.raises(ModelError) as found, memory_errors("it", device, dtype, fix="fewer"):
            exhaust()
        assert expected in str(found.value)


def test_free_memory_ends_at_the_limit_of_the_process(monkeypatch):
    assert free_bytes(CPU) > 0
    monkeypatch.setattr(resource, "getrlimit", lambda _: (0, 0))
    assert free_bytes(CPU) == 0


@pytest.mark.parametrize("vision", [True, False])
def test_the_size_of_a_model_is_that_of_its_weights(vlm, vision):
    parts = published_weights(vlm.language_model, vlm.vision if vision else None)
    assert model_bytes(vlm.folder.config, torch.bfloat16, vision) == sum(part.numel() for _, part in parts) * 2


@pytest.mark.parametrize("place", ["allocation", "reading"])
def test_a_model_that_does_not_fit_is_not_called_damaged(model_folder, monkeypatch, place):
    if place == "allocation":
        monkeypatch.setattr(LanguageModel, "empty", exhaust)
    else:
        monkeypatch.setattr(loading, "all_finite", exhaust)
    expected = r"out of memory on cpu: the model in .* needs [0-9.]+ MB and .* are free; use --dtype bfloat16"
    with pytest.raises(ModelError, match=expected):
        v2l.load_vlm(model_folder, device="cpu")


@pytest.mark.parametrize("failing", ["model", "hypernetwork"])
def test_what_failed_to_load_is_not_loaded_again_for_every_video(model_folder, videos, tmp_path, monkeypatch, failing):
    named: list[str] = []
    loader = ModelLoader(str(model_folder), "option", device="cpu", announce=named.append)
    if failing == "model":
        monkeypatch.setattr(LanguageModel, "empty", exhaust)
    else:
        monkeypatch.setattr(torch.nn.Module, "to", exhaust)
    targets = [Target(video, tmp_path / f"{number}.v2l.safetensors") for number, video in enumerate(videos)]
    for _ in range(2):
        with pytest.raises(ModelError, match="out of memory on cpu"):
            list(batch.encode_targets(targets, batch.EncodeOptions(Reading()), loader, batch.Watch()))
    assert len(named) == 1


def test_out_of_memory_is_no_unreadable_clip(videos, vlm, hypernetwork, tmp_path, monkeypatch):
    """It ends an evaluation and the answers of a teacher, which leave out clips that cannot be read."""
    asked = [Example(str(n), video, "qa", "", "who is it?", "a square", None, None) for n, video in enumerate(videos)]
    evaluation = Evaluation(asked, vlm, hypernetwork, Setting(Reading(), max_new_tokens=2), tmp_path / "e.jsonl")
    reading = fill_reading(Reading(), hypernetwork.provenance.trained_with, vlm.geometry)
    monkeypatch.setattr(FrozenVLM, "encode_images", exhaust)
    with pytest.raises(ModelError, match=r"out of memory .* fewer frames"):
        list(evaluation.run())
    with pytest.raises(ModelError, match=r"out of memory .* fewer frames"):
        with_teacher_answers(asked, vlm, reading, tmp_path / "t.jsonl")


def test_a_hypernetwork_that_failed_leaves_the_model_usable(model_folder, tmp_path):
    (tmp_path / "damaged.pt").write_bytes(b"PK")
    loader = ModelLoader(str(model_folder), "option", str(tmp_path / "damaged.pt"), device="cpu")
    for _ in range(2):
        with pytest.raises(ModelError, match=r"damaged\.pt"):
            _ = loader.provenance
    assert loader.language_model.vision is None and loader.vlm.vision is not None


def test_a_device_that_fails_ends_the_run_too(model_folder, monkeypatch):
    def broken(*_):
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with")

    monkeypatch.setattr(LanguageModel, "empty", broken)
    loader = ModelLoader(str(model_folder), "option", device="cpu")
    with pytest.raises(ModelError, match=r"cannot load .*: RuntimeError: CUDA error: no kernel image .*--device$"):
        loader.load()


MAPPED_BLOCKS = """
import ctypes, sys
import torch
from v2l.inference.model_loader import ModelLoader

class Mallinfo(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

ModelLoader(sys.argv[1], "option", device="cpu").load()
measured = ctypes.CDLL(None).mallinfo2
measured.restype = Mallinfo
for size in (8 << 20, 4 << 20):
    before = measured().hblkhd
    block = torch.zeros(size, dtype=torch.uint8)
    held = measured().hblkhd
    del block
    print(held - before >= size and held - measured().hblkhd >= size)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the allocator is not glibc 2.33"
)
def test_encoding_keeps_no_freed_memory(model_folder):
    """Without the setting, glibc takes the second block from its heap, since the first one was freed. A process of its
    own, because the heap of this one may have room for both."""
    run = [sys.executable, "-c", MAPPED_BLOCKS, model_folder]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.split() == ["True", "True"]
