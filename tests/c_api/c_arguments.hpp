// What the tests of every op make of a C++ call's arguments for the C API.
#pragma once

#include <cstdint>

#include "tessera/tensor_view.hpp"
#include "tessera/tessera.h"

namespace tessera::test {

inline tessera_dtype dtype_of(DLDataType dtype) {
  switch (dtype.bits) {
    case 8:
      return dtype.code == kDLInt ? TESSERA_INT8 : TESSERA_UINT8;
    case 16:
      return dtype.code == kDLInt ? TESSERA_INT16 : TESSERA_UINT16;
    case 32:
      return dtype.code == kDLInt ? TESSERA_INT32 : TESSERA_UINT32;
    default:
      return dtype.code == kDLInt ? TESSERA_INT64 : TESSERA_UINT64;
  }
}

inline std::int32_t* int32s(const TensorView& view) {
  return static_cast<std::int32_t*>(view.data);
}

template <typename CArgs, typename Args>
void set_outputs(const Args& from, CArgs* args) {
  args->sorted_token_ids = int32s(from.sorted_token_ids);
  args->sorted_token_ids_length = from.sorted_token_ids.num_elements;
  args->expert_ids = int32s(from.expert_ids);
  args->expert_ids_length = from.expert_ids.num_elements;
  args->num_tokens_post_pad = int32s(from.num_tokens_post_pad);
}

}  // namespace tessera::test
