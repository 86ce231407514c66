// All environment variables of Tessera.
#pragma once

#include <string>

namespace tessera::core {

struct Environment {
  std::string implementation;    ///< TESSERA_IMPL: the implementation to run; empty: automatic
  std::string num_threads_text;  ///< TESSERA_NUM_THREADS as text
  int num_threads = 0;           ///< the same as a number; 0: unset, -1: not a number >= 1
  std::string validate;          ///< TESSERA_VALIDATE as text; bindings interpret it
  bool verbose = false;          ///< TESSERA_VERBOSE=1: print what each call runs to stderr
};

/// Read once, at first use: getenv is not cheap, nor safe while another thread calls setenv.
const Environment& environment();

}  // namespace tessera::core
