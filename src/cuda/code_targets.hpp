// Which devices the code of a build can run on.
#pragma once

#include <algorithm>
#include <charconv>
#include <string_view>

namespace tessera::cuda {

/// Whether code built for `architectures` runs on a device of `compute_capability`, 10 * major +
/// minor. `architectures` has CMake's names, separated by spaces: "80-real 90a-real 120". Machine
/// code runs on its major version from its minor version on, PTX on every later version, and code
/// that is specific to an architecture ("90a", "100f") on that version alone.
inline bool has_code_for(int compute_capability, std::string_view architectures) {
  while (!architectures.empty()) {
    const std::string_view target = architectures.substr(0, architectures.find(' '));
    architectures.remove_prefix(std::min(target.size() + 1, architectures.size()));
    int built_for = 0;
    const auto parsed =
        std::from_chars(target.data(), target.data() + target.size(), built_for).ptr;
    const std::string_view suffix = target.substr(parsed - target.data());
    const bool is_specific = suffix.starts_with('a') || suffix.starts_with('f');
    const bool has_ptx = !suffix.ends_with("-real") && !is_specific;
    const bool has_machine_code = !suffix.ends_with("-virtual") && !is_specific;
    const bool same_major = compute_capability / 10 == built_for / 10;
    if (compute_capability == built_for) return true;
    if (compute_capability > built_for && (has_ptx || (has_machine_code && same_major))) {
      return true;
    }
  }
  return false;
}

}  // namespace tessera::cuda
