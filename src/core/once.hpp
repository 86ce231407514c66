// Values that are computed at their first use.
#pragma once

#include <atomic>

namespace tessera::core {

/// The result of the first call of `make`. There is no lock, which a fork could leave held in the
/// child: concurrent threads may each compute the value, and one of the results is kept. It is
/// never destroyed, since threads may call while the process exits.
template <typename T, typename Make>
const T& once(std::atomic<const T*>* kept, Make make) {
  const T* value = kept->load(std::memory_order_acquire);
  if (value != nullptr) return *value;
  const T* const made = new T(make());
  if (kept->compare_exchange_strong(value, made, std::memory_order_acq_rel)) return *made;
  delete made;
  return *value;
}

}  // namespace tessera::core
