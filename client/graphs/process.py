"""The agent's side of the training process: starts it, asks once, bounds its answer."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from client.graphs.engine import EngineName
from client.graphs.example_trainer import PrivateSteps
from client.graphs.wire import mapped, read_header, read_whole, write
from client.training.local import LocalConfig
from fedsys.errors import TrainingError
from fedsys.graphs import Vetted
from fedsys.printable import printable

__all__ = ["SharedExamples", "Trained", "peak_of", "train"]

_SLACK = 256 << 20
"""Bytes in addition to what vetting counted: optimizer state, batches, allocators, onnxruntime."""
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from client.graphs.child import main; main()"
)
_MOST_SAID = 4096


class SharedExamples:
    """Examples in memory that the training process maps, so that there is only one copy.

    The memory is freed by `close`, or with the object.

    Args:
        x: (M, ...) inputs; copied.
        y: (M, ...) targets; copied.

    Attributes:
        count: M, the number of examples.
        places: dtype, shape and offset of each array.
    """

    def __init__(self, x: NDArray[Any], y: NDArray[Any]) -> None:
        self.count = len(x)
        self._file = _unnamed_file()
        self._finish = weakref.finalize(self, self._file.close)
        self.places: dict[str, dict[str, Any]] = {}
        at = 0
        for name, array in (("x", x), ("y", y)):
            whole = np.ascontiguousarray(array)
            self.places[name] = {
                "dtype": whole.dtype.str,
                "shape": list(whole.shape),
                "offset": at,
            }
            self._file.write(whole.data.cast("B"))
            padding = -whole.nbytes % 64
            self._file.write(bytes(padding))
            at += whole.nbytes + padding
        self._file.flush()

    @property
    def descriptor(self) -> int:
        """The memory's file descriptor."""
        return self._file.fileno()

    def arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """x (M, ...) and y (M, ...), mapped and read-only."""
        return mapped(self.descriptor, self.places)

    def close(self) -> None:
        """Free the memory."""
        self._finish()


def _unnamed_file() -> IO[bytes]:
    """An anonymous memory file if the system has them, else an unlinked file on disk."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("examples"), "wb", buffering=0)
    return tempfile.TemporaryFile()


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The result of one local training.

    Attributes:
        update: (d,) float32, w_local - w_global.
        losses: losses of the first and the last step; empty if there was no step.
        peak: the process's peak resident memory in bytes; None if the system does not say.
        walls: ``seccomp`` or ``limits``; see `client.graphs.sandbox.confine`.
        failed: how often the graph failed, and why at first; empty if never. For the owner alone.
    """

    update: NDArray[np.float32]
    losses: tuple[float, ...]
    peak: int | None
    walls: str
    failed: str


def train(
    vetted: Vetted,
    examples: SharedExamples,
    local: LocalConfig,
    *,
    weights: NDArray[np.float32],
    rows: NDArray[np.int64],
    seed: int,
    private: PrivateSteps | None = None,
    engine: EngineName = "numpy",
    threads: int = 1,
    seconds: int = 3600,
) -> Trained:
    """One client's local training in a process of its own.

    Args:
        vetted: the graph, as this device's own vetting wrote it.
        examples: the client's examples.
        local: hyper-parameters.
        weights: (d,) the initial weights.
        rows: the rows of `examples` to train on.
        seed: seed of the batches.
        private: for a graph of examples' gradients, in place of the seed.
        engine: the engine that runs the graph.
        threads: processor threads.
        seconds: limit on processor time; twice that is the limit on elapsed time.

    Raises:
        TrainingError: what was given does not fit, a limit was exceeded, or the answer is bad.
    """
    vectors = 10 if private is None else 22
    memory = vetted.memory + vectors * weights.nbytes + 24 * len(rows) * local.epochs + _SLACK
    header = {
        "graph": len(vetted.encoded),
        "weights": weights.nbytes,
        "rows": rows.nbytes,
        "examples": examples.descriptor,
        **examples.places,
        "local": dataclasses.asdict(local),
        "seed": seed,
        "private": None if private is None else dataclasses.asdict(private.privacy),
        "engine": engine,
        "threads": threads,
        "memory": memory,
        "seconds": seconds,
    }
    parts = [vetted.encoded, weights.astype("<f4").tobytes(), rows.astype("<i8").tobytes()]
    if private is not None:
        parts.append(private.key)
    path = [os.path.abspath(each) for each in sys.path]
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _START, json.dumps(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(examples.descriptor,),
        env=_environment(threads),
        start_new_session=True,
    )
    killer = threading.Timer(2.0 * seconds, process.kill)
    killer.daemon = True
    killer.start()
    try:
        return _converse(process, header, parts, vetted.graph.dimension)
    finally:
        killer.cancel()
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _converse(
    process: subprocess.Popen[bytes], header: dict[str, Any], parts: list[bytes], dimension: int
) -> Trained:
    if process.stdin is None or process.stdout is None:
        raise TrainingError("the training process has no pipes")
    try:
        write(process.stdin, header, parts)
        answer = read_header(process.stdout)
        if "error" in answer:
            raise TrainingError(f"training from the graph failed: {printable(answer['error'])}")
        update = np.frombuffer(read_whole(process.stdout, 4 * dimension), "<f4")
        losses, walls = answer["losses"], answer["walls"]
        if walls not in ("seccomp", "limits") or len(losses) > 2:
            raise ValueError("a malformed answer")
        return Trained(
            update=update.astype(np.float32),
            losses=tuple(float(each) for each in losses),
            peak=peak_of(process.pid),
            walls=walls,
            failed=printable(str(answer["failed"])),
        )
    except (BrokenPipeError, EOFError) as error:
        raise TrainingError(f"the training process ended early: {_end(process)}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"the training process answered nonsense: {type(error).__name__}"
        ) from error


def peak_of(process: int) -> int | None:
    """Peak resident memory of a running process in bytes; None if the system does not say.

    Linux's ``ru_maxrss`` would include the memory of the parent process at the time of the fork.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text("ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration, ValueError):
        return None


def _end(process: subprocess.Popen[bytes]) -> str:
    """How a process ended, with the last line of its standard error."""
    said = b""
    if process.stderr is not None:
        with contextlib.suppress(OSError):
            said = process.stderr.read(_MOST_SAID)
    code = process.wait()
    last = said.decode("utf-8", "replace").strip().rpartition("\n")[2]
    how = f"signal {-code}" if code < 0 else f"status {code}"
    return f"{how}{': ' + printable(last, 200) if last else ''}"


def _environment(threads: int) -> dict[str, str]:
    """The process's whole environment: it inherits no variable of the agent."""
    count = str(threads)
    return {
        "OMP_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "VECLIB_MAXIMUM_THREADS": count,
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONHASHSEED": "0",
    }
