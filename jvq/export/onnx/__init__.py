"""ONNX in QDQ form, which onnxruntime fuses to products of integers; what that cannot express is refused."""

from jvq.export.onnx.saving import Agreement, check, graph, save_onnx, save_onnx_float, session

__all__ = ["Agreement", "check", "graph", "save_onnx", "save_onnx_float", "session"]
