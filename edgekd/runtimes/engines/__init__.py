"""What builds TensorRT engines and runs them once: plain Python 3.10 without a package, here and on a board.

Two builders stand behind one interface (`supervise.py`): TensorRT's Python API (`tensorrt_api.py`) and the program
`trtexec` (`command.py`, `trtexec.py`). Each build is a process of its own that is ended when it takes too long. Nothing
here knows of bundles, targets or packages, and nothing here judges an engine: outputs and times go home.

Written against the published bindings and sources of TensorRT 8.5 to 11; not run on hardware.
"""
