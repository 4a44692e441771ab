"""Compiles CUDA kernels for the host, in four variants, and calls them from Python.

A test program is a `.cpp` that includes a `.cuh` and has entry points on plain arrays:

    FK_ENTRY(row_sums)(const float* x, float* y, int64_t rows, int64_t columns) {
      return cuda_host::guarded(
          [&] { FK_LAUNCH((row_sum<256>), grid_of(rows), 256, 0, nullptr, x, y, columns); });
    }

Parameters are pointers, int64_t and double, nothing else. From a test:

    program = programs(KERNELS / "row_sums.cpp", variant)  # a fixture: compiled once a session
    program.call("row_sums", x, y, rows, columns, order="shuffled")

Tensors and arrays are passed in place, `None` as a null pointer; a fault of the kernel raises
`KernelFault` with its line. The variants:

    plain       no fused multiply-add
    contracted  fused wherever the compiler can, as nvcc does
    coarse      mathematical functions with the largest errors that CUDA states, sums of tensor
                cores rounded towards zero
    sanitized   AddressSanitizer and most of UBSan, in a child process
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

__all__ = ["ORDERS", "SHARED_LIMIT", "VARIANTS", "KernelFault", "Program", "why_no_compiler"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

ORDERS = ("ascending", "descending", "shuffled")
# Of UBSan what a kernel can get wrong: all of it takes twice as long to compile.
_SANITIZERS = (
    "-fsanitize=address,alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero,"
    "float-cast-overflow",
    "-fno-sanitize-recover=all",
)
VARIANTS = {
    "plain": ("-O1", "-ffp-contract=off"),
    "contracted": ("-O2", "-ffp-contract=fast", "-mfma"),
    "coarse": ("-O1", "-ffp-contract=off", "-DCUDA_HOST_COARSE"),
    "sanitized": ("-O1", "-g1", *_SANITIZERS),
}
SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448}

_COMMON = (
    "-std=c++20",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",  # unroll
    "-fno-strict-aliasing",  # nvcc has no such rule, kernels read floats as integers
    # Programs of one process must not share the state of the scheduler.
    "-fvisibility=hidden",
    "-fno-gnu-unique",
)


class KernelFault(RuntimeError):
    """What the harness, or a sanitizer, found wrong with a kernel or a launch."""


def compiler() -> str:
    return os.environ.get("CXX") or "g++"


@functools.cache
def why_no_compiler(variant: str = "plain") -> str | None:
    """Why programs of this variant cannot be compiled or run here, or None."""
    if shutil.which(compiler().split()[0]) is None:
        return f"no C++ compiler ({compiler()})"
    fused = platform.machine() != "x86_64" or " fma " in Path("/proc/cpuinfo").read_text()
    if variant == "contracted" and not fused:
        return "this processor has no fused multiply-add"
    if variant == "sanitized" and not Path(_library_path("libasan.so")).is_absolute():
        return "the compiler comes without AddressSanitizer"
    return None


def _library_path(name: str) -> str:
    """Where the compiler has this library; its name alone if it has none."""
    question = [*compiler().split(), f"-print-file-name={name}"]
    answer = subprocess.run(question, capture_output=True, text=True, check=True)
    return answer.stdout.strip()


class Program:
    """A compiled test program."""

    def __init__(self, source: Path, variant: str, folder: Path, flags: Sequence[str] = ()):
        self.variant = variant
        self.library = folder / f"{source.stem}-{variant}.so"
        includes = [f"-I{HERE}", f"-I{ROOT / 'csrc'}", f"-I{source.parent}"]
        variant_flags = VARIANTS[variant]
        if platform.machine() != "x86_64":  # fused multiply-add is there unasked
            variant_flags = tuple(flag for flag in variant_flags if flag != "-mfma")
        command = [*compiler().split(), *_COMMON, *variant_flags, *flags, *includes]
        command += [str(source), "-o", str(self.library)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise KernelFault(f"{source.name} does not compile:\n{result.stderr[:4000]}")
        if result.stderr.strip():
            raise KernelFault(f"{source.name} compiles with warnings:\n{result.stderr[:4000]}")

    def call(
        self,
        name: str,
        *arguments: torch.Tensor | np.ndarray | int | float | None,
        order: str = "ascending",
        seed: int = 1,
        shared_limit: int = SHARED_LIMIT["sm_80"],
    ) -> None:
        """Runs an entry point with threads in this order; KernelFault if it finds a fault."""
        settings = (ORDERS.index(order), seed, shared_limit)
        arrays = [_array(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        if self.variant == "sanitized":
            self._call_in_child(name, arrays, settings)
            return
        message = call_library(self.library, name, arrays, settings)
        if message is not None:
            raise KernelFault(message)

    def _call_in_child(self, name: str, arguments: list, settings: tuple[int, int, int]) -> None:
        """Arrays travel as files; the child's copies end where its memory does."""
        request = self.library.with_suffix(".npz")
        answer = self.library.with_suffix(".out.npz")
        plan = [
            "array" if isinstance(a, np.ndarray) else "null" if a is None else repr(a)
            for a in arguments
        ]
        arrays = {f"a{i}": a for i, a in enumerate(arguments) if isinstance(a, np.ndarray)}
        np.savez(request, plan=np.array(plan), settings=np.array(settings), **arrays)
        result = subprocess.run(
            [sys.executable, str(HERE / "child.py"), self.library, name, request, answer],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                # The C++ library too: AddressSanitizer looks for its `throw` when it starts.
                "LD_PRELOAD": f"{_library_path('libasan.so')} {_library_path('libstdc++.so.6')}",
                # Python keeps memory until it ends; fibers have stacks of their own.
                "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
                "UBSAN_OPTIONS": "print_stacktrace=1",
                "OPENBLAS_NUM_THREADS": "1",
            },
        )
        if result.returncode != 0:
            raise KernelFault(result.stderr[:6000] or f"the child ended with {result.returncode}")
        with np.load(answer) as answers:
            for key, array in arrays.items():
                array[...] = answers[key]


def _array(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's memory as an array; types that numpy does not have as 16-bit patterns."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.detach().numpy()


def call_library(library: Path, name: str, arguments: list, settings: tuple) -> str | None:
    """Calls an entry point; its message, or None."""
    loaded = ctypes.CDLL(str(library))
    loaded.cuda_host_settings(*settings)
    entry = getattr(loaded, name)
    entry.restype = ctypes.c_char_p
    passed: list[object] = []
    for value in arguments:
        if value is None:
            passed.append(ctypes.c_void_p(None))
        elif isinstance(value, np.ndarray):
            if not value.flags.c_contiguous:
                raise ValueError("an entry point takes contiguous arrays")
            passed.append(ctypes.c_void_p(value.ctypes.data))
        elif isinstance(value, int):
            passed.append(ctypes.c_int64(value))
        else:
            passed.append(ctypes.c_double(value))
    message = entry(*passed)
    return None if message is None else message.decode()
