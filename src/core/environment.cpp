#include "core/environment.hpp"

#include <charconv>
#include <cstdlib>

#include "core/once.hpp"

namespace tessera::core {
namespace {

std::string read(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

Environment read_environment() {
  Environment result;
  result.implementation = read("TESSERA_IMPL");
  result.validate = read("TESSERA_VALIDATE");
  const std::string verbose = read("TESSERA_VERBOSE");
  result.verbose = !verbose.empty() && verbose != "0";
  result.num_threads_text = read("TESSERA_NUM_THREADS");
  const std::string& text = result.num_threads_text;
  if (!text.empty()) {
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, result.num_threads);
    if (error != std::errc() || stop != end || result.num_threads < 1) result.num_threads = -1;
  }
  return result;
}

}  // namespace

const Environment& environment() {
  static std::atomic<const Environment*> kept;
  return once(&kept, read_environment);
}

}  // namespace tessera::core
