"""The names of the benchmarks, importable without their readers."""

NAMES = (
    "activitynet-captions",
    "plm-rdcap",
    "plm-rcap",
    "vdc",
    "carebench",
    "nextqa",
    "activitynet-qa",
    "plm-sgqa",
    "vidcapbench",
)
"""Of the registry's, in its order: the command line knows them without reading the readers."""
MAX_NEW_TOKENS = 128
"""The paper gives no length of answers for its benchmarks; its published demonstration stops at this one."""
