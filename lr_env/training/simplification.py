"""Graphs of gradients made faster: without operations that do nothing, of which traces are full, and with pooling in its fast layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

_ATEN = torch.ops.aten

_FILLED = {
    getattr(_ATEN, name).default
    for name in ("ones_like", "zeros_like", "full_like", "new_zeros", "new_ones", "new_full", "zeros", "ones", "full", "arange", "scalar_tensor")
}
"""They make tensors whose values depend on no other tensor's."""

_VIEWS = {
    getattr(getattr(_ATEN, name), overload)
    for name, overload in (
        *((name, "default") for name in ("view", "_unsafe_view", "expand", "t", "unsqueeze", "squeeze")),
        *((name, "int") for name in ("transpose", "select")),
        ("squeeze", "dim"),
    )
}
"""They give the same memory another form."""


def simplify(module: GraphModule) -> None:
    """Removes what does nothing, computes what is constant, and pools channels last; in place, for a graph that ``make_fx`` made.

    Bits stay the same.
    """
    for node in list(module.graph.nodes):
        if node.target is _ATEN.max_pool2d_with_indices.default:
            _pool_channels_last(module, node)
    changed = _changed_in_place(module)
    for node in list(module.graph.nodes):
        same = None if node in changed else _equal_input(node)
        if same is not None:
            node.replace_all_uses_with(same)
    module.graph.eliminate_dead_code()
    _fold_constants(module, changed)
    module.graph.eliminate_dead_code()
    module.recompile()


def _pool_channels_last(module: GraphModule, pooling: Node) -> None:
    """PyTorch's pooling on a CPU takes much longer with channels first than with channels last, conversions included."""
    images = pooling.args[0]
    assert isinstance(images, Node)
    value = images.meta["val"]
    is_last = not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)
    if value.device.type != "cpu" or value.dim() != 4 or is_last:
        return
    with module.graph.inserting_before(pooling):
        turned = module.graph.call_function(_ATEN.clone.default, (images,), {"memory_format": torch.channels_last})
    pooling.args = (turned, *pooling.args[1:])
    for result in list(pooling.users):  # values and indices, back in the layout that the rest of the graph was traced with
        with module.graph.inserting_after(result):
            restored = module.graph.call_function(_ATEN.clone.default, (result,), {"memory_format": torch.contiguous_format})
        restored.meta = dict(result.meta)
        for user in list(result.users):
            if user is not restored:
                user.replace_input_with(result, restored)


def _equal_input(node: Node) -> Node | None:
    """The earlier value that this one equals, if there is one."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node):
        return None
    if node.target is _ATEN.detach.default:  # nothing here has a gradient to be detached from
        return source
    if node.target is _ATEN.mul.Scalar and node.args[1] == 1:
        return source
    # Views that keep all elements and end in the form that they began with.
    earlier: Any = node
    while isinstance(earlier, Node) and earlier.target in _VIEWS:
        earlier = earlier.args[0]
        if not isinstance(earlier, Node) or _count(earlier) != _count(node):
            break
        if _geometry(earlier) == _geometry(node):
            return earlier
    return None


def _changed_in_place(module: GraphModule) -> set[Node]:
    """What is written in place, and what that is a view of."""
    changed: set[Node] = set()
    for node in module.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            written: Any = node
            while isinstance(written, Node):
                changed.add(written)
                written = written.args[0] if written.args else None
    return changed


def _fold_constants(module: GraphModule, changed: set[Node]) -> None:
    values: dict[Node, Any] = {}
    for node in module.graph.nodes:
        inputs = node.all_input_nodes
        if node.op != "call_function" or node in changed:
            continue
        if node.target in _FILLED or (inputs and all(source in values for source in inputs) and isinstance(node.meta.get("val"), Tensor)):
            arguments = torch.fx.map_arg((node.args, node.kwargs), lambda source: values[source] if source in values else _like(source))
            values[node] = node.target(*arguments[0], **arguments[1])
    for number, (node, value) in enumerate(values.items()):
        if all(user in values for user in node.users):
            continue
        name = f"constant_{number}"
        module.register_buffer(name, value)
        with module.graph.inserting_before(node):
            replacement = module.graph.get_attr(name)
        replacement.meta = dict(node.meta)
        node.replace_all_uses_with(replacement)


def script_normalisations(module: GraphModule) -> None:
    """Gradients of layer normalisations become functions of TorchScript, in place.

    ``torch.jit.trace`` takes no lists of booleans, which they are given: a graph with one could not be run by TorchScript's interpreter.
    """
    for number, node in enumerate(list(module.graph.nodes)):
        if node.target is not _ATEN.native_layer_norm_backward.default or node.kwargs or not all(node.args[-1]):
            continue
        names = {source: f"tensor_{index}" for index, source in enumerate(node.all_input_nodes)}
        arguments = ", ".join(names[argument] if isinstance(argument, Node) else repr(argument) for argument in node.args)
        name = f"normalisation_{number}"
        source = f"def run({', '.join(names.values())}):\n    return torch.ops.aten.native_layer_norm_backward({arguments})\n"
        module.add_submodule(name, _Scripted(source))
        with module.graph.inserting_after(node):
            scripted = module.graph.call_module(name, tuple(names))
        scripted.meta = dict(node.meta)
        node.replace_all_uses_with(scripted)
        module.graph.erase_node(node)
    module.recompile()


class _Scripted(nn.Module):
    """A function ``run`` of TorchScript."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.forward = torch.jit.CompilationUnit(source).run


def _geometry(node: Node) -> tuple[Any, ...]:
    value = node.meta.get("val")
    return (value.shape, value.stride()) if isinstance(value, Tensor) else (node,)


def _count(node: Node) -> int:
    """Number of elements; negative where it is unknown, and then like no other node's."""
    value = node.meta.get("val")
    return value.numel() if isinstance(value, Tensor) else -1 - id(node)


def _like(node: Node) -> Tensor:
    """A tensor with the form of this node's, whatever its values."""
    value = node.meta["val"]
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
