"""What TensorRT says becomes one plain line; the messages are real ones, of TensorRT-RTX 1.7 or of the issue named."""

from __future__ import annotations

import pytest

from edgefuse.runtime.trt_errors import NO_GPU, OUT_OF_MEMORY, plain, tells_of_memory

NOISE = (
    "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at "
    "/_src/common/dispatch/checkMacros.cpp:250 (cudaError 35: CUDA driver version is insufficient for CUDA runtime "
    "version))"
)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (  # #574
            "INVALID_CONFIG: The engine plan file is not compatible with this version of TensorRT, expecting library "
            "version 10.16.2.10 got 10.3.0.30, please rebuild.",
            "the engine was built by TensorRT 10.3.0.30, this machine has 10.16.2.10; ",
        ),
        (  # #2176
            "The engine plan file is generated on an incompatible device, expecting compute 8.6 got compute 7.5, "
            "please rebuild.",
            "built for a GPU of compute capability 7.5, this one has 8.6; ",
        ),
        (
            "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion header.magicTag == "
            "kEXPECTED_MAGIC_TAG failed.Trying to load an engine created with incompatible serialization version "
            "(2021161080 != 1953657974). Check that the engine was not created using safety runtime)",
            "the file is no engine of this program",
        ),
        (
            "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion plan.header.size == "
            "blobSize failed.)",
            "the engine file is cut off",
        ),
        (  # #3566
            "1: [stdArchiveReader.cpp::StdArchiveReaderInitCommon::36] Error Code 1: Serialization (Serialization "
            "assertion magicTagRead == kMAGIC_TAG failed.Magic tag does not match)",
            "the file is no engine of this program",
        ),
        (
            "IRuntime::deserializeCudaEngine: Error Code 1: Cuda Runtime (In ScopedCudaStream at "
            "/_src/common/dispatch/cudaResources.cpp:25 (cudaError 35: CUDA driver version is insufficient for CUDA "
            "runtime version))",
            NO_GPU,
        ),
        (  # not met: another error at the same place
            "IRuntime::deserializeCudaEngine: Error Code 1: Cuda Runtime (In ScopedCudaStream at "
            "/_src/common/dispatch/cudaResources.cpp:25 (cudaError 999: unknown error))",
            "(cudaError 999: unknown error))",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([tactic.cpp:1676: enumerate_tactics] Tactic "
            "Selection: no tactics to implement the operation within workspace limit. Consider increase the allowed "
            "workspace size if applicable.; [tactic.cpp:264: run] Error during tactic selection.)",
            "no kernel fits into the workspace",
        ),
        (  # #4673
            "Error Code 10: Internal Error (Could not find any implementation for node "
            "{ForeignNode[/model/Constant_output_0.../model/Add]}.)",
            "no kernel for {ForeignNode[/model/Constant_output_0.../model/Add]}",
        ),
        (  # #4832
            "IBuilder::buildSerializedNetwork: Error Code 9: Could not infer output types for operation: dequantize",
            "a DequantizeLinear has another type than its scale",
        ),
        ("Error Code 3: (Scale coefficients must all be positive)", "a quantization scale is zero or below"),
        ("Target GPU SM 61 is not supported by this TensorRT release.", "has nothing for GPUs of SM 61"),
        ("CUDA initialization failure with error: 35. Please check your CUDA installation", NO_GPU),
        (
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([myelin_graph.h:1295: attachExceptionMsgToGraph] "
            "Unexpected exception std::bad_alloc In compileGraph at /_src/optimizer/myelin/codeGenerator.cpp:2012)",
            OUT_OF_MEMORY,
        ),
        (
            "[executionContext.cpp::allocate::1] Error Code 2: OutOfMemory (Requested size was 512 bytes.)",
            OUT_OF_MEMORY,
        ),
        ("Cuda Runtime (out of memory)", OUT_OF_MEMORY),
    ],
)
def test_a_known_message_becomes_plain_words(message: str, expected: str) -> None:
    found = plain(["something before", message, NOISE])
    assert expected in found
    assert "\n" not in found


def test_an_unknown_message_is_passed_on_in_one_line() -> None:
    assert plain(["a", "b", "c\n  d", "e", NOISE]) == "b; c d; e"


def test_the_complaint_about_no_driver_counts_only_where_nothing_else_was_said() -> None:
    assert plain([NOISE]) == NO_GPU
    assert plain(["Network must have at least one output", NOISE]) == "Network must have at least one output"


def test_no_message_is_said_too() -> None:
    assert plain([]) == "it does not say why"
    assert plain(["Thread context has not been set! Using global log stream."]) == "it does not say why"


@pytest.mark.parametrize(
    "message",
    [
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "MemoryError",
        "Tactic Device request: 4229MB Available: 2658MB. Device memory is insufficient to use tactic.",  # #3355
        "OSError: [Errno 12] Cannot allocate memory",
    ],
)
def test_signs_of_little_memory_are_seen(message: str) -> None:
    assert tells_of_memory(message)
    assert not tells_of_memory("a memory pool of 12 MiB")
