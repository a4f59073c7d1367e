"""The conditions that an evaluation answers questions under. Importable without torch.

Evaluation files store conditions by name, so names must not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Ablation(StrEnum):
    """Parts that `ablations` removes."""

    ranks = "ranks"
    layers = "layers"
    times = "times"


class Control(StrEnum):
    """Conditions that an evaluation can leave out: all but the adapter."""

    in_context = "in_context"
    nothing = "nothing"
    bias = "bias"
    other_clip = "other_clip"


class Selection(StrEnum):
    """Which generated ranks to keep: the strongest, the weakest, random ones, or all but the strongest."""

    top = "top"
    bottom = "bottom"
    random = "random"
    without_top = "without top"


@dataclass(frozen=True)
class BasicCondition:
    """A condition without parameters. name: as stored in evaluation files"""

    name: str


@dataclass(frozen=True)
class RankAblation:
    """Answers from an adapter with some of its generated ranks.

    count: ranks to keep, or to remove for `Selection.without_top`
    """

    selection: Selection
    count: int

    @property
    def name(self) -> str:
        """As stored in evaluation files."""
        return f"ranks {self.selection} {self.count}"


@dataclass(frozen=True)
class LayerAblation:
    """Answers from an adapter without its change to one layer."""

    layer: int

    @property
    def name(self) -> str:
        """As stored in evaluation files."""
        return f"without layer {self.layer}"


Condition = BasicCondition | RankAblation | LayerAblation

IN_CONTEXT = BasicCondition("in_context")
"""The video is in the prompt."""
ADAPTER = BasicCondition("adapter")
"""The adapter of the clip. A question about one time is answered by the segments that show it."""
NOTHING = BasicCondition("nothing")
"""Neither video nor adapter."""
BIAS = BasicCondition("bias")
"""The learned bias of the hypernetwork alone."""
OTHER_CLIP = BasicCondition("other_clip")
"""The adapter of another clip."""
WHOLE = BasicCondition("whole")
"""All segments of the adapter, even if a question is about one time."""
SEGMENT_IN_CONTEXT = BasicCondition("segment_in_context")
"""For a question about one time, only the segments that show it are in context. For a timeline: the frames of the
segments that the question is routed to."""
OVERVIEW = BasicCondition("overview")
"""The overview of a timeline, whatever a question names."""

CONDITIONS = (IN_CONTEXT, ADAPTER, NOTHING, BIAS, OTHER_CLIP)
"""The conditions of an evaluation without ablations."""


def ablations(part: Ablation, ranks: int, layers: int, timeline: bool = False) -> tuple[Condition, ...]:
    """Return the conditions that remove a part of an adapter with `ranks` generated ranks and `layers` layers.

    Ranks: 1, 2, 4, ... of them by each `Selection`. Layers: each one in turn. Times: WHOLE and SEGMENT_IN_CONTEXT,
    which show the effect of selecting segments by time, for the adapter and in context; of timelines also OVERVIEW.
    """
    if part == Ablation.times:
        return (WHOLE, SEGMENT_IN_CONTEXT, OVERVIEW) if timeline else (WHOLE, SEGMENT_IN_CONTEXT)
    if part == Ablation.layers:
        return tuple(LayerAblation(layer) for layer in range(layers))
    counts = [2**power for power in range((ranks - 1).bit_length())]
    return tuple(RankAblation(selection, count) for count in counts for selection in Selection)
