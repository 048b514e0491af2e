"""A stand-in for Triton: reads a model repository by Triton's own protobuf and refuses what the real one refuses.

It speaks the KServe v2 protocol over gRPC and HTTP (binary tensors), and answers with what ONNX Runtime computes from
the files of the repository. Names, types, shapes and batches are checked against the configuration in every request.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray

from edgefuse.runtime.backend_onnx import open_session, run_session

Arrays = dict[str, NDArray[Any]]
MODEL_FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}


class Refused(Exception):  # noqa: N818
    """What Triton answers with an error."""


def type_of(tensor: Any) -> str:
    """The protocol's name of a tensor's type: FP32 where the configuration says TYPE_FP32."""
    return type(tensor).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[tensor.data_type].name[5:]


class Repository:
    """The models of a repository, each checked when it is loaded."""

    def __init__(self, folder: Path) -> None:
        from tritonclient.grpc.model_config_pb2 import ModelConfig

        self.configs: dict[str, Any] = {}
        self.sessions: dict[str, Any] = {}
        self.asked: list[str] = []  # the models of all requests, in their order
        for path in sorted(folder.iterdir()):
            if path.is_dir():  # Triton looks at nothing else
                self.configs[path.name] = text_format.Parse((path / "config.pbtxt").read_text(), ModelConfig())
        for name, config in self.configs.items():
            self._load(folder / name, config)

    def _load(self, folder: Path, config: Any) -> None:
        assert config.name == folder.name
        assert config.max_batch_size > 0
        assert [version.name for version in folder.iterdir() if version.is_dir()] == ["1"]
        assert config.input
        assert config.output
        for output in config.output:
            assert not output.label_filename or (folder / output.label_filename).is_file()
        if config.platform == "ensemble":
            self._check_ensemble(config)
            return
        model = folder / "1" / MODEL_FILES[config.backend]
        assert model.is_file()
        assert config.HasField("dynamic_batching")
        if config.backend == "onnxruntime":
            session = open_session(model.read_bytes())
            for declared, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
                assert {t.name: list(t.dims) for t in declared} == {t.name: list(t.shape[1:]) for t in real}
            self.sessions[config.name] = session

    def _check_ensemble(self, config: Any) -> None:
        known = {tensor.name: (type_of(tensor), list(tensor.dims)) for tensor in config.input}
        for step in config.ensemble_scheduling.step:
            part = self.configs[step.model_name]
            assert config.max_batch_size <= part.max_batch_size
            assert set(step.input_map) == {tensor.name for tensor in part.input}
            assert set(step.output_map) <= {tensor.name for tensor in part.output}
            for tensor in part.input:
                assert known[step.input_map[tensor.name]] == (type_of(tensor), list(tensor.dims))
            for tensor in part.output:
                known[step.output_map[tensor.name]] = (type_of(tensor), list(tensor.dims))
        for tensor in config.output:
            assert known[tensor.name] == (type_of(tensor), list(tensor.dims))

    def infer(self, model: str, given: Arrays) -> Arrays:
        """The outputs of a model.

        Raises:
            Refused: no such model, or tensors that are not those of its configuration.
        """
        if model not in self.configs:
            raise Refused(f"Request for unknown model: '{model}' is not found")
        config = self.configs[model]
        self._check(config, given)
        self.asked.append(model)
        if config.platform != "ensemble":
            return run_session(self.sessions[model], given)
        known = dict(given)
        for step in config.ensemble_scheduling.step:
            made = self.infer(step.model_name, {ours: known[name] for ours, name in step.input_map.items()})
            known.update({name: made[ours] for ours, name in step.output_map.items()})
        return {tensor.name: known[tensor.name] for tensor in config.output}

    def _check(self, config: Any, given: Arrays) -> None:
        from tritonclient.utils import np_to_triton_dtype

        wanted = {tensor.name: tensor for tensor in config.input}
        if set(given) != set(wanted):
            raise Refused(f"expected inputs {sorted(wanted)}, got {sorted(given)}")
        batches = {len(array) for array in given.values()}
        if len(batches) != 1 or not 0 < max(batches) <= config.max_batch_size:
            raise Refused(f"inference request batch-size must be <= {config.max_batch_size}, got {sorted(batches)}")
        for name, array in given.items():
            if np_to_triton_dtype(array.dtype) != type_of(wanted[name]):
                raise Refused(f"input '{name}' has type {array.dtype}, expected {type_of(wanted[name])}")
            if list(array.shape[1:]) != list(wanted[name].dims):
                raise Refused(f"unexpected shape for input '{name}': {array.shape}, expected {list(wanted[name].dims)}")


def as_array(data: bytes, datatype: str, shape: Any) -> NDArray[Any]:
    """The tensor that some bytes of a request are."""
    from tritonclient.utils import triton_to_np_dtype

    kind = np.dtype(triton_to_np_dtype(datatype))
    if len(data) != kind.itemsize * int(np.prod(list(shape))):
        raise Refused(f"unexpected total byte size {len(data)}")
    return np.frombuffer(data, kind).reshape(list(shape))


@contextlib.contextmanager
def serve_grpc(repository: Repository) -> Iterator[str]:
    """A server over gRPC; its address."""
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc
    from tritonclient.utils import np_to_triton_dtype

    class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
            pairs = zip(request.inputs, request.raw_input_contents, strict=True)
            try:
                given = {tensor.name: as_array(raw, tensor.datatype, tensor.shape) for tensor, raw in pairs}
                found = repository.infer(request.model_name, given)
            except Refused as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
            for wanted in request.outputs:
                array = np.ascontiguousarray(found[wanted.name])
                datatype = np_to_triton_dtype(array.dtype)
                answer.outputs.add(name=wanted.name, datatype=datatype, shape=array.shape)
                answer.raw_output_contents.append(array.tobytes())
            return answer

    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(grace=None).wait()


@contextlib.contextmanager
def serve_http(repository: Repository) -> Iterator[str]:
    """A server over HTTP; its address."""
    from tritonclient.utils import np_to_triton_dtype

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            size = int(self.headers["Inference-Header-Content-Length"])
            request, at = json.loads(body[:size]), size
            try:
                given = {}
                for tensor in request["inputs"]:
                    end = at + tensor["parameters"]["binary_data_size"]
                    given[tensor["name"]] = as_array(body[at:end], tensor["datatype"], tensor["shape"])
                    at = end
                _, models, model, infer = self.path.removeprefix("/v2").split("/")
                assert (models, infer) == ("models", "infer")
                found = repository.infer(model, given)
            except Refused as error:
                self._send(400, json.dumps({"error": str(error)}).encode(), {})
                return
            outputs, raw = [], b""
            for wanted in request["outputs"]:
                assert wanted["parameters"]["binary_data"]
                array = np.ascontiguousarray(found[wanted["name"]])
                told = {"name": wanted["name"], "datatype": np_to_triton_dtype(array.dtype), "shape": array.shape}
                outputs.append({**told, "parameters": {"binary_data_size": array.nbytes}})
                raw += array.tobytes()
            header = json.dumps({"model_name": model, "model_version": "1", "outputs": outputs}).encode()
            self._send(200, header + raw, {"Inference-Header-Content-Length": str(len(header))})

        def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(code)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
