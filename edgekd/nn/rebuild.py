"""From a `torch.export` program to a module with real layers, which trains, changes mode and can be pruned.

An exported graph is flat: a convolution is an operator applied to a tensor named `layer1.0.conv1.weight`. Where the
names of the tensors say that they belonged to one layer, the layer is put back under its old path, so that the state
dict keeps its names; every other operator stays as it was traced. What depended on the mode and left no trace in the
graph (stochastic depth, for example) does not come back; dropout and BatchNorm do.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgekd.errors import BuildFailed
from edgekd.nn.layers import layer_from_call

_CHECKS = frozenset(
    {"_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size"}
)


def module_from_program(program: ExportedProgram) -> nn.Module:
    """The program as a module of real convolutions, norms, linear layers, activations and pools, in evaluation mode.

    Its outputs equal the program's; its weights are copies under the same names. A layer that the program calls twice
    is one layer again.

    Args:
        program: One batch of images in, one tensor out, exported in evaluation mode.

    Raises:
        BuildFailed: Several inputs or outputs, or a BatchNorm that cannot be put back, with the reason.
    """
    # The guards are source text from the file; see edgekd.nn.program.
    rebuilt = _Rebuild(program.module(check_guards=False)).module()
    stuck = sorted({str(node.target) for node in rebuilt.graph.nodes if "batch_norm" in str(node.target)})
    if stuck:
        raise BuildFailed(
            f"The program normalises with {', '.join(stuck)}, which cannot become a BatchNorm layer again.",
            hint="export the model in evaluation mode with torch.export.export, without run_decompositions",
        )
    return rebuilt.eval()


class _Rebuild:
    """One traced module on its way to layers: first each call finds its layer, then the tree and the graph are made."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.tensors: dict[str, Tensor] = {
            **dict(traced.named_parameters(remove_duplicate=False)),
            **dict(traced.named_buffers(remove_duplicate=False)),
        }
        self.taken = {name[: dot.start()] for name in self.tensors for dot in re.finditer(r"\.", name)}
        self.layers: dict[str, nn.Module] = {}
        self.path_of: dict[fx.Node, str] = {}
        self.root = nn.Module()

    def module(self) -> fx.GraphModule:
        nodes = list(self.traced.graph.nodes)
        inputs = [node for node in nodes if node.op == "placeholder"]
        outputs = next(node for node in nodes if node.op == "output").all_input_nodes
        if len(inputs) != 1 or len(outputs) != 1:
            raise BuildFailed(
                f"The program has {len(inputs)} inputs and {len(outputs)} outputs; expected one batch of images and "
                "one tensor of logits."
            )
        for node in nodes:
            if node.op == "call_function":
                self._find_layer(node)
        # Parents before children: a path that is a layer must not become a bare container first.
        for path in sorted(self.layers, key=len):
            parent, _, name = path.rpartition(".")
            self._container(parent).add_module(name, self.layers[path])
        return fx.GraphModule(self.root, self._graph(nodes, outputs[0]), "Rebuilt")

    def _graph(self, nodes: list[fx.Node], output: fx.Node) -> fx.Graph:
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for node in nodes:
            if node.op == "placeholder":
                copies[node] = graph.placeholder("images")
            elif node.op == "get_attr" and any(user not in self.path_of for user in node.users):
                self._keep_tensor(str(node.target))
                copies[node] = graph.get_attr(str(node.target))
            elif node in self.path_of:
                copies[node] = graph.call_module(self.path_of[node], (copies[node.all_input_nodes[0]],))
            elif node.op == "call_function" and _operator(node) not in _CHECKS:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[output])
        return graph

    def _find_layer(self, node: fx.Node) -> None:
        names, arguments = self._arguments(node)
        image = node.args[0] if node.args else None
        value = image.meta.get("val") if isinstance(image, fx.Node) else None
        if not isinstance(value, Tensor):
            return
        layer = layer_from_call(_operator(node), arguments, axes=value.ndim)
        if layer is None:
            return
        path = self._path_with_tensors(names, layer) if names else self._path_without_tensors(node, layer)
        if path is None:
            return
        if path not in self.layers:
            own = {key: self.tensors[f"{path}.{key}"] for key in layer.state_dict() if f"{path}.{key}" in self.tensors}
            layer.load_state_dict(
                {key: value.detach().clone() for key, value in own.items()}, strict=False, assign=True
            )
            self.layers[path] = layer
        self.path_of[node] = path

    def _path_with_tensors(self, names: dict[str, str], layer: nn.Module) -> str | None:
        """Where the tensors say that the layer stood; None when they are not `path.weight`, `path.bias` and so on."""
        path = next(iter(names.values())).rpartition(".")[0]
        if not path or any(name != f"{path}.{key}" for key, name in names.items()):
            return None
        # One weight used with two strides is two operators, not one layer.
        return path if path not in self.layers or repr(self.layers[path]) == repr(layer) else None

    def _path_without_tensors(self, node: fx.Node, layer: nn.Module) -> str:
        """Where the trace says that the module stood, or a new name inside the module whose code made the call."""
        stack = list(node.meta.get("nn_module_stack", {}).values())
        path, kind = (str(stack[-1][0]), str(stack[-1][1])) if stack else ("", "")
        if not re.fullmatch(r"\w+(\.\w+)*", path):
            path = node.name
        elif type(layer).__name__ not in kind:
            path = f"{path}.{node.name}"
        while path in self.taken or (path in self.layers and repr(self.layers[path]) != repr(layer)):
            path += "_"
        return path

    def _arguments(self, node: fx.Node) -> tuple[dict[str, str], dict[str, Any]]:
        """The names of the module's tensors and the values of all arguments, both by the names in the schema."""
        names: dict[str, str] = {}
        arguments: dict[str, Any] = {}
        schema = getattr(node.target, "_schema", None)
        for index, argument in enumerate(schema.arguments if schema else ()):
            value = node.kwargs.get(argument.name, argument.default_value)
            if index < len(node.args):
                value = node.args[index]
            if isinstance(value, fx.Node) and value.op == "get_attr" and str(value.target) in self.tensors:
                names[argument.name] = str(value.target)
                value = self.tensors[str(value.target)]
            arguments[argument.name] = value
        return names, arguments

    def _keep_tensor(self, name: str) -> None:
        """Registers a tensor that operators read directly, unless a layer holds it already."""
        path, _, attribute = name.rpartition(".")
        owner = self._container(path)
        if hasattr(owner, attribute):
            return
        value = self.tensors[name] if name in self.tensors else _attribute(self.traced, name)
        if isinstance(value, nn.Parameter):
            owner.register_parameter(attribute, nn.Parameter(value.detach().clone()))
        else:
            owner.register_buffer(attribute, value.detach().clone(), persistent=name in self.traced.state_dict())

    def _container(self, path: str) -> nn.Module:
        owner = self.root
        for part in path.split(".") if path else ():
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        return owner


def _operator(node: fx.Node) -> str:
    """`conv2d` of `torch.ops.aten.conv2d.default`; in-place forms count as the plain ones."""
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(packet, "__name__", packet)).rstrip("_")


def _attribute(module: nn.Module, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    value = getattr(module.get_submodule(path), attribute)
    if not isinstance(value, Tensor):
        raise BuildFailed(f"The program reads {name!r}, a {type(value).__name__}; only tensors can be rebuilt.")
    return value
