"""What is the same here and on a board: plain Python 3.10 without a package.

Settings and calls of ncnn, LiteRT and OpenVINO (`ncnn_network.py`, `litert_values.py`, `openvino_request.py`); all else
builds TensorRT engines and runs them once. Two builders stand behind one interface (`supervise.py`): TensorRT's Python
API (`tensorrt_api.py`) and the program `trtexec` (`command.py`, `trtexec.py`). Each build is a process of its own that
is ended when it takes too long. Nothing here knows of bundles, targets or packages, and nothing here judges an engine:
outputs and times go home.

What is of TensorRT was written against the published bindings and sources of 8.5 to 11; not run on hardware.
"""
