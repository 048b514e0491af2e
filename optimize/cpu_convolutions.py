"""One-dimensional convolutions as matrix products, which ONNX Runtime computes faster and can compute in INT8."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from edgefuse.optimize.cpu_rewrite import Rewrite, attribute

CHANNELS_LAST = [0, 2, 1]  # [B, C, T] <-> [B, T, C]


def products_of_convolutions(rewrite: Rewrite) -> None:
    """Conv [B, C, T] over time becomes frames [B, F, kernel * C] times a matrix; a depthwise one gets two dimensions.

    The transposes around a product mostly meet others and cancel when ONNX Runtime opens the part. Its kernels for
    two-dimensional depthwise convolutions have no counterpart for one dimension.
    """
    for node in [node for node in rewrite.nodes if node.op_type == "Conv"]:
        weight = rewrite.constant(node.input[1])
        length = rewrite.shape(node.input[0])[2:]
        if weight is None or len(length) != 1 or not isinstance(length[0], int) or not is_plain(node):
            continue
        if attribute(node, "group", 1) == 1:
            _as_product(rewrite, node, weight, length[0])
        else:
            _as_two_dimensional(rewrite, node, weight)
    rewrite.sweep()


def is_plain(node: NodeProto) -> bool:
    """Whether a convolution has no dilation, and says itself how it is padded."""
    return max(attribute(node, "dilations", [1])) == 1 and attribute(node, "auto_pad", b"NOTSET") in (
        b"NOTSET",
        b"VALID",
    )


def _as_product(rewrite: Rewrite, node: NodeProto, weight: NDArray[Any], length: int) -> None:
    outputs, channels, kernel = weight.shape
    stride = attribute(node, "strides", [1])[0]
    before, after = attribute(node, "pads", [0, 0])
    count = (length + before + after - kernel) // stride + 1
    x = rewrite.add("Transpose", [node.input[0]], perm=CHANNELS_LAST)  # [B, T, C]
    x = frames(rewrite, x, channels, (kernel, stride, count), (before, length))  # [B, F, kernel * C]
    matrix = np.ascontiguousarray(weight.transpose(2, 1, 0).reshape(kernel * channels, outputs))
    x = rewrite.add("MatMul", [x, matrix])  # [B, F, outputs]
    if len(node.input) > 2:
        x = rewrite.add("Add", [x, node.input[2]])
    rewrite.add("Transpose", [x], instead_of=node.output[0], perm=CHANNELS_LAST)


def frames(rewrite: Rewrite, x: str, channels: int, framing: tuple[int, int, int], signal: tuple[int, int]) -> str:
    """The windows of x [B, T, C] side by side: [B, count, kernel * C].

    With `stride` steps in a row [B, rows, stride * C], a window is the concatenation of some rows that follow each
    other, so all windows at once are a few slices. A Gather of them takes twice as long.
    """
    kernel, stride, count = framing
    before, length = signal
    if kernel == stride == 1 and count == length:
        return x
    spans = range(0, kernel, stride)
    needed = (count - 1 + len(spans)) * stride
    behind = max(needed - before - length, 0)
    if before or behind:
        x = rewrite.add("Pad", [x, np.array([0, before, 0, 0, behind, 0])])
    if before + length + behind > needed:
        x = _cut(rewrite, x, 1, 0, needed)
    rows = rewrite.add("Reshape", [x, np.array([0, needed // stride, stride * channels])])
    pieces = []
    for index, start in enumerate(spans):
        piece = _cut(rewrite, rows, 1, index, index + count)
        if kernel - start < stride:
            piece = _cut(rewrite, piece, 2, 0, (kernel - start) * channels)
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else rewrite.add("Concat", pieces, axis=2)


def _cut(rewrite: Rewrite, x: str, axis: int, start: int, end: int) -> str:
    return rewrite.add("Slice", [x, np.array([start]), np.array([end]), np.array([axis])])


def _as_two_dimensional(rewrite: Rewrite, node: NodeProto, weight: NDArray[Any]) -> None:
    (before, after), (stride,) = attribute(node, "pads", [0, 0]), attribute(node, "strides", [1])
    x = rewrite.add("Unsqueeze", [node.input[0], np.array([2])])  # [B, C, 1, T]
    x = rewrite.add(
        "Conv",
        [x, weight[:, :, None], *node.input[2:]],
        group=attribute(node, "group", 1),
        pads=[0, before, 0, after],
        strides=[1, stride],
    )
    rewrite.add("Squeeze", [x, np.array([2])], instead_of=node.output[0])
