// The environment variables of Tessera, all of them.
#pragma once

#include <string>

namespace tessera::core {

struct Environment {
  std::string implementation;    ///< TESSERA_IMPL: the implementation to run; empty: automatic
  std::string num_threads_text;  ///< TESSERA_NUM_THREADS as it stands
  int num_threads = 0;           ///< the same as a number; 0: unset, -1: not a number >= 1
  std::string validate;          ///< TESSERA_VALIDATE as it stands; bindings read it
  bool verbose = false;          ///< TESSERA_VERBOSE=1: say on stderr what each call runs
};

/// Read once, at first use: getenv is neither cheap nor safe beside setenv.
const Environment& environment();

}  // namespace tessera::core
