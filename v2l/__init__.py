"""v2l: a video becomes a small LoRA adapter, and a frozen vision-language model answers from it without a visual token.

The names below are loaded when they are first used, so that `import v2l` costs nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "Adapter": "adapter",
    "V2LError": "errors",
    "V2LWarning": "errors",
    "applied": "lora",
    "ask": "answer",
    "ask_each": "answer",
    "ask_in_context": "answer",
    "compose": "composition",
    "encode": "pipeline",
    "import_checkpoint": "checkpoint",
    "load_hypernetwork": "checkpoint",
    "load_vlm": "loading",
    "save_hypernetwork": "checkpoint",
    "Reading": "sampling",
    "stream": "answer",
    "stream_in_context": "answer",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'v2l' has no attribute {name!r}")
    return getattr(import_module(f"v2l.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*_HOME, "__version__"]
