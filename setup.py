"""Builds the two extensions, or installs pure Python and keeps the reason.

    fedkernels._C      csrc/**/*.cpp but host.cpp, against LibTorch's stable ABI: one build serves
                       every torch from 2.10 up
    fedkernels._host   csrc/host.cpp, a pybind11 module that tells what was built

Environment: FEDKERNELS_NO_EXT=1 installs pure Python; FEDKERNELS_REQUIRE_EXT=1 lets a build that
fails fail the install. `python -m fedkernels.info` prints what came of it, and why.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext as SetuptoolsBuildExt

ROOT = Path(__file__).resolve().parent
OUTCOME = "_build.json"  # written beside fedkernels/_extension.py, which reads it


def build_inputs() -> tuple[list[Extension], type[SetuptoolsBuildExt], str | None]:
    """The extensions, the command that builds them, and why nothing can be built (or None)."""
    if os.environ.get("FEDKERNELS_NO_EXT") == "1":
        return [], SetuptoolsBuildExt, "FEDKERNELS_NO_EXT=1 was set when the package was installed"
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        return [], SetuptoolsBuildExt, f"torch cannot be imported by the build: {error}"
    try:
        from pybind11.setup_helpers import Pybind11Extension
    except ImportError as error:
        return [], SetuptoolsBuildExt, f"pybind11 cannot be imported by the build: {error}"

    flags = [
        "-O3",
        "-std=c++20",
        "-fvisibility=hidden",
        "-fopenmp-simd",  # `#pragma omp simd` where a reduction may be reordered; no OpenMP runtime
        "-fno-math-errno",  # sqrt and exp as instructions; values stay the same
        "-fno-trapping-math",  # compares and selects may be vectorised; values stay the same
        "-g0",
        # Messages and assertions name files from the root of the source, not of this machine.
        f"-ffile-prefix-map={ROOT}/=",
        f"-ffile-prefix-map={Path(torch.__file__).parent}/=torch/",
    ]
    sources = sorted(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "csrc").rglob("*.cpp")
        if path.name != "host.cpp"
    )
    extensions: list[Extension] = []
    if sources:
        ops = CppExtension(
            "fedkernels._C",
            sources,
            include_dirs=[str(ROOT / "csrc")],
            # The lowest torch whose stable ABI is used: 2.10.
            extra_compile_args={"cxx": [*flags, "-DTORCH_TARGET_VERSION=0x020a000000000000"]},
            py_limited_api=True,
        )
        extensions.append(ops)
    host = Pybind11Extension("fedkernels._host", ["csrc/host.cpp"], cxx_std=20)
    host.include_dirs.append(str(ROOT / "csrc"))
    host.extra_compile_args = flags
    extensions.append(host)
    return extensions, BuildExtension, None


EXTENSIONS, BASE, WHY_NOT = build_inputs()


class build_ext(BASE):
    """Builds everything or nothing, and writes the outcome where `fedkernels.info` reads it.

    `optional=True` of setuptools is not enough: without a compiler torch's own check raises before
    the first extension is looked at.
    """

    def run(self) -> None:
        reason = WHY_NOT
        required = os.environ.get("FEDKERNELS_REQUIRE_EXT") == "1"
        if reason is None:
            inplace = self.inplace
            try:
                super().run()
            except Exception as error:
                if required:
                    raise
                self.inplace = inplace  # setuptools clears it while it builds
                lines = str(error).strip().splitlines() or ["no message"]
                reason = f"the build failed: {type(error).__name__}: {lines[0]}"
        elif required:
            raise SystemExit(f"FEDKERNELS_REQUIRE_EXT=1, but {reason}")
        if reason is not None:
            print(f"fedkernels: installing as pure Python, {reason}", file=sys.stderr)
            self._forget_extensions()
        self._write_outcome(reason)

    def _package_folder(self) -> Path:
        return ROOT / "fedkernels" if self.inplace else Path(self.build_lib) / "fedkernels"

    def _forget_extensions(self) -> None:
        # Binaries of an earlier build would be loaded although this one says that there are none;
        # and setuptools would look for the outputs of the extensions that it still knows.
        for pattern in ("_C*.so", "_host*.so"):
            for stale in self._package_folder().glob(pattern):
                stale.unlink()
        self.extensions = []

    def _write_outcome(self, reason: str | None) -> None:
        folder = self._package_folder()
        folder.mkdir(parents=True, exist_ok=True)
        names = [extension.name for extension in self.extensions]
        (folder / OUTCOME).write_text(
            json.dumps({"built": names, "reason": reason}, indent=1) + "\n", encoding="utf-8"
        )

    def get_source_files(self) -> list[str]:
        # A source distribution needs the headers too.
        headers = (path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.h"))
        return [*super().get_source_files(), *headers]

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), str(self._package_folder() / OUTCOME)]


PACKAGES = find_packages(include=["fedkernels", "fedkernels.*", "python_api", "python_api.*"])
# The folder `benchmarks` is installed as `fedkernels_benchmarks` (package-dir in pyproject.toml).
PACKAGES.append("fedkernels_benchmarks")
PACKAGES.extend(f"fedkernels_benchmarks.{name}" for name in find_packages("benchmarks"))

# With no extension setuptools would not run build_ext, and the reason would be lost: a
# distribution that may hold compiled code stays marked as one.
setup(
    packages=PACKAGES,
    ext_modules=EXTENSIONS or [Extension("fedkernels._C", [])],
    cmdclass={"build_ext": build_ext},
)
