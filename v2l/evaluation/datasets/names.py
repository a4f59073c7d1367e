"""The names of the benchmarks. Importable without their readers."""

from enum import StrEnum


class BenchmarkName(StrEnum):
    """The benchmarks of the registry, in its order."""

    activitynet_captions = "activitynet-captions"
    plm_rdcap = "plm-rdcap"
    plm_rcap = "plm-rcap"
    vdc = "vdc"
    carebench = "carebench"
    nextqa = "nextqa"
    activitynet_qa = "activitynet-qa"
    plm_sgqa = "plm-sgqa"
    vidcapbench = "vidcapbench"


NAMES = tuple(name.value for name in BenchmarkName)
MAX_NEW_TOKENS = 128
"""The paper gives no length of answers for its benchmarks; its published demonstration stops at this one."""
MANIFEST_MAX_NEW_TOKENS = 64
"""The same for a manifest, whose answers are shorter."""
