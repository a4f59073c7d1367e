"""Decoding over static buffers gives what the ordinary path gives, also when its operations are recorded and replayed
on the same memory as a CUDA graph does."""

import contextlib
import itertools

import pytest
import small
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import v2l
from v2l.adapters.lora import _merged, attached
from v2l.models import static_decoding
from v2l.models.static_decoding import StaticDecoding, run_eagerly

VARIANTS = {
    "grouped heads": {},
    "one key head": {"num_key_value_heads": 1},
    "as many key heads, tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
}
STEPS = 4


class Recorded(TorchDispatchMode):
    """Record the operations of a computation, then repeat them on the same tensors: what a CUDA graph does.

    Operations whose result the host waits for fail, and running the computation leaves no trace in its buffers.
    """

    def __init__(self, work):
        super().__init__()
        self.operations, written = [], []
        self._written = written
        with self:
            work()
        for tensor, value in reversed(written):
            tensor.copy_(value)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "the host waits for the device"
        for given, argument in zip(args, function._schema.arguments, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._written += [(tensor, tensor.clone()) for tensor in tree_leaves(given)]
        result = function(*args, **kwargs or {})
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def __call__(self):
        for function, args, kwargs, result in self.operations:
            for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small operations take longer to share than to run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=VARIANTS, ids=list(VARIANTS))
def vlm(request, tmp_path_factory):
    changes = VARIANTS[request.param]
    config = small.small_config(**changes)
    config.tie_word_embeddings = changes.get("tie_word_embeddings", False)
    return v2l.load_vlm(small.write_model(tmp_path_factory.mktemp("model") / "m", config=config), device="cpu")


@pytest.fixture
def one(model_folder):
    """A model of its own, for tests that need one variant."""
    return v2l.load_vlm(model_folder, device="cpu", vision=False)


def prompt(vlm, length, seed=0):
    return vlm.language_model.embed(torch.randint(5, 400, (length,), generator=torch.Generator().manual_seed(seed)))


def factors(vlm, rank, seed=1):
    layers, inputs, outputs = vlm.adapted_size
    random = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(rank, inputs, generator=random) * 0.1, torch.randn(rank, outputs, generator=random))
        for _ in range(layers)
    ]


def answer(vlm, *args, steps=STEPS, **kwargs):
    return [ids[0] for ids in vlm.greedy(*args, max_new_tokens=steps, for_speed=True, **kwargs)]


@contextlib.contextmanager
def static(vlm, capture=run_eagerly):
    vlm.static_decoding = StaticDecoding(vlm.language_model, capture)
    try:
        yield vlm.static_decoding
    finally:
        vlm.static_decoding = None


@contextlib.contextmanager
def chosen_from(vlm):
    """Yield the hidden states that tokens are chosen from, as they come."""
    seen, choose = [], vlm.language_model.choose
    vlm.language_model.choose = lambda hidden: seen.append(hidden.clone()) or choose(hidden)
    try:
        yield seen
    finally:
        del vlm.language_model.choose


ASKED = [(16, 0), (1, 20), (17, 17), (9, 4), (16, 16)]
"""Prompt lengths and ranks about the bounds of buckets; 0 is no adapter."""


def test_every_bucket_answers_as_the_ordinary_path(vlm):
    def answers():
        for seed, (length, rank) in enumerate(ASKED + ASKED[::-1]):
            adapted = attached(vlm.language_model, factors(vlm, rank, seed)) if rank else contextlib.nullcontext()
            with adapted:
                yield answer(vlm, [prompt(vlm, length, seed)])

    expected = list(answers())
    with static(vlm, Recorded) as decoding:
        assert list(answers()) == expected
        assert {shape.rank for shape in decoding._idle} == {0, 16, 32}


def test_the_logits_of_every_step_are_those_of_the_ordinary_path(vlm):
    for length, rank in ASKED:
        with attached(vlm.language_model, factors(vlm, rank) if rank else None):
            with chosen_from(vlm) as expected:
                answer(vlm, [prompt(vlm, length)])
            with static(vlm), chosen_from(vlm) as found:
                answer(vlm, [prompt(vlm, length)])
            logits = vlm.language_model.logits(torch.cat(expected))
            assert torch.allclose(vlm.language_model.logits(torch.cat(found)), logits, atol=1e-5)


@pytest.mark.parametrize("longest", [16, 1024], ids=["unpadded", "padded"])
def test_a_prefix_is_continued_and_not_changed(vlm, longest, monkeypatch):
    monkeypatch.setattr(static_decoding, "MOST_PROMPT", longest)
    whole = prompt(vlm, 300)
    expected = answer(vlm, [whole])
    for start in (270, 290):
        cache = vlm.prefill(whole[:start])
        keys = cache.keys.clone()
        with static(vlm, Recorded) as decoding:
            for _ in range(3):
                assert answer(vlm, [whole[start:]], cache=cache) == expected
                assert cache.length == start and torch.equal(cache.keys, keys)
            assert [shape.columns for shape in decoding._idle] == [512]


def test_sequences_without_fixed_buffers_take_the_ordinary_path(one, monkeypatch):
    monkeypatch.setattr(static_decoding, "MOST_COLUMNS", 256)
    several = factors(one, 4), factors(one, 4, seed=2)
    per_row = [tuple(torch.stack(pair) for pair in zip(*layer, strict=True)) for layer in zip(*several, strict=True)]

    def answers():
        yield list(one.greedy([prompt(one, 5), prompt(one, 9)], STEPS, for_speed=True))
        yield answer(one, [prompt(one, 253)])
        with _merged(one.language_model, factors(one, 4)):
            yield answer(one, [prompt(one, 5)])
        with attached(one.language_model, [(a[:1], b[:1]) for a, b in per_row]):
            yield answer(one, [prompt(one, 5)])

    expected = list(answers())
    with static(one) as decoding:
        assert list(answers()) == expected
        assert not decoding._idle
        answer(one, [prompt(one, 252)])
        assert len(decoding._idle) == 1


def test_alternating_answers_have_buffers_of_their_own(one):
    prompts = [prompt(one, 5), prompt(one, 9, seed=1)]
    expected = [answer(one, [each]) for each in prompts]
    with static(one):
        streams = [one.greedy([each], STEPS, for_speed=True) for each in prompts]
        found = list(zip(*((first[0], second[0]) for first, second in zip(*streams, strict=True)), strict=True))
    assert [list(each) for each in found] == expected


def test_an_answer_that_overflowed_leaves_nothing_behind(one):
    expected = answer(one, [prompt(one, 5)])
    with static(one, Recorded):
        for _ in range(2):
            with (
                attached(one.language_model, [(a, b * 1e38) for a, b in factors(one, 4)]),
                pytest.raises(v2l.V2LError, match="numbers exceed float32"),
            ):
                list(one.greedy([prompt(one, 40)], STEPS))
            with attached(one.language_model, [(a, b * 0) for a, b in factors(one, 3)]):
                assert answer(one, [prompt(one, 5)]) == expected


def test_a_failed_capture_is_told_once_and_changes_no_answer(one):
    def fails(work):
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA error")

    expected = answer(one, [prompt(one, 5)])
    with static(one, fails), pytest.warns(v2l.V2LWarning) as told:
        assert [answer(one, [prompt(one, 5)]) for _ in range(3)] == [expected] * 3
    assert len(told) == 1 and "cannot be captured (RuntimeError: operation not permitted" in str(told[0].message)


def test_decoders_are_kept_within_limits(one, monkeypatch):
    def shapes(ranks):
        for rank in ranks:
            with attached(one.language_model, factors(one, rank)):
                answer(one, [prompt(one, 5)], steps=2)
        return [shape.rank for shape in decoding._idle]

    with static(one) as decoding:
        assert shapes([16, 32, 64, 16]) == [32, 64, 16]
        monkeypatch.setattr(static_decoding, "DECODERS_KEPT", 2)
        assert shapes([64]) == [16, 64]
        monkeypatch.setattr(static_decoding, "BYTES_KEPT", 1)
        assert shapes([32]) == [32]


def test_buckets_are_powers_of_two_and_used_where_there_are_graphs(one):
    assert one.static_decoding is None
    sizes = [static_decoding.bucket(size, 16) for size in (1, 16, 17, 32, 33, 1024)]
    assert sizes == [16, 16, 32, 32, 64, 1024] and all(b >= a for a, b in itertools.pairwise(sizes))
