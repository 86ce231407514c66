// Usage: write_fuzz_corpus <folder>
// Writes the smaller cases of the table as fuzz inputs, one file each.
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "align_block_size_cases.hpp"
#include "fuzz_input.hpp"

namespace {

using tessera::contract::AlignBlockSizeCase;

// The order of tessera_dtype: by width, signed before unsigned.
std::uint8_t dtype_number(DLDataType dtype) {
  std::uint8_t number = dtype.code == kDLUInt ? 1 : 0;
  for (int bits = 8; bits < dtype.bits; bits *= 2) number += 2;
  return number;
}

tessera::fuzz::FuzzHeader header_of(const AlignBlockSizeCase& c) {
  using namespace tessera::fuzz;
  FuzzHeader header{};
  header.block_size = c.block_size;
  header.num_experts = c.num_experts;
  header.tail_expert = c.tail_expert;
  header.num_threads = 2;
  header.sorted_extra = static_cast<std::int16_t>(c.extra_length);
  header.experts_extra = static_cast<std::int16_t>(c.extra_length);
  header.dtype = dtype_number(c.dtype);
  header.flags = kGivesCounts | kGivesDropped;
  if (c.map != tessera::contract::MapKind::kNone) header.flags |= kGivesMap;
  if (c.ignore_invalid_experts) header.flags |= kIgnoresInvalidExperts;
  if (c.pad_sorted_ids) header.flags |= kPadsSortedIds;
  if (c.map_tail) header.flags |= kMapsTail;
  if (c.filtered_group) header.flags |= kFilteredGroup;
  if (c.statistics || c.validation) header.flags |= kGivesStatisticsAndValidation;
  return header;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s <folder>\n", argv[0]);
    return 2;
  }
  const std::filesystem::path folder = argv[1];
  std::filesystem::create_directories(folder);
  int index = 0;
  for (const AlignBlockSizeCase& c : tessera::contract::align_block_size_cases()) {
    if (c.num_tokens * c.top_k > 5000 || c.num_experts > tessera::fuzz::kMaxExperts) continue;
    const auto header = header_of(c);
    const auto inputs = tessera::contract::make_inputs(c, 1);
    std::ofstream file(folder / ("case" + std::to_string(index++)), std::ios::binary);
    file.write(reinterpret_cast<const char*>(&header), sizeof(header));
    if (inputs.expert_map) {
      file.write(reinterpret_cast<const char*>(inputs.expert_map->data()),
                 static_cast<std::streamsize>(inputs.expert_map->size() * sizeof(std::int32_t)));
    }
    file.write(reinterpret_cast<const char*>(inputs.topk_ids.data()),
               static_cast<std::streamsize>(inputs.topk_ids.size()));
    if (!file.flush()) {
      std::fprintf(stderr, "%s: cannot write\n", folder.c_str());
      return 1;
    }
  }
  return 0;
}
