"""Prove a model and its hypernetwork on videos: the second part of `v2l verify`."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from v2l.cli.console import Display
from v2l.io.text import printable

if TYPE_CHECKING:
    from v2l.inference.model_loader import ModelLoader
    from v2l.inference.proof import Proof

VIDEOS = 2
"""Videos that a proof needs at least; drawn clips complete them."""


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
        _print_proof(proof, place >= len(videos), loader, display)
    return all(proof.trouble is None for proof in proofs)


def _print_proof(proof: Proof, is_drawn: bool, loader: ModelLoader, display: Display) -> None:
    name = "a drawn clip" if is_drawn else printable(proof.video)
    if proof.trouble is not None:
        display.error(f"{name}: {proof.trouble}")
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
