// Usage: write_fuzz_corpus <folder>
// Writes the smaller cases of the tables as fuzz inputs, one file each, into a folder for each op.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "align_block_size_cases.hpp"
#include "fuzz_input.hpp"
#include "lora_align_block_size_cases.hpp"

namespace {

using tessera::contract::AlignBlockSizeCase;

constexpr std::uint8_t kOwnMemory = 128;  // the number of no array

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
  header.workspace.array = kOwnMemory;
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

tessera::fuzz::LoraFuzzHeader header_of(const tessera::contract::LoraAlignBlockSizeCase& c) {
  const AlignBlockSizeCase& pairs = c.pairs;
  tessera::fuzz::LoraFuzzHeader header{};
  header.block_size = pairs.block_size;
  header.num_experts = pairs.num_experts;
  header.max_loras = c.max_loras;
  header.top_k = pairs.top_k;
  header.num_ids = pairs.num_tokens * pairs.top_k;
  header.tail_expert = pairs.tail_expert;
  header.workspace.array = kOwnMemory;
  header.num_lora_ids = 3;
  header.given = pairs.map == tessera::contract::MapKind::kNone ? 3 : 4;
  header.dtype = dtype_number(pairs.dtype);
  return header;
}

class Corpus {
 public:
  explicit Corpus(std::filesystem::path folder) : folder_(std::move(folder)) {
    std::filesystem::create_directories(folder_);
  }

  /// Ends the program where it cannot.
  void write(std::initializer_list<std::span<const std::byte>> parts) {
    const std::filesystem::path path = folder_ / ("case" + std::to_string(index_++));
    std::ofstream file(path, std::ios::binary);
    for (const std::span<const std::byte> part : parts) {
      file.write(reinterpret_cast<const char*>(part.data()),
                 static_cast<std::streamsize>(part.size()));
    }
    if (file.flush()) return;
    std::fprintf(stderr, "%s: cannot write\n", path.c_str());
    std::exit(1);
  }

 private:
  std::filesystem::path folder_;
  int index_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s <folder>\n", argv[0]);
    return 2;
  }
  const std::filesystem::path folder = argv[1];
  const auto is_small = [](const AlignBlockSizeCase& c) {
    return c.num_tokens * c.top_k <= 5000 && c.num_experts <= tessera::fuzz::kMaxExperts;
  };
  const auto bytes_of = [](const auto& values) { return std::as_bytes(std::span(values)); };
  Corpus align(folder / "align_block_size");
  for (const AlignBlockSizeCase& c : tessera::contract::align_block_size_cases()) {
    if (!is_small(c)) continue;
    const auto header = header_of(c);
    const auto inputs = tessera::contract::make_inputs(c, 1);
    align.write({std::as_bytes(std::span(&header, 1)),
                 bytes_of(inputs.expert_map.value_or(std::vector<std::int32_t>())),
                 bytes_of(inputs.topk_ids)});
  }
  Corpus lora(folder / "lora_align_block_size");
  for (const auto& c : tessera::contract::lora_align_block_size_cases()) {
    if (!is_small(c.pairs)) continue;
    const auto header = header_of(c);
    lora.write({std::as_bytes(std::span(&header, 1)),
                bytes_of(tessera::contract::make_inputs(c, 1).pairs.topk_ids)});
  }
  return 0;
}
