// One call of any op on guarded device memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <list>
#include <string>
#include <string_view>
#include <vector>

#include "contracts.hpp"
#include "device_buffer.hpp"
#include "guarded_call.hpp"
#include "tessera/ops.hpp"

namespace tessera::test {

/// Circumstances of a call on the device, besides the case.
struct DeviceSurroundings {
  std::string implementation;
  std::byte poison{0xa5};
  std::size_t misalignment = 0;  ///< elements of each array
  bool is_exact = false;
  std::uint64_t left_out = 0;     ///< optional outputs that are not requested, one bit each
  cudaStream_t stream = nullptr;  ///< where the call is made
  bool is_captured = false;       ///< into a graph, which is then launched on the same stream
};

/// Arguments of a case on device 0: inputs copied there, outputs poisoned, all guarded. An exact
/// array has no guards, and an exact output is poisoned only if calls leave parts of it as they
/// were, such as gaps between rows; otherwise it stays uninitialised, so that initcheck finds reads
/// of elements that no kernel wrote.
class DeviceCall {
 public:
  DeviceCall(const contract::CaseArguments& made, const DeviceSurroundings& surroundings);

  const OpEntry& op() const { return op_; }
  void* args() { return args_.data(); }

  /// The memory of an array of that name; null where it is not given.
  DeviceBuffer* buffer(std::string_view argument);

  /// Calls the op with a workspace of exactly the size that the query names, and waits for it.
  Status run();

  /// Makes the call only: `workspace` suffices.
  Status enqueue(const DeviceBuffer& workspace);
  Status workspace_bytes(std::size_t* bytes);

  Outputs outputs();

  /// What the contract's checker says of the outputs; else nothing.
  std::string violation();

  /// The first array that differs from the host's, or that was damaged; else nothing.
  std::string difference(const Outputs& expected);

  /// The first array with a write beside it or between its rows, or to rows that the contract
  /// leaves as they were; else nothing. Writes beside exact arrays go unnoticed here;
  /// compute-sanitizer finds them. `ran_once` is false after several calls whose inputs differed:
  /// each of them may have written other rows.
  std::string damage(bool ran_once = true);

 private:
  struct Array {
    Array(const Argument& row, TensorView view, const DeviceSurroundings& surroundings);

    const Argument* argument;
    TensorView host;
    DeviceBuffer buffer;
  };

  /// The argument struct with the outputs' contents.
  struct OnHost {
    std::vector<std::byte> args;
    std::list<std::vector<std::byte>> contents;
  };

  Context context() const;
  OnHost on_host();

  /// The part of an output that a finished call has written.
  TensorView written_part(const Array& array);

  const OpEntry& op_;
  const contract::OpContract& contract_;
  contract::CaseArguments made_;
  DeviceSurroundings surroundings_;
  std::vector<std::byte> args_;  // aligned as operator new aligns
  std::list<Array> arrays_;
  bool workspace_intact_ = true;
};

/// Whether an implementation keeps the bound of the host for products of numbers in float8_e4m3fn,
/// which has no term for tensor cores.
bool adds_fp8_exactly(std::string_view implementation);

/// A stream that waits for no other.
cudaStream_t stream_of_calls();

/// Runs a case on device 0 and compares with what the host gave. Returns what is wrong, or nothing.
std::string check_on_device(const contract::CaseArguments& made, const Outputs& expected,
                            const DeviceSurroundings& surroundings);

/// The same, judged by the contract's checker.
std::string judge_on_device(const contract::CaseArguments& made,
                            const DeviceSurroundings& surroundings);

}  // namespace tessera::test
