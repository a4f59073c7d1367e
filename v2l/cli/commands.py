"""What each command does once its options are understood: call the library, hand every result to the display."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from v2l.adapters.adapter import Adapter
from v2l.adapters.segments import compose as compose_adapters
from v2l.cli.console import Display, shown
from v2l.cli.info import describe
from v2l.errors import StdoutClosed, UsageError, V2LError
from v2l.inference.batch import EncodeOptions, Outcome, encode_targets
from v2l.inference.model_loader import ModelLoader, choose_model
from v2l.inference.targets import ADAPTER_SUFFIX, Destination, Shard, Target, find_targets, read_names
from v2l.io.text import amount, clock, printable
from v2l.models.checkpoint import import_checkpoint

DEMONSTRATION = (
    "note: using tiny, the demonstration model, which only knows synthetic clips; name a real one with --model or "
    "V2L_MODEL (v2l pull smolvlm2-500m gets one)"
)


def choice(model: str | None, hypernetwork: str | None, device: str | None, dtype: str | None) -> ModelLoader:
    """The model that the options name, or that stands in where they name none."""
    name, chosen_by = choose_model(model)
    return ModelLoader(name, chosen_by, hypernetwork, device, dtype)


def announce_fallback(chosen: ModelLoader, display: Display) -> None:
    """Nobody chose the demonstration model: say that it is one, once it is known to be there."""
    if chosen.chosen_by == "fallback" and chosen.folder:
        display.warn(DEMONSTRATION)


# encode ------------------------------------------------------------------------------------------------------------


def encode_inputs(inputs: Sequence[str], files_from: str | None) -> list[Path]:
    """Inputs and the names in a list. Raises UsageError where there are none at all, or one is empty."""
    if "" in inputs:
        raise UsageError("one of the inputs is empty, an unset variable perhaps; name a video or a folder")
    found = [Path(name) for name in inputs]
    if files_from == "-":
        found += read_names(sys.stdin.buffer)
    elif files_from:
        try:
            with open(files_from, "rb") as file:
                found += read_names(file)
        except OSError as error:
            raise UsageError(f"cannot read the list {printable(files_from)}: {error.strerror}") from error
    elif not found:
        raise UsageError("name a video or a folder of videos to encode")
    return found


def encode(
    inputs: Sequence[Path],
    destination: Destination,
    options: EncodeOptions,
    choice: ModelLoader,
    display: Display,
    recursive: bool = False,
    fail_fast: bool = False,
    shard: Shard | None = None,
) -> bool:
    """Encodes all inputs, or a shard of them, printing each adapter's path; True where none failed."""
    targets = find_targets(inputs, destination, options.reading, recursive)
    targets = shard.of(targets) if shard else targets
    if not all(target.error for target in targets):
        announce_fallback(choice, display)
        choice.check()
    counts = dict.fromkeys(("encoded", "composed", "current", "kept", "failed"), 0)
    listening = True
    for outcome in outcomes(targets, options, choice, display):
        counts[outcome.status] += 1
        try:
            _tell(outcome, options, choice, display, listening)
        except StdoutClosed:
            listening = False  # the files are the result: go on for them
        if outcome.status == "failed" and fail_fast:
            break
    display.end_progress()
    display.note(", ".join(f"{number} {status}" for status, number in counts.items() if number) or "nothing to encode")
    return not counts["failed"]


def outcomes(
    targets: Sequence[Target], options: EncodeOptions, choice: ModelLoader, display: Display
) -> Iterator[Outcome]:
    """All targets' outcomes, with a bar: over videos where there are several, else over the one's steps."""
    several = len(targets) > 1
    places = {target.video: place for place, target in enumerate(targets) if not target.error}
    display.start_progress(len(targets) if several else 1, "video" if several else "step")

    def watch(target: Target, done: int, total: int) -> None:
        name = printable(target.video.name)
        if several:
            place = places[target.video]
            display.progress(place + done / total, len(targets), f"{place + 1}/{len(targets)} {name}")
        else:
            display.progress(done, total, name)

    for outcome in encode_targets(targets, options, choice, watch):
        if several:
            display.progress(places.get(outcome.target.video, 0) + 1, len(targets))
        yield outcome


def _fewer_frames(adapter: Adapter, options: EncodeOptions) -> Iterator[str]:
    """Why a video gave fewer frames than were asked for in so many words."""
    for segment in adapter.description.segments:
        if options.reading.frames and len(segment.timestamps) < options.reading.frames:
            yield f"{len(segment.timestamps)} frames, {segment.reading.fps:g} a second; --fps takes more"


def _tell(outcome: Outcome, options: EncodeOptions, choice: ModelLoader, display: Display, listening: bool) -> None:
    video, output = outcome.target.video, outcome.target.output
    model = {"model": choice.folder.id, "model_chosen_by": choice.chosen_by}
    record = {"command": "encode", "video": video, "adapter": output, "status": outcome.status, **model}
    if outcome.note:
        record["error" if outcome.status == "failed" else "note"] = outcome.note
    if outcome.status == "failed":
        display.error(outcome.note if printable(video) in outcome.note else f"{printable(video)}: {outcome.note}")
        if display.as_json and listening:
            display.result("", {**record, "adapter": None})
        return
    if outcome.note:
        made = "kept" if outcome.status == "kept" else "encoded again"
        display.note(f"{printable(output)}: {made}: {outcome.note}")
    text = shown(output)
    if outcome.adapter is not None:
        size = os.stat(output).st_size
        frames = sum(len(segment.timestamps) for segment in outcome.adapter.description.segments)
        record |= {"bytes": size, "frames": frames, "rank": outcome.adapter.rank, "seconds": round(outcome.seconds, 3)}
        if sys.stdout.isatty():
            text += f"  {amount(size)}, {frames} frames" + (f", {outcome.seconds:.1f} s" if outcome.seconds else "")
        for note in [*_fewer_frames(outcome.adapter, options), *outcome.adapter.description.not_validated]:
            display.note(f"{printable(output)}: {note}")
    if listening:
        display.result(text, record)


# demo --------------------------------------------------------------------------------------------------------------


def demonstrate(choice: ModelLoader, folder: Path, overwrite: bool, display: Display) -> None:
    """Prints the demonstration's answers, adapter and in context side by side."""
    from v2l.cli import demo

    video, adapter, answers = demo.run(choice, folder, overwrite, display.note)
    size = os.stat(adapter).st_size
    display.note(f"{printable(adapter)}: its adapter, {amount(size)}; from here on the video is not needed")
    if display.as_json:
        for answer in answers:
            record = {"command": "demo", "video": video, "adapter": adapter, "model": choice.folder.id}
            display.result("", {**record, **dataclasses.asdict(answer)})
        return
    header = ["question", "the clip shows", "adapter", "in context", "visual tokens", "time to first token"]
    rows = [
        [
            *(answer.question, answer.truth, answer.from_adapter, answer.in_context),
            f"{answer.visual_tokens[0]} / {answer.visual_tokens[1]}",
            f"{answer.first_token[0] * 1000:.1f} / {answer.first_token[1] * 1000:.1f} ms",
        ]
        for answer in answers
    ]
    display.table(header, rows)
    display.note("adapter / in context; in context the video is decoded, seen and read again for every question")
    display.note(f'now you: v2l ask {shown(adapter)} "what is written first?"')


# compose, info, import ---------------------------------------------------------------------------------------------


def compose(paths: Sequence[Path], output: Path, rank: int | None, overwrite: bool, display: Display) -> None:
    """Writes the composed adapter and says what a reader of its timeline should know."""
    if not output.name.endswith(ADAPTER_SUFFIX):
        raise UsageError(f"-o {printable(output)} must end in {ADAPTER_SUFFIX}, by which `v2l ask` knows an adapter")
    whole = compose_adapters([Adapter.load(path) for path in paths], rank)
    for note in timeline_notes(whole):
        display.note(f"warning: {note}")
    refuse_to_replace(output, overwrite, same=lambda: Adapter.load(output).sha256() == whole.sha256())
    whole.save(output)
    made = whole.description
    errors = [block.relative_error for block in made.blocks if block.relative_error]
    if rank is not None:
        display.note(f"reduced to rank {rank}, relative error {errors[-1] if errors else 0.0:.2%}")
    record = {
        "command": "compose",
        "adapter": output,
        "segments": len(made.segments),
        "rank": whole.rank,
        "relative_error": errors[-1] if rank is not None and errors else 0.0,
        "bytes": os.stat(output).st_size,
    }
    text = shown(output)
    if sys.stdout.isatty():
        text += f"  {amount(record['bytes'])}, {len(made.segments)} segments, rank {whole.rank}"
    display.result(text, record)


def timeline_notes(adapter: Adapter) -> Iterator[str]:
    """Gaps and overlaps between neighbouring segments of one video, and steps back in time, a line each."""
    for one, other in itertools.pairwise(adapter.description.segments):
        if one.source.sha256 != other.source.sha256 or one.end == other.start:
            continue
        name, end, start = printable(other.source.name), clock(one.end), clock(other.start)
        if other.start > one.end:
            yield f"{name}: a gap from {end} to {start} between two segments"
        elif other.end > one.start:
            yield f"{name}: two segments overlap from {start} to {clock(min(one.end, other.end))}"
        else:
            yield f"{name}: the segment from {start} stands after the one that ends at {end}"


def info(files: Sequence[Path], display: Display) -> bool:
    """Describes every file; True where all could be read."""
    ok = True
    for path in files:
        try:
            kind, rows, record = describe(path)
        except V2LError as error:
            display.error(str(error))
            ok = False
            continue
        if display.as_json:
            display.result("", {"command": "info", **record})
        else:
            display.panel(f"{kind} {printable(path)}", [(kind, printable(path)), *rows])
    return ok


def import_published(checkpoint: Path, output: Path, overwrite: bool, display: Display) -> None:
    """Writes a published checkpoint as v2l's own file."""
    if output.suffix != ".safetensors" or output.name.endswith(ADAPTER_SUFFIX):
        raise UsageError(
            f"-o {printable(output)} must end in .safetensors and not, like an adapter, in {ADAPTER_SUFFIX}"
        )
    refuse_to_replace(output, overwrite, same=lambda: False)
    hypernetwork = import_checkpoint(checkpoint, output)
    provenance = hypernetwork.provenance
    display.note(f"a hypernetwork for {printable(provenance.base_model)}, rank {hypernetwork.config.rank}")
    record = {
        "command": "import",
        "hypernetwork": output,
        "base_model": provenance.base_model,
        "sha256": provenance.sha256,
    }
    display.result(shown(output), record)


def refuse_to_replace(output: Path, overwrite: bool, same: Callable[[], bool]) -> None:
    """Raises V2LError where something else stands at `output` and nobody said to replace it."""
    if overwrite or not os.path.lexists(output):
        return
    try:
        if same():
            return
    except V2LError:
        pass  # not even readable, so certainly not the same
    raise V2LError(f"{printable(output)} is there already; --overwrite replaces it")
