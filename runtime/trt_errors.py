"""TensorRT's own error messages in plain words: what went wrong, and what to do.

What is not in the table is passed on as TensorRT said it. The texts are those of TensorRT-RTX 1.7 and of the issues of
NVIDIA/TensorRT that are named beside a row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Said after every error where there is no GPU, and no news where none is needed.
_NO_DRIVER = re.compile(r"\[?(?:checkMacros|cudaResources).*?\(cudaError 35:[^)]*\)+")
_NO_NEWS = ("Thread context has not been set! Using global log stream.",)

NO_GPU = "CUDA cannot use a GPU here; `edgefuse doctor` says why"
OUT_OF_MEMORY = "memory ran out; close other programs, or build with a smaller --max-batch"
_MEMORY = re.compile(
    r"bad_alloc|out ?of ?memory|cannot allocate memory|insufficient memory|MemoryError|Tactic Device request", re.I
)
# The first row that is found counts: causes stand above what they lead to.
_KNOWN = (
    # #574
    (
        r"with this version of TensorRT, expecting library version (?P<here>[\d.]*\d) got (?P<built>[\d.]*\d)",
        "the engine was built by TensorRT {built}, this machine has {here}; build it again here",
    ),
    # #2176
    (
        r"incompatible device, expecting compute (?P<here>[\d.]*\d) got compute (?P<built>[\d.]*\d)",
        "the engine was built for a GPU of compute capability {built}, this one has {here}; build it again here",
    ),
    (
        r"Version tag does not match",
        "the engine or the cache was written by another version of TensorRT; build it again here",
    ),
    (
        r"header\.size == blobSize failed",
        "the engine file is cut off; copy or build it again",
    ),
    (
        r"magicTag\w* == k\w+ failed",
        "the file is no engine of this program: TensorRT and TensorRT-RTX do not read each other's; build it again",
    ),
    (
        r"Target GPU SM (?P<sm>\d+) is not supported",
        "this TensorRT has nothing for GPUs of SM {sm}; `edgefuse doctor` says which one has",
    ),
    (
        r"CUDA initialization failure with error",
        NO_GPU,
    ),
    (  # what is left of a line whose end said that there is no driver
        r"deserializeCudaEngine: Error Code 1: Cuda Runtime \(In ScopedCudaStream at \S*$",
        NO_GPU,
    ),
    # 10.16.2 on Orin, #4832
    (
        r"Could not infer output types for operation: dequantize",
        "a DequantizeLinear has another type than its scale, which TensorRT 10.16 on Orin cannot build; quantize again "
        "with this edgefuse",
    ),
    (
        r"Scale coefficients must all be positive",
        "a quantization scale is zero or below, as of a channel that is always 0; quantize again with more samples",
    ),
    (
        r"within (?:the )?workspace limit",
        "no kernel fits into the workspace; free some memory, its limit is half of what is free",
    ),
    # #4673, #3930, #4830
    (
        r"Could not find any implementation for node (?P<node>\S{1,120})",
        "TensorRT has no kernel for {node}: too little memory, or a mistake of this version; free memory, try a newer "
        "TensorRT, or `edgefuse quantize --precision fp16`",
    ),
)


def plain(messages: Sequence[str]) -> str:
    """One line for what TensorRT logged as errors, the last ones where none of them is known."""
    lines = [line for line in map(one_line, messages) if line and line not in _NO_NEWS]
    for pattern, words in _KNOWN:
        for line in lines:
            if found := re.search(pattern, line):
                return words.format(**found.groupdict())
    if any(map(tells_of_memory, lines)):
        return OUT_OF_MEMORY
    if not lines and any(map(_NO_DRIVER.search, messages)):
        return NO_GPU
    return "; ".join(lines[-3:]) or "it does not say why"


def tells_of_memory(message: str) -> bool:
    """Whether a message says that memory ran out."""
    return _MEMORY.search(message) is not None


def one_line(message: str) -> str:
    """A message without line ends, and without the complaint that there is no driver."""
    return " ".join(_NO_DRIVER.sub("", message).split())
