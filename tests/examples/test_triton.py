"""Triton's model repository: its configuration parses strictly and says what the engine takes; the client speaks v2."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from edgekd_runtime import Engine
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from PIL import Image

from tests.runtime.bundles import LABELS, SIZE, entry, graph_bytes, write_bundle

FOLDER = Path(__file__).parents[2] / "examples" / "triton"
STRING, UINT64, INT32, INT64, ENUM, MESSAGE = 9, 4, 5, 3, 14, 11
MESSAGES: dict[str, list[tuple[str, int, bool, str]]] = {
    "ModelInput": [("name", STRING, False, ""), ("data_type", ENUM, False, "DataType"), ("dims", INT64, True, "")],
    "ModelOutput": [
        ("name", STRING, False, ""),
        ("data_type", ENUM, False, "DataType"),
        ("dims", INT64, True, ""),
        ("label_filename", STRING, False, ""),
    ],
    "ModelInstanceGroup": [("count", INT32, False, ""), ("kind", ENUM, False, "Kind")],
    "ModelDynamicBatching": [("max_queue_delay_microseconds", UINT64, False, "")],
    "ModelParameter": [("string_value", STRING, False, "")],
    "Entry": [("key", STRING, False, ""), ("value", MESSAGE, False, "ModelParameter")],
    "ModelConfig": [
        ("name", STRING, False, ""),
        ("backend", STRING, False, ""),
        ("max_batch_size", INT32, False, ""),
        ("input", MESSAGE, True, "ModelInput"),
        ("output", MESSAGE, True, "ModelOutput"),
        ("instance_group", MESSAGE, True, "ModelInstanceGroup"),
        ("dynamic_batching", MESSAGE, False, "ModelDynamicBatching"),
        ("parameters", MESSAGE, True, "Entry"),
    ],
}
"""The fields that are used here of Triton's `model_config.proto`: (name, type, repeated, type's name)."""
ENUMS = {
    "DataType": {"TYPE_INVALID": 0, "TYPE_INT32": 8, "TYPE_INT64": 9, "TYPE_FP16": 10, "TYPE_FP32": 11},
    "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2},
}


def _config_type() -> Any:
    """Triton's own message where its client is installed, else one with the fields above."""
    try:
        from tritonclient.grpc.model_config_pb2 import ModelConfig  # type: ignore[import-not-found]

        return ModelConfig
    except ImportError:
        pass
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="inference", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for key, number in values.items():
            enum.value.add(name=key, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind, repeated, of) in enumerate(fields, start=1):
            label = 3 if repeated else 1
            made = message.field.add(name=field, number=number, type=kind, label=label)
            if of:
                made.type_name = f".inference.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


CONFIG = _config_type()


def _parameters(config: Any) -> dict[str, str]:
    if hasattr(config.parameters, "items"):
        return {key: value.string_value for key, value in config.parameters.items()}
    return {one.key: one.value.string_value for one in config.parameters}


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"triton_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker, client = _module("make_repository"), _module("client")


def _engine_bundle(folder: Path) -> Path:
    fingerprint = {"settings": {"inputs": [{"name": "images", "min": [1], "opt": [1], "max": [4, 3, SIZE, SIZE]}]}}
    engines = [
        entry(
            "trt", format="tensorrt", files={"model.engine": "m.engine"}, fingerprint="m.json", runtimes=["tensorrt"]
        ),
        entry("graph", chosen=False, threads=2),
    ]
    return write_bundle(folder, engines, {"m.engine": b"plan", "m.json": json.dumps(fingerprint).encode()})


def _made(bundle: Path, out: Path, *more: str) -> Any:
    assert maker.main([str(bundle), "-o", str(out), *more]) == 0
    return text_format.Parse((out / "classifier" / "config.pbtxt").read_text(), CONFIG())


def test_a_graph_becomes_a_model_of_the_onnxruntime_backend(tmp_path: Path) -> None:
    config = _made(_engine_bundle(tmp_path / "b"), tmp_path / "out", "--engine", "graph", "--instances", "3")
    assert (config.name, config.backend, config.max_batch_size) == ("classifier", "onnxruntime", 8)
    (given,), (found,), (group,) = config.input, config.output, config.instance_group
    assert (given.name, given.data_type, list(given.dims)) == ("images", 11, [3, SIZE, SIZE])
    assert (found.name, list(found.dims), found.label_filename) == ("logits", [len(LABELS)], "labels.txt")
    assert (group.count, group.kind) == (3, 2)
    assert config.dynamic_batching.max_queue_delay_microseconds == 200
    assert _parameters(config) == {"intra_op_thread_count": "2"}
    folder = tmp_path / "out" / "classifier"
    assert (folder / "1" / "model.onnx").read_bytes() == graph_bytes()
    assert (folder / "labels.txt").read_text().splitlines() == LABELS


def test_an_engine_becomes_a_plan_that_batches_no_more_than_it_takes(tmp_path: Path) -> None:
    config = _made(_engine_bundle(tmp_path / "b"), tmp_path / "out", "--max-batch", "16")
    assert (config.backend, config.max_batch_size) == ("tensorrt", 4)
    assert config.instance_group[0].kind == 1
    assert _parameters(config) == {}
    assert (tmp_path / "out" / "classifier" / "1" / "model.plan").read_bytes() == b"plan"


def test_a_fixed_batch_stays_in_the_dimensions(tmp_path: Path) -> None:
    bundle = write_bundle(
        tmp_path / "b",
        input={"name": "images", "shape": [2, 3, SIZE, SIZE]},
        outputs=[{"name": "logits", "shape": [2, len(LABELS)]}],
        labels=None,
    )
    config = _made(bundle, tmp_path / "out")
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [2, 3, SIZE, SIZE]
    assert not config.HasField("dynamic_batching")
    assert config.output[0].label_filename == ""


def test_the_parser_can_fail() -> None:
    with pytest.raises(text_format.ParseError):
        text_format.Parse('name: "x"\nmax_batchsize: 3', CONFIG())


def test_what_triton_does_not_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "b", [entry("lite", format="litert", runtimes=["litert"])])
    assert maker.main([str(bundle), "-o", str(tmp_path / "out")]) == 2
    text = "Triton runs ONNX graphs and TensorRT engines, expected an engine for onnxruntime or tensorrt: lite (litert"
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (bundle / "model.onnx").write_bytes(b"other")
    assert maker.main([str(bundle)]) == 2
    assert "altered" in capsys.readouterr().err


def test_a_graph_that_is_meant_for_openvino_alone_is_taken_only_by_its_name(tmp_path: Path) -> None:
    engines = [entry("int8", runtimes=["openvino"], threads=3), entry("fp32", chosen=False)]
    bundle = write_bundle(tmp_path / "b", engines)
    assert _parameters(_made(bundle, tmp_path / "out")) == {"intra_op_thread_count": "1"}
    assert _parameters(_made(bundle, tmp_path / "out", "--engine", "int8")) == {"intra_op_thread_count": "3"}


def test_weights_alone_in_int8_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "b", [entry(scheme="weight-only")])
    assert maker.main([str(bundle), "-o", str(tmp_path / "out")]) == 0
    assert "expands its INT8 weights on every call" in capsys.readouterr().out


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A server that reads requests as the KServe v2 protocol and Triton's binary extension say, and runs the graph."""
    engine = Engine.load(write_bundle(tmp_path / "served"), runtime="onnxruntime")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            size = int(self.headers["Inference-Header-Content-Length"])
            header, raw = json.loads(body[:size]), body[size:]
            tensor, output = header["inputs"][0], header["outputs"][0]
            assert self.path == "/v2/models/classifier/infer"
            assert (tensor["datatype"], tensor["parameters"]["binary_data_size"]) == ("FP32", len(raw))
            logits = engine.run(np.frombuffer(raw, np.float32).reshape(tensor["shape"]))[0]
            order = np.argsort(-logits)[: output["parameters"]["classification"]]
            texts = [f"{logits[k]:f}:{k}:{LABELS[k]}" for k in order]
            answer = json.dumps({"outputs": [{"name": output["name"], "datatype": "BYTES", "data": texts}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None: ...

    made = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    thread.join()
    made.server_close()


def test_the_client_prints_the_classes_of_an_image(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    bundle = write_bundle(tmp_path / "b")
    assert client.main([str(bundle), str(tmp_path / "image.png"), "--url", server, "--top", "2"]) == 0
    found = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
    assert found == list(Engine.load(bundle)(pixels, top=2).labels)


def test_the_client_says_it_when_no_server_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (20, 30)).save(tmp_path / "image.png")
    given = [str(write_bundle(tmp_path / "b")), str(tmp_path / "image.png"), "--url"]
    assert client.main([*given, "http://127.0.0.1:9"]) == 1
    assert "Is tritonserver running there?" in capsys.readouterr().err
