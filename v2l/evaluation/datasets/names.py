"""The names of the benchmarks. Importable without their readers."""

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
"""The keys of the registry, in its order, for the command line."""
MAX_NEW_TOKENS = 128
"""Maximum length of answers. The paper does not state one; this is the limit of its published demonstration."""
