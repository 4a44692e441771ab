// fedkernels._host: what was built and which instruction set runs, for `fedkernels.info`.
// No tensor passes here; the ops are in fedkernels._C.
#include <pybind11/pybind11.h>

#include "common/capability.h"

PYBIND11_MODULE(_host, m) {
  m.doc() = "What was built and which instruction set runs.";
  m.def(
      "capability", [] { return fedkernels::name_of(fedkernels::capability()); },
      "The instruction set that runs. ValueError if the forced one is unknown or missing here.");
  m.def(
      "best_capability", [] { return fedkernels::name_of(fedkernels::best_capability()); },
      "The best instruction set that this processor has.");
  m.def(
      "build_info",
      [] {
        pybind11::dict info;
#if defined(__clang__)
        info["compiler"] = "clang " __clang_version__;
#else
        info["compiler"] = "g++ " __VERSION__;
#endif
        info["standard"] = static_cast<long>(__cplusplus);
        return info;
      },
      "The compiler and the C++ standard of the build.");
}
