// The C API's functions that belong to no op.
#include <string>

#include "c_api/conversions.hpp"
#include "tessera/info.hpp"

namespace tessera::c_api {
namespace {

thread_local std::string last_error;

}  // namespace

tessera_status finish(const Status& status) {
  last_error = status.message();
  return static_cast<tessera_status>(status.code());
}

bool find_device(int device_type, int device_id, DLDevice* device) {
  switch (device_type) {
    case TESSERA_CPU:
      *device = kHostDevice;
      return true;
    case TESSERA_CUDA:
      *device = {kDLCUDA, device_id};
      return true;
    default:
      return false;
  }
}

}  // namespace tessera::c_api

extern "C" {

tessera_status tessera_warmup(int device_type, int device_id) {
  using namespace tessera::c_api;
  tessera::Context context;
  const tessera::Status found = set_device("warmup", device_type, device_id, &context);
  return finish(found.ok() ? tessera::warmup(context.device) : found);
}

const char* tessera_last_error(void) { return tessera::c_api::last_error.c_str(); }

const char* tessera_version(void) { return tessera::version(); }

int tessera_c_api_version(void) { return TESSERA_C_API_VERSION; }

}  // extern "C"
