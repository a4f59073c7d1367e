"""What `v2l pull`, `v2l verify` and `v2l export` do once their options are understood."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from v2l.adapters.adapter import Adapter
from v2l.adapters.export import export_gguf, export_peft, serving_command
from v2l.adapters.verify import Effect, Verification
from v2l.adapters.verify import verify as verify_adapter
from v2l.cli.commands import announce_fallback, refuse_to_replace
from v2l.cli.console import Display, shown
from v2l.cli.session import subjects_of
from v2l.errors import UsageError, V2LError
from v2l.inference.model_loader import ModelLoader
from v2l.inference.targets import ADAPTER_SUFFIX
from v2l.io.text import amount, printable


def verify(paths: Sequence[Path], choice: ModelLoader, display: Display) -> bool:
    """Proves every adapter; True where all are sound."""
    ok = True
    for subject in subjects_of(paths, choice):
        path, trouble = (subject.path, None) if not isinstance(subject, tuple) else (subject[0], str(subject[1]))
        verdict = None
        if trouble is None:
            try:
                announce_fallback(subject.choice, display)
                verdict = verify_adapter(subject.adapter, subject.choice.language_model)
                trouble = verdict.trouble
            except V2LError as error:
                trouble = str(error)
        if trouble is not None:
            display.error(trouble if printable(path) in trouble else f"{printable(path)}: {trouble}")
        ok = ok and trouble is None
        _tell(path, subject.adapter if verdict else None, verdict, trouble, display)
    return ok


def _tell(
    path: Path, adapter: Adapter | None, verdict: Verification | None, trouble: str | None, display: Display
) -> None:
    record = {"command": "verify", "adapter": path, "sound": trouble is None, "error": trouble}
    if verdict is None:
        if display.as_json:
            display.result("", record)
        return
    base = adapter.description.base_model
    rows = [
        ("adapter", printable(path)),
        ("", "sound" if trouble is None else trouble),
        ("model", f"{printable(base.id)} ({base.fingerprint[:12]}), weights sha256 {verdict.weights_sha256[:12]}"),
        ("moves it", _told(verdict.on_model)),
        ("over its bias", _told(verdict.over_bias)),
        ("rank", f"{adapter.rank}, {len(adapter.a)} layers, all values finite"),
        ("sha256", adapter.sha256()),
    ]
    if display.as_json:
        display.result("", record | dataclasses.asdict(verdict) | {"sha256": adapter.sha256(), "model": base.id})
    else:
        display.panel(f"verify {printable(path)}", rows)


def _told(effect: Effect) -> str:
    if not effect.is_finite:
        return "beyond all numbers"
    return (
        f"{effect.divergence:.3g} nats on average, {effect.largest:.3g} at most in a logit, {effect.tokens:.0%} of the "
        "most likely tokens change"
    )


def export(path: Path, form: str, output: Path | None, overwrite: bool, display: Display) -> None:
    """Writes the export beside the adapter, or where `output` says, and tells how it is served."""
    adapter = Adapter.load(path)
    name = path.name.removesuffix(ADAPTER_SUFFIX)
    if form == "gguf":
        output = output or path.with_name(f"{name}.gguf")
        if output.suffix != ".gguf":
            raise UsageError(f"-o {printable(output)} must end in .gguf, by which llama.cpp's tools know it")
        refuse_to_replace(output, overwrite, same=lambda: False)
        export_gguf(adapter, output)
        size = os.stat(output).st_size
    else:
        output = output or path.with_name(f"{name}.peft")
        export_peft(adapter, output, overwrite)
        size = sum(file.stat().st_size for file in output.iterdir())
    line = serving_command(adapter, output, form)
    display.result(shown(output), {"command": "export", "format": form, "output": output, "bytes": size, "serve": line})
    display.note(f"{amount(size)}, rank {adapter.rank}; to serve it: {line}")


def pull(name: str, revision: str | None, make_default: bool, display: Display) -> None:
    """Fetches a preset and says under which licences, and whether it is the default now."""
    from huggingface_hub.utils import disable_progress_bars

    from v2l.models.presets import lock_path, read_lock
    from v2l.models.pull import pull as fetch

    if display.quiet or not sys.stderr.isatty():
        disable_progress_bars()
    for pulled in fetch(name, revision, make_default, display.note):
        text = f"{pulled.repo}  {pulled.commit[:12]}, {amount(pulled.size)}, licence {printable(pulled.licence)}"
        display.result(text, {"command": "pull", **dataclasses.asdict(pulled)})
    default = read_lock().default
    told = "it is the default now" if default == name else f"the default stays {default}; --default changes it"
    display.note(f"{name} is there and works together; {told}; recorded in {printable(lock_path())}")
