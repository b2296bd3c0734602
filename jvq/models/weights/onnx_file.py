"""The weights in an ONNX graph, under the names that they had in torch.

Exporters fold a linear layer's transposition into its kernel, which is then anonymous (``onnx::MatMul_1234``). It gets
its name back from the bias that is added to its product, or, without a bias, from the node's own path.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from jvq.core import reading

Arrays = dict[str, np.ndarray]


def read(path: Path) -> Arrays:
    """The graph's named arrays; kernels [o d] as torch has them. ``ValueError`` in one line."""
    arrays, nodes = graph(path)
    with reading.shown(f"weights: {path} cannot be read as ONNX", *reading.BROKEN):
        return named(arrays, nodes)


def graph(path: Path, install: str = "pip install onnx") -> tuple[Arrays, list[Any]]:
    """All the graph's arrays by the names that they have there, and its nodes. ``ValueError`` in one line."""
    try:
        import onnx
    except ImportError:
        raise ValueError(f"weights: {path}: reading ONNX needs the package onnx: {install}") from None
    from google.protobuf.message import DecodeError

    kinds = (DecodeError, onnx.checker.ValidationError, *reading.BROKEN)
    with reading.shown(f"weights: {path} cannot be read as ONNX", *kinds):
        model = onnx.load(str(path), load_external_data=False)  # where the numbers may lie is looked at first
        arrays = {x.name: array(x, path.parent) for x in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                arrays[node.output[0]] = array(node.attribute[0].t, path.parent)
    return arrays, [node for node in model.graph.node if node.input and node.output]


def array(tensor: Any, folder: Path) -> np.ndarray:
    """The numbers of a tensor, which may lie in another file of the folder. ``ValueError``: they lie elsewhere."""
    from onnx import TensorProto, external_data_helper, numpy_helper

    if tensor.data_location == TensorProto.EXTERNAL:
        said = {entry.key: entry.value for entry in tensor.external_data}
        place = (folder / said.get("location", "")).resolve()
        if not place.is_relative_to(folder.resolve()) or not place.is_file():
            raise ValueError(f"the numbers of '{tensor.name}' lie in '{said.get('location')}', no file of its folder")
        offset, size = int(said.get("offset", 0)), place.stat().st_size
        if offset < 0 or not 0 <= int(said.get("length", size - offset)) <= size - offset:
            raise ValueError(f"the numbers of '{tensor.name}' lie outside of '{said['location']}'")
        external_data_helper.load_external_data_for_tensor(tensor, str(folder))
    found = numpy_helper.to_array(tensor)
    if found.dtype.hasobject:
        raise ValueError(f"'{tensor.name}' holds texts")
    return found


def named(arrays: Arrays, nodes: list[Any]) -> Arrays:
    """The arrays with the kernels' names, and no constants that only the graph's bookkeeping needs."""
    consumers = consumers_of(nodes)
    copies = {n.output[0]: arrays[n.input[0]] for n in nodes if n.op_type == "Identity" and n.input[0] in arrays}
    arrays = {**arrays, **copies}  # equal arrays are kept once
    found = dict(arrays)
    for node in nodes:
        if node.op_type == "MatMul" and len(node.input) == 2:
            kernel, transposed = node.input[1], False
            name = kernel_name(node, consumers, arrays)
        elif node.op_type == "Gemm" and len(node.input) == 3:
            kernel = node.input[1]
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            name = sibling(node.input[2])
        else:
            continue
        if kernel in arrays and arrays[kernel].ndim == 2 and name:
            found.pop(kernel, None)
            found[name] = arrays[kernel] if transposed else arrays[kernel].T
    return {name: x for name, x in found.items() if not anonymous(name) and x.ndim}


def consumers_of(nodes: list[Any]) -> dict[str, list[Any]]:
    """The nodes that take each array or product."""
    found: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def kernel_name(node: Any, consumers: dict[str, list[Any]], arrays: Arrays) -> str:
    """The kernel's name by the bias that is added to the product, else by the node's path; empty: neither says."""
    for add in consumers.get(node.output[0], ()):
        if add.op_type == "Add":
            bias = next((name for name in add.input if name in arrays and name.endswith(".bias")), "")
            if bias and not anonymous(bias):
                return sibling(bias)
    if not anonymous(node.input[1]) and node.input[1].endswith(".weight"):
        return node.input[1]
    path = re.fullmatch(r"/(.+)/MatMul(_\d+)?", node.name or "")
    return f"{path[1].replace('/', '.')}.weight" if path else ""


def sibling(bias: str) -> str:
    """The kernel beside a bias; empty where the bias has no name either."""
    return f"{bias.removesuffix('.bias')}.weight" if bias.endswith(".bias") and not anonymous(bias) else ""


def anonymous(name: str) -> bool:
    """Whether an exporter made the name up."""
    return name.startswith(("onnx::", "/")) or ("." not in name and not re.fullmatch(r"\w+_(token|embed)\w*", name))
