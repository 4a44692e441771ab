// Errors that name the kernel's line.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>

namespace cuda_host {

using Where = std::source_location;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline std::string line_of(const Where& at) {
  const std::string file = at.file_name();
  const auto slash = file.rfind('/');
  return file.substr(slash == std::string::npos ? 0 : slash + 1) + ":" + std::to_string(at.line());
}

inline bool same_line(const Where& a, const Where& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         std::string_view(a.file_name()) == b.file_name();
}

}  // namespace cuda_host
