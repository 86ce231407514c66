// What the programs that compare the CUDA backend with the CPU have in common.
#pragma once

#include <string>
#include <vector>

namespace tessera::test {

/// Options of a program; --help explains them.
struct CheckOptions {
  long random = 1000;
  unsigned long seed = 1;
  long max_ids = 20000;
  bool exact = false;
  bool pairwise = false;
  long share = 1;  ///< of num_shares
  long num_shares = 1;
  std::string op;                     ///< empty: all
  std::vector<std::string> left_out;  ///< ops
};

/// Reads the options, or ends the program: with 2 where they are wrong, and with 77 where there is
/// no CUDA backend to check.
CheckOptions begin_check(int argc, char** argv);

/// The size of the random case number `k`: most are small, where the corners are; every eighth
/// goes up to the limit.
long max_ids_of_random_case(const CheckOptions& options, long k);

}  // namespace tessera::test
