"""With this directory in `PYTHONPATH`, MLX's CPU poses as the GPU of an M1 with 16 GB, in every process.

Questions about the device are answered as there, so that the package takes its branches for Metal; numbers are those of
MLX's CPU, and so are speed and memory. What only macOS has (its memory's readings, its drivers) stays Linux's.
"""

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

M1 = {
    "device_name": "Apple M1",
    "architecture": "applegpu_g13g",
    "memory_size": 16 * 2**30,
    "max_recommended_working_set_size": 11_453_251_584,
    "max_buffer_length": 9_534_832_640,
    "resource_limit": 499_000,
}


def pose(mx: Any) -> None:
    """Let MLX say that it computes on an M1, and give streams of the CPU to whoever asks for the GPU's."""
    mx.metal.is_available = lambda: True
    mx.device_info = lambda *_: dict(M1)
    chosen = [mx.Device(mx.gpu, 0)]
    mx.default_device = lambda: chosen[-1]
    mx.set_default_device = lambda device: chosen.append(device if isinstance(device, mx.Device) else mx.Device(device))
    for name in ("default_stream", "new_stream", "new_thread_local_stream"):
        setattr(mx, name, on_cpu(getattr(mx, name), mx.cpu))
    cross_entropy = mx.fast.cross_entropy
    # the CPU's sums in half precision, the GPU's kernel does not
    mx.fast.cross_entropy = lambda logits, targets: cross_entropy(logits.astype(mx.float32), targets)


def on_cpu(make: Callable[[Any], Any], cpu: Any) -> Callable[..., Any]:
    """A function that makes a stream of whatever device, to one that makes the CPU's."""
    return lambda *_: make(cpu)


def say_so(bases: Any) -> None:
    """Let the part of the package that knows nothing of MLX expect Metal too."""
    bases.has_metal = lambda: True


POSES: dict[str, Callable[[Any], None]] = {"mlx.core": pose, "qlora_core.models.base_models": say_so}


class Posing(MetaPathFinder):
    """Finds the modules of `POSES` where they lie, and changes them when they have been loaded."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """None for all other modules."""
        spec = PathFinder.find_spec(name, path, target) if name in POSES else None
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                load(module)
                POSES[name](module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Posing())
