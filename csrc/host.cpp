// What was built, for `fedkernels.info`. No tensor passes here.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_host, m) {
  m.def("build_info", [] {
    pybind11::dict info;
    info["compiler"] = __VERSION__;
    info["standard"] = static_cast<long>(__cplusplus);
    return info;
  });
}
