"""Sends an image to Triton and prints its classes; preprocessing is the bundle's, done here.

    python examples/triton/client.py model.edgekd image.jpg --url http://localhost:8000 --name classifier

Speaks the KServe v2 protocol over HTTP with the standard library, and asks for labels through Triton's classification
extension.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from edgekd_runtime.bundle import Bundle

BINARY_HEADER = "Inference-Header-Content-Length"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 after the classes of the image were printed, 1 when the server did not answer with them."""
    parser = argparse.ArgumentParser(description="Sends an image to Triton and prints its classes.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("image")
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--name", default="classifier")
    parser.add_argument("--top", type=int, default=5)
    options = parser.parse_args(arguments)
    with Bundle(options.bundle) as bundle:
        images = bundle.deploy.preprocessing(options.image)
        head, body = request_of(images, bundle.deploy.input.name, bundle.deploy.outputs[0].name, options.top)
    url = f"{options.url}/v2/models/{options.name}/infer"
    request = urllib.request.Request(url, data=body, headers=head)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            answer: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as err:
        sys.stderr.write(f"error: {url} answers {err.code}: {err.read(500).decode(errors='replace')}\n")
        return 1
    except OSError as err:
        sys.stderr.write(f"error: no answer from {url}: {err}. Is tritonserver running there? --url names another.\n")
        return 1
    for text in answer["outputs"][0]["data"]:
        score, index, *label = text.split(":", 2)
        sys.stdout.write(f"{float(score):.4f}\t{label[0] if label else index}\n")
    return 0


def request_of(
    images: npt.NDArray[np.float32], input_name: str, output_name: str, top: int
) -> tuple[dict[str, str], bytes]:
    """(headers, body): a JSON header and the raw values behind it, as Triton's binary data extension has it."""
    tensor = {
        "name": input_name,
        "shape": list(images.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": images.nbytes},
    }
    output = {"name": output_name, "parameters": {"classification": top, "binary_data": False}}
    header = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    return {BINARY_HEADER: str(len(header)), "Content-Type": "application/octet-stream"}, header + images.tobytes()


if __name__ == "__main__":
    sys.exit(main())
