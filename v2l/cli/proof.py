"""Prove a model and its hypernetwork on videos: the second part of `v2l verify`."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from v2l.cli.console import Display
from v2l.errors import V2LError, reason
from v2l.io.text import printable

if TYPE_CHECKING:
    from v2l.inference.model_loader import ModelLoader
    from v2l.inference.proof import Proof

VIDEOS = 2
"""Videos that a proof needs at least; drawn clips complete them."""
OWN_PROOF = "v2l verify --video CLIP --model"
"""The command that proves a model, to be followed by its name, on a clip of the user's."""


def prove_model(videos: Sequence[Path], loader: ModelLoader, display: Display) -> bool:
    """Prove that a model and its hypernetwork tell videos apart, and print the likelihoods; True if they do.

    Of fewer than two videos, drawn clips are the others. Raises V2LError if the model or a video cannot be read.
    """
    from v2l.inference.proof import prove
    from v2l.tiny.demo import draw_clips

    vlm, hypernetwork = loader.load()
    with tempfile.TemporaryDirectory() as folder:
        drawn = draw_clips(Path(folder), max(0, VIDEOS - len(videos)))
        proofs = prove([*videos, *drawn], vlm, hypernetwork)
    for place, proof in enumerate(proofs):
        name = "a drawn clip" if place >= len(videos) else printable(proof.video)
        if proof.trouble is not None:
            (display.error if videos else display.warn)(f"{name}: {proof.trouble}")
        _print_proof(proof, name, place >= len(videos), loader, display)
    return all(proof.trouble is None for proof in proofs)


def prove_pulled(preset: str, display: Display) -> None:
    """Prove a preset that was pulled on two drawn clips, and print the likelihoods.

    A failed proof is a warning and the preset stays: its files are those of the hub, and the published models were
    never trained on drawn clips, so the verdict on a video of the user's counts.
    """
    from v2l.inference.model_loader import ModelLoader

    display.note(
        f"proving {preset} on two drawn clips, which takes minutes on a CPU; it is recorded already, so Ctrl-C only "
        "ends the proof, and --no-proof leaves it out"
    )
    try:
        ok = prove_model([], ModelLoader(preset, "option", announce=display.loading), display)
        trouble = "" if ok else "the proof failed on drawn clips"
    except (V2LError, OSError) as error:
        trouble = f"it could not be proven: {error if isinstance(error, V2LError) else printable(reason(error))}"
    if trouble:
        display.warn(
            f"warning: {preset} stays, since its files are those of the hub, but {trouble}; prove it on a clip of "
            f"yours: {OWN_PROOF} {preset}"
        )


def _print_proof(proof: Proof, name: str, is_drawn: bool, loader: ModelLoader, display: Display) -> None:
    if display.as_json:
        record = {
            "command": "verify",
            **dataclasses.asdict(proof),
            "video": None if is_drawn else proof.video,
            "model": loader.folder.id,
            "demonstration": loader.is_tiny,
            "hypernetwork": loader.provenance.id,
            "sound": proof.trouble is None,
            "error": proof.trouble,
        }
        display.result("", record)
        return
    rows = [
        ("video", name),
        ("", proof.trouble or "sound"),
        ("model", f"{printable(loader.folder.id)}, hypernetwork {printable(loader.provenance.id)}"),
        ("caption", f"{printable(proof.caption)} ({proof.tokens} tokens)"),
        ("its adapter", f"{proof.own:.3f} nats per token"),
        ("another's", f"{proof.other:.3f} nats per token"),
        ("its bias", f"{proof.bias:.3f} nats per token"),
        ("in context", f"{proof.in_context:.3f} nats per token"),
    ]
    display.panel(f"verify {name}", rows)
