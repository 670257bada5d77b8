"""Time one DreamSim, ours or that of the dreamsim package, in a process of its own.

    python -m tests.benchmarks.dreamsim_timing ours FILE.safetensors BATCH ROUNDS
    OTHER_PYTHON -c "import runpy ..." .../dreamsim_timing.py package RELEASE:VARIANT BATCH ROUNDS

The second form is run by the Python that has the package and imports nothing of this project.
Prints JSON: median seconds per batch of pairs (wall clock and processor time), memory before the
runs and at their peak, and the distances.
"""

import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_SIDE = 224


def load_ours(file: str) -> Callable[[Any, Any], Any]:
    """Our network as a function of two batches."""
    from refiner_core.scoring.dreamsim_files import load_dreamsim

    return load_dreamsim(file)


def load_package(release: str) -> Callable[[Any, Any], Any]:
    """The package's network from an unpacked release, DINO's backbone in its `checkpoints`."""
    folder, _, variant = release.rpartition(":")
    library = _allow_torchvision()
    import dreamsim  # type: ignore[import-not-found]
    from dreamsim.feature_extraction.vision_transformer import (  # type: ignore[import-not-found]
        vit_base,
    )

    def hub(*_: Any, **__: Any) -> Any:
        model = vit_base(16)
        model.load_state_dict(torch.load(f"{folder}/checkpoints/dino_vitbase16_pretrain.pth"))
        return model

    torch.hub.load = hub  # the package would fetch code and weights over the network
    assert library is not None
    return dreamsim.dreamsim(device="cpu", cache_dir=folder, dreamsim_type=variant)[0]


def _allow_torchvision() -> object:
    """Beside another build of torch torchvision's import lacks two operators; keep the result."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _resident() -> float:
    """MB in memory now (Linux), or the peak so far elsewhere."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Peak:
    """The highest resident memory while the block runs, MB, sampled every millisecond."""

    def __enter__(self) -> "Peak":
        self.highest, self._done = _resident(), False
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done:
            self.highest = max(self.highest, _resident())
            time.sleep(0.001)

    def __exit__(self, *_: object) -> None:
        self._done = True
        self._thread.join()


def measure(distance: Callable[[Any, Any], Any], batch: int, rounds: int) -> dict[str, Any]:
    """Median time of `batch` pairs, the process's memory before and at its peak."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(batch, 3, _SIDE, _SIDE, generator=generator) for _ in range(2))
    found = torch.zeros(0)
    times: list[float] = []
    work: list[float] = []
    with torch.no_grad():
        distance(a[:1], b[:1])  # files are read and buffers made at the first call
        resident = _resident()
        with Peak() as peak:
            for _ in range(rounds):
                begun, worked = time.perf_counter(), time.process_time()
                found = distance(a, b)
                times.append(time.perf_counter() - begun)
                work.append(time.process_time() - worked)
    return {
        "seconds": statistics.median(times),
        "cpu": statistics.median(work),
        "resident": resident,
        "peak": peak.highest,
        "distances": found.tolist(),
    }


def main() -> None:
    kind, what, batch, rounds = sys.argv[1:]
    distance = load_ours(what) if kind == "ours" else load_package(what)
    print(json.dumps(measure(distance, int(batch), int(rounds))))


if __name__ == "__main__":
    main()
