// Python's exports of what the library says of itself, and of its warm-up.
#include <string>

#include "conversions.hpp"
#include "tessera/info.hpp"

namespace tessera::python {
namespace {

std::string backends() {
  return json_array(tessera::backends(), [](const BackendInfo& backend) {
    return "{\"name\":" + json_string(backend.name) +
           ",\"available\":" + (backend.available ? "true" : "false") +
           ",\"detail\":" + json_string(backend.detail) + "}";
  });
}

void warmup(std::int64_t device_type, std::int64_t device_id) {
  throw_unless_ok(tessera::warmup(device_of("warmup", device_type, device_id)));
}

std::string validate_default() { return tessera::validate_default(); }
std::string version() { return tessera::version(); }
std::string build() { return tessera::build_description(); }

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(backends, backends)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(warmup, warmup)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(validate_default, validate_default)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(version, version)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(build, build)

}  // namespace tessera::python
