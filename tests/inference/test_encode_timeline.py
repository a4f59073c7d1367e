"""Timelines of videos: where segments are cut, what an interrupted encode keeps, and what answers a question."""

import dataclasses
import json
import re
import shutil

import pytest
import small
import torch

import v2l
from v2l.adapters.own_times import in_own_times
from v2l.adapters.timeline import PartSource, Timeline, write_timeline
from v2l.adapters.timeline_description import NO_WISH, Segmentation, TimelineDescription, check_timeline
from v2l.inference import timeline as encoding
from v2l.inference.ask import question_ids
from v2l.inference.each import SegmentAnswer, ask_segments, to_srt, to_vtt
from v2l.inference.estimate import seconds_to_decode
from v2l.inference.preprocess import cut_windows, encode_video_images
from v2l.inference.readings import fill_reading, plan_timeline
from v2l.inference.staleness import Wanted, check_staleness
from v2l.io.records import from_json, to_json
from v2l.models.hypernetwork_file import TrainedWith
from v2l.video.container import decoding_threads
from v2l.video.sampling import Reading, choose_frames


def plan(seconds, wish=NO_WISH, fps=30.0, **reading):
    video = small.video_of([n / fps for n in range(round(seconds * fps))], fps)
    reading = Reading(**{"frames": 12, "fps": 1.0, "resolution": 32, **reading})
    return [(part.start, part.end) for part in plan_timeline(video, reading, TrainedWith(), wish)]


def test_a_short_video_is_one_encoding_and_a_long_one_is_cut_into_trained_spans():
    assert plan(12) == plan(12.9) == []
    assert plan(13) == [(0, 12), (12, 13)]
    assert plan(25) == [(0, 12), (12, 24), (24, 25)]
    assert plan(24.5) == [(0, 12), (12, 24.5)]  # the rest is too short for a frame of its own
    assert len(plan(12 * 64, fps=2.0)) == 64
    hour = plan(3600, fps=2.0)
    assert len(hour) == 64 and (hour[1], hour[-1]) == ((57, 114), (3591, 3600))


def test_the_user_chooses_the_number_or_the_length_of_segments():
    assert plan(8, Segmentation(segments=2)) == [(0, 4), (4, 8)]
    assert plan(3600, Segmentation(segments=1), fps=1.0) == []
    assert plan(3600, Segmentation(segments=300), fps=1.0)[-1] == (3588, 3600)
    assert plan(40, Segmentation(seconds=16)) == [(0, 16), (16, 32), (32, 40)]
    assert plan(10, Segmentation(seconds=16)) == []
    assert plan(100, frames=64) == []  # more frames than trained are a wish for one encoding
    assert plan(100, Segmentation(segments=2), frames=64) == [(0, 50), (50, 100)]
    assert plan(100, start=20.0, end=60.0) == [(20, 32), (32, 44), (44, 56), (56, 60)]


@pytest.mark.parametrize("wish", [{"segments": 0}, {"segments": True}, {"seconds": 0}, {"segments": 2, "seconds": 3}])
def test_impossible_wishes_are_refused_before_work(wish):
    with pytest.raises(v2l.V2LError, match="give"):
        plan(8, Segmentation(**wish))


def test_segments_shorter_than_a_frame_are_refused_before_work():
    with pytest.raises(v2l.V2LError, match="too few for 1,000 segments"):
        plan(8, Segmentation(segments=1000))


def test_the_frames_of_segments_tile_the_video():
    """The published second at both ends is not left out between segments."""
    video = small.video_of([n / 4 for n in range(4 * 64)], 4.0)
    reading = Reading(frames=12, fps=1.0, resolution=32)
    parts = plan_timeline(video, reading, TrainedWith(), Segmentation(seconds=16))
    for part in parts:
        chosen = choose_frames(video, 12, 1.0, part.start, part.end, part.skip_ends)
        assert (video.seconds[chosen[0]], video.seconds[chosen[-1]]) == (part.start, part.end - 0.25)


def test_a_still_is_the_frame_of_every_segment_that_shows_it():
    """A recording of slides has no new frame for minutes."""
    video = dataclasses.replace(small.video_of([0, 10, 100], 0.03, constant=False), duration=130.0)
    assert choose_frames(video, 12, 1.0, 20, 40) == [1]
    assert choose_frames(video, 12, 1.0, 5, 15) == [1]
    parts = plan_timeline(video, Reading(frames=12, fps=1.0, resolution=32), TrainedWith(), Segmentation(seconds=26))
    assert [choose_frames(video, 12, 1.0, part.start, part.end)[-1] for part in parts] == [1, 1, 1, 2, 2]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return small.write_video(tmp_path_factory.mktemp("long") / "long.mp4", frames=160, fps=8.0)


@pytest.fixture(scope="module")
def timeline(video, vlm, hypernetwork, tmp_path_factory):
    output = tmp_path_factory.mktemp("timeline") / "long.v2l.safetensors"
    return v2l.encode_timeline(video, vlm, hypernetwork, output, segment_seconds=5)


def test_a_segment_is_what_encoding_its_range_gives(timeline, video, vlm, hypernetwork):
    made = timeline.description
    assert [(part.start, part.end) for part in made.segments] == [(0, 5), (5, 10), (10, 15), (15, 20)]
    reading = Reading(start=5.0, end=10.0, skip_ends=False, own_times=True)
    alone = encoding.finish_encode(
        encoding.start_encode(encoding.open_video(video), vlm, hypernetwork, reading), vlm, hypernetwork
    )
    assert torch.equal(timeline.select([1]).a, alone.a)
    assert timeline.select([1]).description.segments == alone.description.segments
    whole = v2l.encode(video, vlm, hypernetwork)
    assert torch.equal(timeline.overview().b, whole.b)


def test_the_estimate_counts_decoding_by_the_first_frames(video, vlm, hypernetwork, tmp_path):
    opened = encoding.open_video(video)
    assert opened.video.frame_cost > 0
    reading = fill_reading(Reading(), TrainedWith(), vlm.geometry)
    wish = Segmentation(seconds=5)
    parts = plan_timeline(opened.video, reading, TrainedWith(), wish)
    slow, empty = (dataclasses.replace(opened.video, frame_cost=cost) for cost in (1e3, 0.0))
    job = encoding.make_job(dataclasses.replace(opened, video=slow), reading, parts, hypernetwork, wish)
    # All frames for the segments, and once more for the overview
    least = (1 + 0.9) * slow.frame_count * 1e3 / decoding_threads()
    assert least < job.estimate(vlm, hypernetwork, tmp_path / "x.v2l.safetensors").seconds < 1.3 * least
    assert seconds_to_decode(empty, [0]) > 0


def test_a_segment_is_read_as_a_video_of_its_own(video, vlm, hypernetwork):
    """Its prompt states its own length and times; questions about frames in context are asked in them."""
    trained_with = TrainedWith(prompt="Watch.", frames=12)
    reading = fill_reading(Reading(start=5.5, end=10.0, skip_ends=False, own_times=True), trained_with, vlm.geometry)
    encoded = encode_video_images(video, vlm, reading)
    (window,) = cut_windows(encoded, vlm, trained_with)
    text = vlm.tokenizer.decode(window.input_ids.tolist(), skip_special_tokens=False)
    assert "0:00:05 [H:MM:SS] video" in text  # from second 5 on
    assert re.findall(r"Frame from (\S+):", text)[:2] == ["00:00", "00:01"]
    assert "0:02" not in text.replace("00:02", "")
    asked = vlm.tokenizer.decode(question_ids(encoded, vlm, "what is shown at 0:07?").tolist())
    assert "what is shown at 00:02?" in asked


def test_a_timeline_in_the_times_of_the_whole_video_is_stale(timeline, video, vlm, hypernetwork, tmp_path):
    made, output = timeline.description, tmp_path / "earlier.v2l.safetensors"
    parts = [_as_one_video(timeline.select([number])) for number in range(len(made.segments))]
    sources = [PartSource(lambda part=part: part, made.segments[0].answers) for part in parts]
    wanted = Wanted(video, made.request.reading, vlm.fingerprint, hypernetwork.provenance, made.request.segmentation)
    assert check_staleness(timeline.path, wanted).state == "current"
    write_timeline(output, sources, PartSource(timeline.overview), made.questions, made.request)
    found = check_staleness(output, wanted)
    assert (found.state, found.reason) == ("stale", "its segments were read with the times of the whole video")


@pytest.mark.parametrize("change", [lambda s: s.reverse(), lambda s: s[1].update(start=4.0), lambda s: s.pop(1)])
def test_segments_out_of_order_or_overlapping_are_refused(timeline, change):
    record = to_json(timeline.description)
    change(record["segments"])
    with pytest.raises(ValueError, match="do not follow one another"):
        check_timeline(from_json(TimelineDescription, record, "metadata"))


def test_only_the_output_is_left(timeline):
    assert [path.name for path in timeline.path.parent.iterdir()] == ["long.v2l.safetensors"]


def stop_after(parts):
    """A progress callback that interrupts the encode when that many parts are finished."""

    def progress(done, total):
        if done > parts:
            raise KeyboardInterrupt

    return progress


def job(video, vlm, hypernetwork, **wish):
    reading = fill_reading(Reading(), hypernetwork.provenance.trained_with, vlm.geometry)
    opened, chosen = encoding.open_video(video), Segmentation(**wish)
    parts = plan_timeline(opened.video, reading, hypernetwork.provenance.trained_with, chosen)
    return encoding.make_job(opened, reading, parts, hypernetwork, chosen)


@pytest.mark.parametrize("parts", [0, 1, 3, 4])
def test_an_interrupted_encode_goes_on_and_gives_the_same_bytes(timeline, video, vlm, hypernetwork, tmp_path, parts):
    output = tmp_path / "long.v2l.safetensors"
    with pytest.raises(KeyboardInterrupt):
        job(video, vlm, hypernetwork, seconds=5.0).run(vlm, hypernetwork, output, stop_after(parts))
    assert [path.name for path in tmp_path.iterdir()] == [".long.v2l.safetensors.partial"]
    reports = []
    job(video, vlm, hypernetwork, seconds=5.0).run(vlm, hypernetwork, output, lambda done, total: reports.append(done))
    assert min(reports) >= parts
    assert output.read_bytes() == timeline.path.read_bytes()
    assert list(tmp_path.iterdir()) == [output]


def test_parts_of_other_settings_and_damaged_parts_are_encoded_again(timeline, video, vlm, hypernetwork, tmp_path):
    output = tmp_path / "long.v2l.safetensors"
    with pytest.raises(KeyboardInterrupt):
        job(video, vlm, hypernetwork, segments=2).run(vlm, hypernetwork, output, stop_after(2))
    with pytest.raises(KeyboardInterrupt):
        job(video, vlm, hypernetwork, seconds=5.0).run(vlm, hypernetwork, output, stop_after(2))
    part = tmp_path / ".long.v2l.safetensors.partial" / "00001.v2l.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    (part.parent / "00000.json").write_text("{")
    job(video, vlm, hypernetwork, seconds=5.0).run(vlm, hypernetwork, output)
    assert output.read_bytes() == timeline.path.read_bytes()


@pytest.mark.parametrize("change", ["index", "overview"])
def test_parts_with_another_index_or_overview_are_encoded_again(timeline, video, vlm, hypernetwork, tmp_path, change):
    output, wanted = tmp_path / "long.v2l.safetensors", job(video, vlm, hypernetwork, seconds=5.0)
    fewer = dataclasses.replace(wanted.request.reading, frames=2)
    changes = {
        "index": {"questions": ("where?",)},
        "overview": {"request": dataclasses.replace(wanted.request, reading=fewer)},
    }
    with pytest.raises(KeyboardInterrupt):
        dataclasses.replace(wanted, **changes[change]).run(vlm, hypernetwork, output, stop_after(2))
    wanted.run(vlm, hypernetwork, output)
    assert output.read_bytes() == timeline.path.read_bytes()


def test_two_processes_do_not_encode_one_timeline(video, vlm, hypernetwork, tmp_path):
    output = tmp_path / "long.v2l.safetensors"
    other = job(video, vlm, hypernetwork, segments=2)
    with (
        encoding.FinishedParts.beside(output, {}),
        pytest.raises(v2l.V2LError, match="another process"),
    ):
        other.run(vlm, hypernetwork, output)


def test_a_long_name_in_a_new_folder(video, vlm, hypernetwork, tmp_path):
    output = tmp_path / "new" / "er" / f"{'x' * 238}.v2l.safetensors"
    made = v2l.encode_timeline(video, vlm, hypernetwork, output, segments=2, index=False)
    assert len(made.description.segments) == 2 and list(output.parent.iterdir()) == [output]


def test_a_disk_without_room_is_noticed_before_work_and_finished_parts_count(
    video, vlm, hypernetwork, tmp_path, monkeypatch
):
    output = tmp_path / "long.v2l.safetensors"
    with pytest.raises(KeyboardInterrupt):
        job(video, vlm, hypernetwork, segments=4).run(vlm, hypernetwork, output, stop_after(3))
    size = job(video, vlm, hypernetwork, segments=4).bytes(hypernetwork)
    free = [size * 6 // 5]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, free[0]))
    with pytest.raises(v2l.V2LError, match="are free"):
        job(video, vlm, hypernetwork, segments=4).run(vlm, hypernetwork, output)
    free = [size * 7 // 5]  # two of five parts are missing
    job(video, vlm, hypernetwork, segments=4).run(vlm, hypernetwork, output)
    assert output.exists()


def test_a_video_that_changes_meanwhile_is_not_written(video, vlm, hypernetwork, tmp_path):
    copy = shutil.copy(video, tmp_path / "copy.mp4")
    output = tmp_path / "copy.v2l.safetensors"
    changing = job(copy, vlm, hypernetwork, segments=2)
    small.write_video(tmp_path / "copy.mp4", frames=160, seed=9)
    with pytest.raises(v2l.V2LError, match="changed"):
        changing.run(vlm, hypernetwork, output)
    assert not output.exists()


def _as_one_video(adapter):
    """Return an adapter whose questions are asked as they are."""
    made = adapter.description
    segments = [
        dataclasses.replace(each, reading=dataclasses.replace(each.reading, own_times=False)) for each in made.segments
    ]
    return dataclasses.replace(adapter, description=dataclasses.replace(made, segments=tuple(segments)))


@pytest.mark.parametrize(
    ("question", "by", "stretches"),
    [
        ("what is shown at 0:07?", "time", [(5, 10)]),
        ("compare 0:02 and at 0:17", "time", [(0, 5), (15, 20)]),
        ("what happens after 0:07?", "time", [(5, 10)]),
        ("what happens after 0:09?", "time", [(10, 15)]),
        ("what happens before 0:05?", "time", [(0, 5)]),
        ("what comes first?", "order", [(0, 5)]),
        ("which thing is last?", "order", [(15, 20)]),
        ("describe the video", "overview", [(0, 20)]),
    ],
)
def test_a_question_is_answered_by_the_part_that_it_is_about(timeline, vlm, question, by, stretches):
    answer = v2l.stream(timeline, question, vlm, max_new_tokens=2)
    assert answer.evidence.routed_by == by
    assert [(segment.start, segment.end) for segment in answer.evidence.segments] == stretches
    picked = timeline.overview() if by == "overview" else timeline.select([int(start // 5) for start, _ in stretches])
    asked = in_own_times(question, stretches, 20.0) if by == "time" else question
    assert "".join(answer) == v2l.ask(_as_one_video(picked), asked, vlm, max_new_tokens=2, whole=True)


def test_a_long_stretch_is_answered_one_segment_at_a_time(timeline, vlm):
    question = "what happens between 0:01 and 0:19?"
    text = v2l.ask(timeline, question, vlm, max_new_tokens=3)
    answers = [v2l.ask(timeline.select([number]), question, vlm, max_new_tokens=3, whole=True) for number in range(4)]
    stretches = [line.split(" ", 1) for line in text.split("\n")]
    assert [answer for _, answer in stretches] == [
        answer for number, answer in enumerate(answers) if number == 0 or answers[number - 1] != answer
    ]
    assert stretches[0][0].startswith("0:00-")


def test_a_position_outside_of_the_video_is_an_error(timeline, vlm):
    with pytest.raises(v2l.V2LError, match=r"0:40, and the video is encoded from 0:00 to 0:20"):
        v2l.ask(timeline, "what is shown at 0:40?", vlm)


def test_the_rarest_words_of_the_index_choose_a_segment(timeline, vlm, tmp_path):
    made = timeline.description
    answers = ["a red ring on the left", "a red ladder", "a blue ring", "a blue drum"]
    segments = tuple(
        dataclasses.replace(part, answers=(text,)) for part, text in zip(made.segments, answers, strict=True)
    )
    described = dataclasses.replace(made, segments=segments, questions=("what is shown?",))
    indexed = Timeline(dataclasses.replace(timeline.file, description=described))
    routes = {
        "where is the ladder?": (1,),
        "what comes after the ladder?": (2,),  # nothing follows it in its segment
        "what comes before the ladder?": (1,),
        "what comes after the left one?": (1,),
        "what comes before the left one?": (0,),
        "what comes after the drum?": (3,),  # nothing follows its segment
        "is anything red?": (),  # in half of the segments
        "where is the elephant?": (),
    }
    assert {question: indexed.router.route(question).segments for question in routes} == routes


def test_the_answers_of_the_index_are_those_of_the_segments(timeline, vlm):
    (question,) = timeline.description.questions
    part = timeline.description.segments[2]
    assert part.answers == (v2l.ask(timeline.select([2]), question, vlm, encoding.INDEX_TOKENS, whole=True),)


def test_the_index_can_be_left_out(video, vlm, hypernetwork, tmp_path):
    bare = v2l.encode_timeline(video, vlm, hypernetwork, tmp_path / "a.v2l.safetensors", segments=2, index=False)
    assert bare.description.questions == () and bare.description.segments[0].answers == ()
    json.dumps(dataclasses.asdict(bare.description))


def test_every_segment_answers_and_equal_neighbours_are_joined(timeline, vlm):
    question, done = "what is it?", []
    found = ask_segments(timeline, question, lambda: vlm, 3, progress=lambda *each: done.append(each))
    alone = [v2l.ask(timeline.select([number]), question, vlm, 3, whole=True) for number in range(4)]
    spread = [each.text for each in found for _ in range(round((each.end - each.start) / 5))]
    assert spread == alone and done == [(4, 4)]


def test_a_question_of_the_index_needs_no_model(timeline):
    (question,) = timeline.description.questions
    found = ask_segments(timeline, question, lambda: pytest.fail("the model was loaded"))
    assert found[0].text == timeline.description.segments[0].answers[0]


def test_subtitles_are_valid():
    answers = [SegmentAnswer(0, 3723.5, "a <b> & c\n\n--> d"), SegmentAnswer(3723.5, 3725, "")]
    assert to_srt(answers) == (
        "1\n00:00:00,000 --> 01:02:03,500\na <b> & c\n-> d\n\n2\n01:02:03,500 --> 01:02:05,000\n-\n"
    )
    assert to_vtt(answers) == (
        "WEBVTT\n\n00:00:00.000 --> 01:02:03.500\na &lt;b&gt; &amp; c\n-&gt; d\n\n01:02:03.500 --> 01:02:05.000\n-\n"
    )
