"""Packed clips and questions: the same results as transformers' own forward pass, one sequence at a time."""

import numpy as np
import pytest
import torch
from peers import side_path, transformers_model

from v2l.training.packing import IGNORED, UNASKED, PackedRows, pack_questions, packed_forward, place_in_rows

QUESTIONS = (("what is on the whiteboard?", "a square"), ("where?", "left"), ("what moves at last?", "nothing at all"))
SHOWN = ("a video of a square \0\nAssistant:", "\0\nAssistant:", "another, longer video, of things \0\nAssistant:")


@pytest.fixture(scope="module")
def sequences(vlm):
    return [pack_questions(shown, QUESTIONS[: 3 - number], vlm.tokenizer) for number, shown in enumerate(SHOWN)]


@pytest.fixture(scope="module")
def peer(vlm):
    return transformers_model(vlm)


@pytest.fixture(scope="module")
def factors(vlm):
    torch.manual_seed(1)
    layers, inputs, outputs = vlm.adapted_size
    return [(torch.randn(3, 2, inputs) * 0.1, torch.randn(3, 2, outputs)) for _ in range(layers)]


@pytest.fixture(scope="module")
def rows(sequences):
    return PackedRows.stack(sequences, torch.device("cpu"))


@torch.no_grad()
def read(vlm, rows, factors=None, attention_layers=()):
    embed = vlm.language_model.embed
    return packed_forward(
        vlm.language_model,
        embed(rows.opening),
        rows.there,
        embed(rows.ids),
        rows.positions,
        rows.question,
        factors,
        attention_layers,
    )


def test_every_question_is_in_one_row(sequences, rows):
    assert rows.question.max() == 5
    for number, (clip, own) in enumerate([(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (2, 1)]):
        there, here = sequences[clip].group == own, rows.question[clip] == number
        for name in ("ids", "labels", "positions"):
            assert torch.equal(getattr(rows, name)[clip][here], getattr(sequences[clip], name)[there])
    assert (rows.labels[rows.question == UNASKED] == IGNORED).all()
    pairs = [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (2, 1)]
    assert torch.equal(
        rows.in_order(rows.ids), torch.cat([sequences[c].ids[sequences[c].group == g] for c, g in pairs])
    )
    assert torch.equal(rows.in_order(rows.question), rows.question[rows.question != UNASKED].sort().values)


def test_a_question_goes_to_the_first_row_with_room():
    places, rows = place_in_rows([5, 4, 3, 2, 1], 6)
    assert places == [(0, slice(0, 5)), (1, slice(0, 4)), (2, slice(0, 3)), (1, slice(4, 6)), (0, slice(5, 6))]
    assert rows == 3


@pytest.mark.parametrize("adapted", [False, True])
def test_it_is_transformers_forward_pass(vlm, peer, sequences, rows, factors, adapted):
    found = read(vlm, rows, factors if adapted else None)
    number = 0
    for clip, sequence in enumerate(sequences):
        for own in range(1, int(sequence.group.max()) + 1):
            ids = sequence.ids[(sequence.group == 0) | (sequence.group == own)][None]
            applied = [(a[clip], b[clip] if adapted else 0 * b[clip]) for a, b in factors]
            with torch.no_grad(), side_path(peer, applied) as inner:
                alone = peer.model.text_model(input_ids=ids, output_hidden_states=True)
            first = int((sequence.group == 0).sum())
            here = rows.question[clip] == number
            assert torch.allclose(found.rows[clip][here], alone.last_hidden_state[0, first:], atol=2e-5)
            for layer, inputs in enumerate(found.clip):
                assert torch.allclose(inputs[clip, :first], alone.hidden_states[layer][0, :first], atol=2e-5)
                assert torch.allclose(found.asked[layer][clip][here], alone.hidden_states[layer][0, first:], atol=2e-5)
            for ranks, inputs, (a, _) in zip(found.activations, inner, applied, strict=True) if adapted else ():
                assert torch.allclose(ranks[clip][here], inputs[0, first:] @ a.T, atol=2e-5)
            number += 1
    assert len(found.activations) == (vlm.num_layers if adapted else 0)


def test_a_token_attends_to_its_clip_and_its_own_question(vlm, rows):
    last = vlm.num_layers - 1
    attention = read(vlm, rows, attention_layers=(last,)).attention[0][:, 0, 0]
    clip, row, token = (rows.question != UNASKED).nonzero().T
    assert torch.allclose(attention[clip, row, token].sum(-1), torch.ones(len(clip)), atol=1e-6)
    length = rows.opening.shape[1]
    for place in np.ndindex(*rows.question.shape):
        if rows.question[place] == UNASKED:
            continue
        own = (rows.question[place[:2]] == rows.question[place]) & (torch.arange(rows.ids.shape[-1]) <= place[2])
        assert torch.equal(attention[place] > 0, torch.cat([rows.there[place[0]], own]))
    assert attention.shape[-1] == length + rows.ids.shape[-1]


def test_gradients_reach_the_factors(vlm, rows, factors):
    learned = [(a.clone().requires_grad_(), b.clone().requires_grad_()) for a, b in factors]
    embed = vlm.language_model.embed
    found = packed_forward(
        vlm.language_model, embed(rows.opening), rows.there, embed(rows.ids), rows.positions, rows.question, learned
    )
    found.rows.square().sum().backward()
    assert all(each.grad.abs().max() > 0 for pair in learned for each in pair)
