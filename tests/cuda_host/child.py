"""`python child.py LIBRARY ENTRY REQUEST ANSWER`: one call of a sanitized test program.

Preloading AddressSanitizer slows everything down: this process imports numpy and no torch.
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np


def main(library: str, name: str, request: str, answer: str) -> int:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    with np.load(request) as loaded:
        plan = [str(step) for step in loaded["plan"]]
        settings = [int(value) for value in loaded["settings"]]
        arrays = {key: loaded[key] for key in loaded.files if key.startswith("a")}

    passed: list[object] = []
    memory: dict[str, int] = {}
    for i, step in enumerate(plan):
        if step == "array":
            # From the sanitizer's allocator, in its exact size: numpy's own may be larger.
            array = np.ascontiguousarray(arrays[f"a{i}"])
            address = libc.malloc(ctypes.c_size_t(array.nbytes))
            ctypes.memmove(address, array.ctypes.data, array.nbytes)
            memory[f"a{i}"] = address
            passed.append(ctypes.c_void_p(address))
        elif step == "null":
            passed.append(ctypes.c_void_p(None))
        elif "." in step or "e" in step or "n" in step:  # 1.0, 1e-05, inf, nan
            passed.append(ctypes.c_double(float(step)))
        else:
            passed.append(ctypes.c_int64(int(step)))

    program = ctypes.CDLL(library)
    program.cuda_host_settings(*settings)
    entry = getattr(program, name)
    entry.restype = ctypes.c_char_p
    message = entry(*passed)
    if message is not None:
        print(message.decode(), file=sys.stderr)
        return 1
    for key, address in memory.items():
        array = np.ascontiguousarray(arrays[key])
        ctypes.memmove(array.ctypes.data, address, array.nbytes)
        arrays[key] = array
    np.savez(answer, **arrays)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
