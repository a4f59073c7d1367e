"""v2l encodes a video into a LoRA adapter, from which a frozen vision-language model answers without visual tokens.

The public names are imported on first use, so that `import v2l` loads neither torch nor transformers.
"""

from importlib import import_module

__version__ = "0.1.0"

_MODULES = {
    "Adapter": "adapters.adapter",
    "V2LError": "errors",
    "V2LWarning": "errors",
    "applied": "adapters.lora",
    "ask": "inference.ask",
    "ask_each": "inference.ask",
    "ask_in_context": "inference.ask",
    "compose": "adapters.segments",
    "encode": "inference.encode",
    "encode_timeline": "inference.timeline",
    "import_checkpoint": "models.checkpoint",
    "load_hypernetwork": "models.checkpoint",
    "load_vlm": "models.loading",
    "save_hypernetwork": "models.checkpoint",
    "Reading": "video.sampling",
    "stream": "inference.ask",
    "stream_in_context": "inference.ask",
    "Timeline": "adapters.timeline",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'v2l' has no attribute {name!r}")
    return getattr(import_module(f"v2l.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*_MODULES, "__version__"]
