// The C API's functions that belong to no op.
#include <pthread.h>

#include <new>
#include <utility>

#include "c_api/conversions.hpp"
#include "tessera/info.hpp"

namespace tessera::c_api {
namespace {

[[gnu::tls_model("initial-exec")]] thread_local const char* last_message = "";

/// For each thread the Status that holds its last message. A key owns it: for the destructor of a
/// thread_local object, and for the first use of any in a library that was loaded late, the C
/// library takes memory, and aborts where there is none.
class KeptStatus {
 public:
  KeptStatus() { exists_ = pthread_key_create(&key_, &destroy) == 0; }

  /// The calling thread's, made if `makes` and there is none yet; null where it cannot be.
  Status* get(bool makes) const noexcept {
    if (!exists_) return nullptr;
    auto* kept = static_cast<Status*>(pthread_getspecific(key_));
    if (kept != nullptr || !makes) return kept;
    kept = new (std::nothrow) Status;
    if (kept != nullptr && pthread_setspecific(key_, kept) != 0) {
      delete kept;
      kept = nullptr;
    }
    return kept;
  }

 private:
  static void destroy(void* kept) {
    last_message = "";
    delete static_cast<Status*>(kept);
  }

  pthread_key_t key_{};
  bool exists_ = false;
};

const KeptStatus kKeptStatus;

}  // namespace

tessera_status keep(Status status, const Status::Error* out_of_memory) noexcept {
  Status* const kept = kKeptStatus.get(!status.ok());
  if (kept == nullptr && !status.ok()) status = Status(out_of_memory);
  const StatusCode code = status.code();
  last_message = status.c_message();
  if (kept != nullptr) *kept = std::move(status);
  return static_cast<tessera_status>(code);
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
  static constexpr tessera::core::OutOfMemory kOutOfMemory("warmup");
  return finish(kOutOfMemory, [&] {
    tessera::Context context;
    tessera::Status found = set_device("warmup", device_type, device_id, &context);
    return found.ok() ? tessera::warmup(context.device) : found;
  });
}

const char* tessera_last_error(void) { return tessera::c_api::last_message; }

const char* tessera_version(void) { return tessera::version(); }

int tessera_c_api_version(void) { return TESSERA_C_API_VERSION; }

}  // extern "C"
