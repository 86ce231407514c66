// What the exports of every op share: conversions between Python's FFI and Tessera, no logic.
#pragma once

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>
#include <tvm/ffi/string.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "findings.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"
#include "tessera/tensor_view.hpp"

namespace tessera::python {

namespace ffi = tvm::ffi;
using OptionalTensor = ffi::Optional<ffi::TensorView>;
using OptionalString = ffi::Optional<ffi::String>;

inline TensorView view_of(const ffi::TensorView& tensor) {
  DLTensor fields{};
  fields.data = tensor.data_ptr();
  fields.device = tensor.device();
  fields.ndim = tensor.ndim();
  fields.dtype = tensor.dtype();
  fields.shape = const_cast<std::int64_t*>(tensor.shape().data());
  fields.strides = const_cast<std::int64_t*>(tensor.strides().data());
  fields.byte_offset = tensor.byte_offset();
  return TensorView::of(fields);
}

inline TensorView view_of(const OptionalTensor& tensor) {
  return tensor.has_value() ? view_of(*tensor) : TensorView{nullptr, 0, DLDataType{}};
}

inline void throw_unless_ok(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return;
    case StatusCode::kInvalidType:
      TVM_FFI_THROW(TypeError) << status.message();
    case StatusCode::kInvalidValue:
      TVM_FFI_THROW(ValueError) << status.message();
    case StatusCode::kUnsupported:
      TVM_FFI_THROW(NotImplementedError) << status.message();
    case StatusCode::kRuntimeError:
      TVM_FFI_THROW(RuntimeError) << status.message();
  }
}

/// Python's integers arrive as 64 bits; the ops take some as 32.
inline std::int32_t int32_of(const char* op, const char* argument, std::int64_t value) {
  if (value < std::numeric_limits<std::int32_t>::min() ||
      value > std::numeric_limits<std::int32_t>::max()) {
    TVM_FFI_THROW(ValueError) << op << ": " << argument << ": expected an integer of 32 bits, got "
                              << value;
  }
  return static_cast<std::int32_t>(value);
}

inline std::span<std::byte> bytes_of(const ffi::TensorView& tensor) {
  const TensorView view = view_of(tensor);
  const std::size_t bytes = static_cast<std::size_t>(view.num_elements) * view.dtype.bits / 8;
  return {static_cast<std::byte*>(view.data), bytes};
}

/// Scratch memory of one host call of `op`. Each thread keeps up to kKeptBytes for its next calls;
/// a call that needs more takes memory of its own and gives it back.
class HostWorkspace {
 public:
  static constexpr std::size_t kKeptBytes = std::size_t{1} << 20;

  HostWorkspace(const char* op, std::size_t bytes) : bytes_(bytes) {
    thread_local std::unique_ptr<std::byte[]> kept;
    thread_local std::size_t kept_bytes = 0;
    if (bytes > kKeptBytes) {
      own_ = allocate(op, bytes);
      data_ = own_.get();
      return;
    }
    if (kept_bytes < bytes) {
      kept = allocate(op, bytes);
      kept_bytes = bytes;
    }
    data_ = kept.get();
  }

  std::span<std::byte> span() const { return {data_, bytes_}; }

 private:
  static std::unique_ptr<std::byte[]> allocate(const char* op, std::size_t bytes) {
    std::unique_ptr<std::byte[]> memory(new (std::nothrow) std::byte[bytes]);
    if (memory == nullptr) {
      TVM_FFI_THROW(RuntimeError) << op << ": workspace: expected " << bytes
                                  << " bytes of host memory, got none";
    }
    return memory;
  }

  std::unique_ptr<std::byte[]> own_;
  std::byte* data_ = nullptr;
  std::size_t bytes_;
};

/// Each output in a joined array begins at a multiple of so many elements of int32: 128 bytes, so
/// that 16-byte loads and TMA may read it, and a compiler that specialises on the alignment of
/// pointers compiles for one alignment only.
inline constexpr std::int64_t kOutputAlignment = 32;

/// Where expert_ids and num_tokens_post_pad begin in a joined array that sorted_token_ids opens.
struct JoinedOutputs {
  JoinedOutputs(std::int64_t num_slots, std::int64_t num_blocks)
      : blocks_begin(aligned(num_slots)), totals_begin(aligned(blocks_begin + num_blocks)) {}

  static std::int64_t aligned(std::int64_t elements) {
    return (elements + kOutputAlignment - 1) / kOutputAlignment * kOutputAlignment;
  }

  std::int64_t blocks_begin;
  std::int64_t totals_begin;
};

/// Writes to `sizes`, int64[5], what Python needs to allocate and cut a joined array: the lengths
/// of sorted_token_ids and expert_ids, where the second and third output begin, and the whole
/// length.
inline void write_joined_sizes(std::int64_t num_slots, std::int64_t num_blocks,
                               std::int64_t num_totals, std::int64_t* sizes) {
  const JoinedOutputs joined(num_slots, num_blocks);
  sizes[0] = num_slots;
  sizes[1] = num_blocks;
  sizes[2] = joined.blocks_begin;
  sizes[3] = joined.totals_begin;
  sizes[4] = joined.totals_begin + num_totals;
}

/// Elements [begin, begin + length) of an array of int32.
inline TensorView part_of(const TensorView& array, std::int64_t begin, std::int64_t length) {
  if (length < 0 || begin > array.num_elements - length || array.dtype.bits != 32) {
    TVM_FFI_THROW(ValueError) << "expected an int32 array of at least " << begin + length
                              << " elements";
  }
  TensorView part = array;
  part.data = static_cast<std::int32_t*>(array.data) + begin;
  part.num_elements = length;
  return part;
}

template <typename Args>
void set_outputs(const ffi::TensorView& sorted_token_ids, const ffi::TensorView& expert_ids,
                 const ffi::TensorView& num_tokens_post_pad, Args* args) {
  args->sorted_token_ids = view_of(sorted_token_ids);
  args->expert_ids = view_of(expert_ids);
  args->num_tokens_post_pad = view_of(num_tokens_post_pad);
}

/// The three outputs in one array, as JoinedOutputs places them; all that follows the last begin is
/// num_tokens_post_pad.
template <typename Args>
void set_joined_outputs(const ffi::TensorView& outputs, std::int64_t num_slots,
                        std::int64_t num_blocks, Args* args) {
  const TensorView array = view_of(outputs);
  const JoinedOutputs joined(num_slots, num_blocks);
  args->sorted_token_ids = part_of(array, 0, num_slots);
  args->expert_ids = part_of(array, joined.blocks_begin, num_blocks);
  args->num_tokens_post_pad =
      part_of(array, joined.totals_begin, array.num_elements - joined.totals_begin);
}

/// The stream that the framework of the arrays has made current; none on the host.
inline void* current_stream(DLDevice device) {
  return device.device_type == kDLCPU ? nullptr
                                      : TVMFFIEnvGetStream(device.device_type, device.device_id);
}

inline Context context_on(const char* op, DLDevice device, std::int64_t num_threads,
                          std::string_view implementation) {
  Context context;
  context.device = device;
  context.num_threads = int32_of(op, "num_threads", num_threads);
  context.implementation = implementation;
  return context;
}

/// A copy: the FFI hands the text out by value, and a short one lies inside that value.
inline std::string text_of(const OptionalString& string) {
  return string.has_value() ? std::string(*string) : std::string();
}

inline DLDevice device_of(const char* op, std::int64_t type, std::int64_t index) {
  return {static_cast<DLDeviceType>(type), int32_of(op, "device", index)};
}

inline std::string json_string(const std::string& text) {
  return ffi::EscapeString(ffi::String(text));
}

/// "[a,b,...]" of what `to_json` makes of each element.
template <typename Elements, typename ToJson>
std::string json_array(const Elements& elements, ToJson to_json) {
  std::string json;
  for (const auto& element : elements) {
    json += (json.empty() ? "" : ",") + to_json(element);
  }
  return "[" + json + "]";
}

inline std::string violations_json(const std::vector<contract::Violation>& violations) {
  return json_array(violations, [](const contract::Violation& violation) {
    return "{\"rule\":" + json_string(violation.rule) +
           ",\"array\":" + json_string(violation.array) +
           ",\"position\":" + std::to_string(violation.position) +
           ",\"expected\":" + violation.expected.text() + ",\"found\":" + violation.found.text() +
           ",\"message\":" + json_string(violation.message) + "}";
  });
}

inline std::string rules_json(std::span<const contract::Rule> rules) {
  return json_array(rules, [](const contract::Rule& rule) {
    return "{\"name\":" + json_string(rule.name) + ",\"meaning\":" + json_string(rule.meaning) +
           "}";
  });
}

}  // namespace tessera::python
