"""The engines that run a step of a graph: numpy, or onnxruntime if the owner asks for it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import ConfigError
from fedsys.graphs import Interpreter, Vetted

__all__ = [
    "ENGINES",
    "Engine",
    "EngineName",
    "check_engine",
    "check_installed",
    "engine_of",
    "preload",
]

EngineName = Literal["numpy", "ort"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


class Engine(Protocol):
    """Runs steps of one graph."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Both outputs of a step, gradient and loss, in memory that the caller may overwrite."""
        ...


class _OnnxRuntime:
    """ONNX Runtime on a fixed number of processor threads.

    It reads the file that vetting wrote, never the one that was received.
    """

    def __init__(self, vetted: Vetted, threads: int) -> None:
        ort = preload("ort")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        self._session = ort.InferenceSession(
            vetted.encoded, options, providers=["CPUExecutionProvider"]
        )

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
        first, second = self._session.run(None, dict(inputs))
        return np.array(first), np.array(second)


def check_installed(name: EngineName) -> None:
    """Raise ConfigError if an engine is not installed, without loading it."""
    if name == "ort" and importlib.util.find_spec("onnxruntime") is None:
        raise ConfigError(
            "--engine ort: onnxruntime is not installed; run `pip install onnxruntime`, or leave "
            "--engine out to use numpy"
        )


def preload(name: EngineName) -> Any:
    """Import what an engine needs, while the process may still open files.

    Raises:
        ConfigError: the engine is not installed.
    """
    check_installed(name)
    if name == "numpy":
        return np
    # From release 1.29 on, its builds send telemetry unless this is set before they are loaded.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime


def check_engine(name: str) -> EngineName:
    """`name`, if it is an engine's.

    Raises:
        ConfigError: there is no such engine.
    """
    for known in ENGINES:
        if name == known:
            return known
    raise ConfigError(f"--engine {name}: allowed are {', '.join(ENGINES)}")


def engine_of(name: EngineName, vetted: Vetted, threads: int = 1) -> Engine:
    """The engine for one graph."""
    return _OnnxRuntime(vetted, threads) if name == "ort" else Interpreter(vetted)
