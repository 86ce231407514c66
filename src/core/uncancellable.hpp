// Cancellation points inside the library.
#pragma once

#include <pthread.h>

namespace tessera::core {

/// Keeps pthread_cancel from ending this thread within a scope: unwinding would pass through code
/// that must not throw. The thread ends at its next cancellation point after the scope.
class Uncancellable {
 public:
  Uncancellable() { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before_); }
  ~Uncancellable() { pthread_setcancelstate(before_, nullptr); }
  Uncancellable(const Uncancellable&) = delete;
  Uncancellable& operator=(const Uncancellable&) = delete;

 private:
  int before_ = PTHREAD_CANCEL_ENABLE;
};

}  // namespace tessera::core
