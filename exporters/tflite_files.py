"""The last steps of every ``.tflite`` file: names of the spec, weights in fp16, metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError
from .base import converting

_ALIGNMENT = 16
"""Bytes that the data of a buffer is aligned to, as the schema of TensorFlow Lite demands."""


def finish(
    content: bytes, path: Path, names: Mapping[str, str], metadata: Mapping[str, str]
) -> None:
    """Write a file with the names of the spec in its signature, and what it says of its origin.

    Args:
        content: the file, as a converter made it.
        path: where to write.
        names: the name in the file of each input of the spec.
        metadata: texts by key.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content)
    original = {made: name for name, made in names.items()}
    for signature in model.signatureDefs or []:
        for tensor in signature.inputs:
            made = tensor.name.decode()
            tensor.name = original.get(made, made).encode()
    model.metadata = list(model.metadata or [])
    for key, text in sorted(metadata.items()):
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(text.encode(), np.uint8)
        entry = schema.MetadataT()
        entry.name, entry.buffer = key.encode(), len(model.buffers)
        model.buffers.append(buffer)
        model.metadata.append(entry)
    path.write_bytes(_packed(model))


def name_layers(content: bytes, layers: Mapping[str, str]) -> bytes:
    """Return a file whose tensors are called like the layers that they come from.

    Args:
        content: the file, as litert-torch made it: its tensors are called ``PATH;NUMBER``, or
            ``PATH;;PATH;NUMBER`` where it fused layers, the last one first.
        layers: the layer's name by path.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            parts = tensor.name.decode().split(";")
            if any(part in layers for part in parts):
                kept = [layers.get(part, part) for part in parts if part]
                tensor.name = ";".join(kept).encode()
    return _packed(model)


def _packed(model: Any) -> bytes:
    import flatbuffers

    class AlignedBuilder(flatbuffers.Builder):
        """Aligns the data of buffers, which the code that flatc generates for Python does not."""

        def CreateNumpyVector(self, x: Any) -> Any:
            if x.dtype != np.uint8:
                return super().CreateNumpyVector(x)
            self.StartVector(1, x.size, _ALIGNMENT)
            head = int(self.Head()) - x.size
            self.head = head
            self.Bytes[head : head + x.size] = x.tobytes()
            return self.EndVector()

    builder = AlignedBuilder(4096)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts that :func:`finish` wrote, by key; others are left out."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    found = {}
    for entry in model.metadata or []:
        data = model.buffers[entry.buffer].data
        try:
            found[entry.name.decode()] = bytes(data).decode() if data is not None else ""
        except UnicodeDecodeError:
            continue
    return found


def half_weights(content: bytes, label: str) -> bytes:
    """Return a file whose weights are fp16, and are converted to fp32 when it is opened.

    Raises:
        ModelError: the quantizer cannot convert it, or finds no weights to convert.
    """
    from ai_edge_quantizer import qtyping, quantizer

    config = qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=16, dtype=qtyping.TensorDataType.FLOAT
        ),
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
        min_weight_elements=0,
    )
    with converting(label, "ai-edge-quantizer"):
        work = quantizer.Quantizer(bytearray(content))
        work.update_quantization_recipe(
            regex=".*",
            operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
            op_config=config,
            algorithm_key=quantizer.AlgorithmName.FLOAT_CASTING,
        )
        made = work.quantize().quantized_model
    if made is None or not _has_half(made):
        raise ModelError(
            f"{label}: found no weights that TensorFlow Lite can keep in fp16",
            hint="--precision fp32, or --format onnx",
        )
    return bytes(made)


def _has_half(content: bytes) -> bool:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content)
    kinds = {tensor.type for graph in model.subgraphs for tensor in graph.tensors}
    return schema.TensorType.FLOAT16 in kinds
