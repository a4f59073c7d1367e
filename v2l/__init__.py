"""v2l: a video becomes a small LoRA adapter, and a frozen vision-language model answers from it without a visual token.

The names below are loaded when they are first used, so that `import v2l` costs nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "Adapter": "adapters.adapter",
    "V2LError": "errors",
    "V2LWarning": "errors",
    "applied": "adapters.lora",
    "ask": "inference.ask",
    "ask_each": "inference.ask",
    "ask_in_context": "inference.ask",
    "compose": "adapters.segments",
    "encode": "inference.encode",
    "import_checkpoint": "models.checkpoint",
    "load_hypernetwork": "models.checkpoint",
    "load_vlm": "models.loading",
    "save_hypernetwork": "models.checkpoint",
    "Reading": "video.sampling",
    "stream": "inference.ask",
    "stream_in_context": "inference.ask",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'v2l' has no attribute {name!r}")
    return getattr(import_module(f"v2l.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*_HOME, "__version__"]
