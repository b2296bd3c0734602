"""An ONNX graph while it is written: nodes and arrays, each named by what it is."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jvq.export.onnx.package import onnx

OPSET = 20
"""The first in which GELU is one operator, as LayerNormalization is since 17: onnxruntime has a kernel for each.

The narrow integers of 21 are of no use: onnxruntime 1.32 makes no integer product of a 4-bit weight.
"""
IR = 9  #: the file format that came with that opset
BATCH = "batch"  #: name of the axis whose length is free


class Graph:
    """Nodes in order, and their constants. A value is the name of what a node or a constant gives."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.arrays: dict[str, Any] = {}
        self._known: dict[tuple[Any, ...], str] = {}

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """The value of a new node of that operator."""
        return self.several(op, 1, *inputs, **attributes)[0]

    def several(self, op: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """The ``count`` values of a new node."""
        name = f"{op}_{len(self.nodes)}"
        outputs = [name] if count == 1 else [f"{name}.{i}" for i in range(count)]
        self.nodes.append(onnx().helper.make_node(op, list(inputs), outputs, name=name, **attributes))
        return outputs

    def constant(self, value: Any, name: str = "") -> str:
        """An array of the file; equal small ones are kept once."""
        array = np.ascontiguousarray(value).reshape(np.shape(value))  # the former makes a number an array of one
        key = (array.dtype.str, array.shape, array.tobytes()) if not name and array.size <= 64 else ()
        if key and key in self._known:
            return self._known[key]
        name = name or f"constant_{len(self.arrays)}"
        assert name not in self.arrays, name
        self.arrays[name] = onnx().numpy_helper.from_array(array, name)
        if key:
            self._known[key] = name
        return name

    def number(self, value: float) -> str:
        """A float32 number."""
        return self.constant(np.float32(value))

    def integers(self, values: Sequence[int]) -> str:
        """A list of int64, as shapes, axes and places are given."""
        return self.constant(np.asarray(values, np.int64))

    def reshape(self, x: str, *shape: int) -> str:
        """``x`` [b ...] as [b, *shape]."""
        return self.add("Reshape", x, self.integers((0, *shape)))  # 0: as long as it was

    def transpose(self, x: str, *order: int) -> str:
        """``x`` with its axes in that order."""
        return self.add("Transpose", x, perm=list(order))

    def part(self, x: str, axis: int, start: int, end: int) -> str:
        """``x[start:end]`` along an axis."""
        return self.add("Slice", x, *(self.integers([i]) for i in (start, end, axis)))

    def at(self, x: str, axis: int, index: int) -> str:
        """``x[index]`` along an axis, which goes."""
        return self.add("Gather", x, self.constant(np.int64(index)), axis=axis)

    def repeated(self, array: np.ndarray, like: str) -> str:
        """The constant [1 ...] once an image of ``like``."""
        count = self.add("Shape", like, start=0, end=1)
        shape = self.add("Concat", count, self.integers(array.shape[1:]), axis=0)
        return self.add("Expand", self.constant(array), shape)

    def model(
        self,
        images: tuple[str, tuple[int, ...]],
        outputs: tuple[str, tuple[int, ...]],
        last: str,
        notes: Mapping[str, str],
    ) -> Any:
        """The ``ModelProto``: input and output by name and shape without the batch; ``last`` is the value put out."""
        helper, float32 = onnx().helper, onnx().TensorProto.FLOAT
        self.nodes.append(helper.make_node("Identity", [last], [outputs[0]]))
        ends = [helper.make_tensor_value_info(name, float32, [BATCH, *shape]) for name, shape in (images, outputs)]
        graph = helper.make_graph(self.nodes, "jvq", ends[:1], ends[1:], list(self.arrays.values()))
        model = helper.make_model(graph, producer_name="jvq", opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR
        helper.set_model_props(model, dict(notes))
        return model
