"""Builds the two extensions, or installs pure Python and keeps the reason.

    fedkernels._C      csrc/**/*.cpp but host.cpp, and csrc/**/*.cu where torch and the machine
                       have CUDA, against LibTorch's stable ABI: one build serves every torch from
                       2.10 up
    fedkernels._host   csrc/host.cpp, a pybind11 module that tells what was built

Environment: FEDKERNELS_NO_EXT=1 installs pure Python; FEDKERNELS_REQUIRE_EXT=1 lets a build that
fails fail the install. FEDKERNELS_CUDA=0 leaves the CUDA kernels out, 1 requires them, auto (the
default) builds them where torch is a CUDA build and CUDA_HOME is known: no GPU is asked for, since
the machine that builds need not be the one that runs. TORCH_CUDA_ARCH_LIST names other
architectures. `python -m fedkernels.info` prints what came of it, and why.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext as SetuptoolsBuildExt

ROOT = Path(__file__).resolve().parent
OUTCOME = "_build.json"  # written beside fedkernels/_extension.py, which reads it


# Nothing in our kernels needs 9.0a or 10.0a, and such code runs on no later chip; PTX does.
ARCHITECTURES = "8.0;9.0;10.0+PTX"
OLDER_ARCHITECTURES = "8.0;9.0+PTX"  # for an nvcc that does not know 10.0, before 12.8


def why_no_cuda() -> str | None:
    """Why the CUDA kernels are not built here, or None."""
    wanted = os.environ.get("FEDKERNELS_CUDA", "auto")
    if wanted not in ("0", "1", "auto"):
        return f"FEDKERNELS_CUDA must be 0, 1 or auto, got {wanted}"
    if wanted == "0":
        return "FEDKERNELS_CUDA=0 was set when the package was installed"
    import torch
    from torch.utils import cpp_extension

    if not sources_of("*.cu"):
        return "this version has no CUDA kernels"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if cpp_extension.CUDA_HOME is None:
        return "no CUDA toolkit was found (CUDA_HOME is not set and nvcc is not in PATH)"
    return None


def architectures() -> str:
    """TORCH_CUDA_ARCH_LIST, set to our own list where it is not given."""
    from torch.utils.cpp_extension import CUDA_HOME

    if "TORCH_CUDA_ARCH_LIST" not in os.environ:
        nvcc = Path(str(CUDA_HOME)) / "bin/nvcc"
        try:
            known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
        except OSError:
            known = "compute_100"  # the build itself says what is wrong with nvcc
        os.environ["TORCH_CUDA_ARCH_LIST"] = (
            ARCHITECTURES if "compute_100" in known else OLDER_ARCHITECTURES
        )
    return os.environ["TORCH_CUDA_ARCH_LIST"]


def sources_of(pattern: str) -> list[str]:
    """Files in csrc, relative to the root, but host.cpp."""
    return sorted(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "csrc").rglob(pattern)
        if path.name != "host.cpp"
    )


def build_inputs() -> tuple[list[Extension], type[SetuptoolsBuildExt], str | None, str | None]:
    """The extensions, the command that builds them, why nothing can be built (or None), and why
    the CUDA kernels are left out (or None)."""

    def nothing(reason: str):
        return [], SetuptoolsBuildExt, reason, reason

    if os.environ.get("FEDKERNELS_NO_EXT") == "1":
        return nothing("FEDKERNELS_NO_EXT=1 was set when the package was installed")
    try:
        from torch.utils.cpp_extension import BuildExtension
    except ImportError as error:
        return nothing(f"torch cannot be imported by the build: {error}")
    try:
        import pybind11.setup_helpers  # noqa: F401
    except ImportError as error:
        return nothing(f"pybind11 cannot be imported by the build: {error}")
    no_cuda = why_no_cuda()
    return extensions(with_cuda=no_cuda is None), BuildExtension, None, no_cuda


def extensions(*, with_cuda: bool) -> list[Extension]:
    """fedkernels._C and fedkernels._host."""
    import torch
    from pybind11.setup_helpers import Pybind11Extension
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    # Messages and assertions name files from the root of the source, not of this machine.
    no_paths = [
        f"-ffile-prefix-map={ROOT}/=",
        f"-ffile-prefix-map={Path(torch.__file__).parent}/=torch/",
    ]
    flags = [
        "-O3",
        "-std=c++20",
        "-fvisibility=hidden",
        "-fopenmp-simd",  # `#pragma omp simd` where a reduction may be reordered; no OpenMP runtime
        "-fno-math-errno",  # sqrt and exp as instructions; values stay the same
        "-fno-trapping-math",  # compares and selects may be vectorised; values stay the same
        "-g0",
        *no_paths,
    ]
    lowest_torch = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # whose stable ABI is used: 2.10
    compile_args = {"cxx": [*flags, lowest_torch]}
    sources = sources_of("*.cpp")
    kind = CppExtension
    if with_cuda:
        kind = CUDAExtension
        sources += sources_of("*.cu")
        compile_args["nvcc"] = [
            "-O3",
            "-std=c++20",
            lowest_torch,
            "-DUSE_CUDA",  # the stable ABI's streams and device guards
            "-Xptxas=-warn-spills",
            # nvcc itself does not know these.
            *(f"-Xcompiler={flag}" for flag in ("-fvisibility=hidden", *no_paths)),
        ]
        architectures()
    found: list[Extension] = []
    if sources:
        ops = kind(
            "fedkernels._C",
            sources,
            include_dirs=[str(ROOT / "csrc")],
            extra_compile_args=compile_args,
            py_limited_api=True,
        )
        found.append(ops)
    host = Pybind11Extension("fedkernels._host", ["csrc/host.cpp"], cxx_std=20)
    host.include_dirs.append(str(ROOT / "csrc"))
    host.extra_compile_args = flags
    found.append(host)
    return found


EXTENSIONS, BASE, WHY_NOT, WHY_NO_CUDA = build_inputs()


class build_ext(BASE):
    """Builds everything or nothing, and writes the outcome where `fedkernels.info` reads it.

    `optional=True` of setuptools is not enough: without a compiler torch's own check raises before
    the first extension is looked at.
    """

    def run(self) -> None:
        reason, no_cuda = WHY_NOT, WHY_NO_CUDA
        cuda_required = os.environ.get("FEDKERNELS_CUDA") == "1"
        required = os.environ.get("FEDKERNELS_REQUIRE_EXT") == "1" or cuda_required
        if no_cuda is not None and no_cuda.startswith("FEDKERNELS_CUDA must be"):
            raise SystemExit(no_cuda)
        if cuda_required and no_cuda is not None:
            raise SystemExit(f"FEDKERNELS_CUDA=1, but {no_cuda}")
        if reason is not None and required:
            raise SystemExit(f"FEDKERNELS_REQUIRE_EXT=1, but {reason}")
        if reason is None:
            reason = self._build(required)
            if reason is not None and no_cuda is None:
                # Often a toolkit that does not fit torch: the kernels for the CPU need none.
                no_cuda = reason
                self.distribution.ext_modules = extensions(with_cuda=False)
                self.compiler = self.swig_opts = None  # what was finalised cannot be again
                self.finalize_options()
                reason = self._build(required)
        if reason is not None:
            print(f"fedkernels: installing as pure Python, {reason}", file=sys.stderr)
            no_cuda = reason
            self._forget_extensions()
        elif no_cuda is not None:
            print(f"fedkernels: no CUDA kernels, {no_cuda}", file=sys.stderr)
        self._write_outcome(reason, no_cuda)

    def _build(self, required: bool) -> str | None:
        """Builds `self.extensions`; why that failed, or None. Raises where a build is required."""
        inplace = self.inplace
        try:
            super().run()
        except Exception as error:
            if required:
                raise
            self.inplace = inplace  # setuptools clears it while it builds
            lines = str(error).strip().splitlines() or ["no message"]
            return f"the build failed: {type(error).__name__}: {lines[0]}"
        return None

    def _package_folder(self) -> Path:
        return ROOT / "fedkernels" if self.inplace else Path(self.build_lib) / "fedkernels"

    def _forget_extensions(self) -> None:
        # Binaries of an earlier build would be loaded although this one says that there are none;
        # and setuptools would look for the outputs of the extensions that it still knows.
        for pattern in ("_C*.so", "_host*.so"):
            for stale in self._package_folder().glob(pattern):
                stale.unlink()
        self.extensions = []

    def _write_outcome(self, reason: str | None, no_cuda: str | None) -> None:
        folder = self._package_folder()
        folder.mkdir(parents=True, exist_ok=True)
        outcome = {
            "built": [extension.name for extension in self.extensions],
            "reason": reason,
            "cuda": architectures() if no_cuda is None else None,
            "cuda_reason": no_cuda,
        }
        text = json.dumps(outcome, indent=1) + "\n"
        (folder / OUTCOME).write_text(text, encoding="utf-8")

    def get_source_files(self) -> list[str]:
        # A source distribution needs the headers too, and the CUDA sources that are not built here.
        more = [*sources_of("*.h"), *sources_of("*.cuh"), *sources_of("*.cu")]
        return sorted({*super().get_source_files(), *more})

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
