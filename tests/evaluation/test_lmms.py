"""The models for lmms-eval, with stand-ins for its base class and manifest: it is not installed here."""

import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace

import pytest

import v2l


@pytest.fixture
def lmms(monkeypatch):
    base, registry = ModuleType("lmms_eval.api.model"), ModuleType("lmms_eval.models.registry_v2")
    base.lmms, registry.ModelManifest = type("lmms", (), {}), lambda **fields: SimpleNamespace(**fields)
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.setitem(sys.modules, registry.__name__, registry)
    yield import_module("v2l.evaluation.lmms")
    monkeypatch.delitem(sys.modules, "v2l.evaluation.lmms")


def request(sample, prompt, **settings):
    return SimpleNamespace(args=(prompt, settings, lambda found: [found], sample, "task", "test"))


def test_requests_are_answered_in_their_order_as_by_ask(lmms, model_folder, videos, vlm, hypernetwork):
    model = lmms.AdapterModel(model=str(model_folder), batch_size="1", frames="2")
    in_context = lmms.InContextModel(model=str(model_folder), frames="2")
    model.task_dict = in_context.task_dict = {"task": {"test": [str(videos[0]), {"video": str(videos[1])}]}}
    requests = [request(place % 2, f"what {place}?", max_new_tokens=3) for place in range(4)]
    adapters = [v2l.encode(video, vlm, hypernetwork, frames=2) for video in videos[:2]]
    expected = [v2l.ask(adapters[place % 2], f"what {place}?", vlm, 3) for place in range(4)]
    assert model.generate_until(requests) == expected
    reading = v2l.Reading(frames=2)
    expected = [v2l.ask_in_context(videos[place % 2], f"what {place}?", vlm, reading, 3) for place in range(4)]
    assert in_context.generate_until(requests) == expected
    with pytest.raises(v2l.V2LError, match="loglikelihood"):
        model.loglikelihood(requests)


def test_only_one_video_is_shown(lmms):
    assert lmms._video([{"video": "a.mp4", "video_start": 1.0, "video_end": 2.0}], "x")[1:] == (1.0, 2.0)
    for visuals in ([], ["a.mp4", "b.mp4"], [object()]):
        with pytest.raises(v2l.V2LError, match="task, sample 3: its visuals are not one video file"):
            lmms._video(visuals, "task, sample 3")
    assert lmms._until("one\ntwo", ["\n", ""]) == "one"
    assert [each.model_id for each in lmms.MODELS] == ["v2l", "v2l_in_context"]
    assert all(each.simple_class_path.startswith("v2l.evaluation.lmms.") for each in lmms.MODELS)
