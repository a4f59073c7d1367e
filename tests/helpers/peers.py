"""Adapters on transformers' own modules, written independently of v2l's."""

from contextlib import ExitStack, contextmanager

from v2l.bench.peer import transformers_model

__all__ = ["side_path", "transformers_model"]


@contextmanager
def side_path(model, factors):
    """Add (x a^T) b to the output of every `down_proj` of a transformers model. Yield the inputs of these modules."""
    inputs = []

    def add_change(a, b):
        def hook(_module, given, output):
            inputs.append(given[0])
            return output + given[0] @ a.transpose(-1, -2) @ b

        return hook

    with ExitStack() as hooks:
        for layer, (a, b) in zip(model.model.text_model.layers, factors, strict=True):
            hooks.callback(layer.mlp.down_proj.register_forward_hook(add_change(a, b)).remove)
        yield inputs
