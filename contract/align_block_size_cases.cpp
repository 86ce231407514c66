#include "align_block_size_cases.hpp"

#include <algorithm>
#include <string_view>

#include "random_case.hpp"
#include "random_numbers.hpp"

namespace tessera::contract {
namespace {

using Case = AlignBlockSizeCase;
using enum IdDistribution;
using enum MapKind;

constexpr DLDataType kInt8{kDLInt, 8, 1};
constexpr DLDataType kUint8{kDLUInt, 8, 1};
constexpr DLDataType kInt16{kDLInt, 16, 1};
constexpr DLDataType kUint16{kDLUInt, 16, 1};
constexpr DLDataType kInt32{kDLInt, 32, 1};
constexpr DLDataType kUint32{kDLUInt, 32, 1};
constexpr DLDataType kInt64{kDLInt, 64, 1};
constexpr DLDataType kUint64{kDLUInt, 64, 1};
constexpr DLDataType kDtypes[] = {kInt8, kUint8, kInt16, kUint16, kInt32, kUint32, kInt64, kUint64};

constexpr std::string_view kDistributionNames[] = {"uniform", "zipf", "one_expert", "sorted"};
constexpr std::string_view kBrokenNames[] = {"none", "some", "all"};
constexpr std::string_view kMapNames[] = {"none",       "identity", "half_remote",
                                          "all_remote", "broken",   "merged"};

/// The shapes that users run, named tokens x experts x top_k / block_size.
Case served(std::int64_t num_tokens, std::int64_t num_experts, std::int64_t top_k,
            std::int64_t block_size, IdDistribution distribution = kUniform) {
  Case c;
  c.name = std::to_string(num_tokens) + "x" + std::to_string(num_experts) + "x" +
           std::to_string(top_k) + "/" + std::to_string(block_size);
  if (distribution == kZipf) c.name += "/zipf";
  c.num_tokens = num_tokens;
  c.num_experts = num_experts;
  c.top_k = top_k;
  c.block_size = block_size;
  c.distribution = distribution;
  c.benchmark = true;
  return c;
}

// clang-format off
std::vector<Case> make_table() {
  std::vector<Case> table = {
      served(1, 8, 2, 16),
      served(1, 64, 2, 16),
      served(16, 64, 2, 16),
      served(16, 256, 8, 16),
      served(64, 256, 8, 16),
      served(256, 64, 2, 64),
      served(256, 256, 8, 64),
      served(1024, 256, 8, 64),
      served(4096, 64, 2, 128),
      served(4096, 64, 2, 128, kZipf),
      served(4096, 256, 8, 128),
      served(4096, 256, 8, 128, kZipf),
      served(4096, 512, 8, 128),
      served(16384, 256, 8, 128),
      served(65536, 64, 2, 128),
      served(65536, 8, 8, 128),
      served(65536, 256, 8, 128),
      served(65536, 256, 8, 128, kZipf),
      served(262144, 64, 8, 128),
      served(262144, 256, 8, 128),
      served(262144, 256, 8, 128, kZipf),
      served(262144, 512, 8, 128),

      {.name = "no_tokens", .num_experts = 8, .top_k = 2, .block_size = 16},
      {.name = "no_tokens_padded", .num_experts = 8, .block_size = 16, .pad_sorted_ids = true, .extra_length = 5},
      {.name = "no_tokens_int64_map", .num_experts = 3, .block_size = 4, .dtype = kInt64, .map = kHalfRemote, .extra_length = 1},
      {.name = "one_id", .num_tokens = 1, .num_experts = 4, .block_size = 16},
      {.name = "one_id_one_expert_block_1", .num_tokens = 1},
      {.name = "one_broken_id", .num_tokens = 1, .num_experts = 4, .block_size = 16, .broken = BrokenIds::kAll},
      {.name = "one_expert", .num_tokens = 100, .block_size = 16, .broken = BrokenIds::kSome},
      {.name = "block_1", .num_tokens = 100, .num_experts = 16, .top_k = 4, .broken = BrokenIds::kSome},
      {.name = "block_7", .num_tokens = 100, .num_experts = 13, .top_k = 3, .block_size = 7, .broken = BrokenIds::kSome},
      {.name = "block_7_padded", .num_tokens = 100, .num_experts = 13, .top_k = 3, .block_size = 7, .pad_sorted_ids = true},
      {.name = "block_longer_than_ids", .num_tokens = 5, .num_experts = 6, .top_k = 2, .block_size = 100000},
      {.name = "fewer_ids_than_experts", .num_tokens = 3, .num_experts = 1000, .top_k = 2, .block_size = 33, .pad_sorted_ids = true},
      {.name = "top_k_above_experts", .num_tokens = 50, .num_experts = 3, .top_k = 8, .block_size = 16},
      {.name = "top_k_is_experts", .num_tokens = 50, .num_experts = 8, .top_k = 8, .block_size = 16, .distribution = kZipf},
      {.name = "full_blocks", .num_tokens = 64, .num_experts = 4, .top_k = 4, .block_size = 64},

      {.name = "int8", .num_tokens = 200, .num_experts = 100, .top_k = 4, .block_size = 16, .dtype = kInt8, .broken = BrokenIds::kSome},
      {.name = "uint8", .num_tokens = 200, .num_experts = 200, .top_k = 4, .block_size = 16, .dtype = kUint8, .broken = BrokenIds::kSome},
      {.name = "int16", .num_tokens = 200, .num_experts = 300, .top_k = 4, .block_size = 16, .dtype = kInt16, .broken = BrokenIds::kSome},
      {.name = "uint16", .num_tokens = 200, .num_experts = 300, .top_k = 4, .block_size = 16, .dtype = kUint16, .broken = BrokenIds::kSome},
      {.name = "uint32", .num_tokens = 200, .num_experts = 64, .top_k = 4, .block_size = 16, .dtype = kUint32, .broken = BrokenIds::kSome},
      {.name = "int64", .num_tokens = 200, .num_experts = 64, .top_k = 4, .block_size = 16, .dtype = kInt64, .broken = BrokenIds::kSome},
      {.name = "uint64", .num_tokens = 200, .num_experts = 64, .top_k = 4, .block_size = 16, .dtype = kUint64, .broken = BrokenIds::kSome},
      {.name = "int8_more_experts_than_values", .num_tokens = 300, .num_experts = 300, .top_k = 2, .block_size = 8, .dtype = kInt8, .broken = BrokenIds::kSome},
      {.name = "uint8_more_experts_than_values", .num_tokens = 300, .num_experts = 300, .top_k = 2, .block_size = 8, .dtype = kUint8, .broken = BrokenIds::kSome},
      {.name = "uint16_65536_experts", .num_tokens = 3000, .num_experts = 65536, .top_k = 4, .block_size = 16, .dtype = kUint16},
      {.name = "int32_65536_experts", .num_tokens = 3000, .num_experts = 65536, .top_k = 4, .block_size = 16, .distribution = kZipf, .broken = BrokenIds::kSome},
      {.name = "int64_65536_experts_many_ids", .num_tokens = 40000, .num_experts = 65536, .top_k = 4, .block_size = 2, .dtype = kInt64},

      {.name = "all_broken", .num_tokens = 500, .num_experts = 16, .top_k = 2, .block_size = 16, .broken = BrokenIds::kAll},
      {.name = "all_broken_int64", .num_tokens = 500, .num_experts = 16, .top_k = 2, .block_size = 16, .dtype = kInt64, .broken = BrokenIds::kAll, .tail_expert = 0},
      {.name = "hot_expert", .num_tokens = 1000, .num_experts = 32, .top_k = 1, .block_size = 64, .distribution = kOneExpert},
      {.name = "hot_expert_top_2", .num_tokens = 1000, .num_experts = 32, .top_k = 2, .block_size = 64, .distribution = kOneExpert, .broken = BrokenIds::kSome},
      {.name = "sorted_ids", .num_tokens = 1000, .num_experts = 32, .top_k = 2, .block_size = 64, .distribution = kSorted},
      {.name = "long_outputs", .num_tokens = 100, .num_experts = 16, .top_k = 2, .block_size = 16, .extra_length = 1000},
      {.name = "long_outputs_tail_0", .num_tokens = 100, .num_experts = 16, .top_k = 2, .block_size = 16, .tail_expert = 0, .extra_length = 3},
      {.name = "tail_smallest_int32", .num_tokens = 100, .num_experts = 16, .top_k = 2, .block_size = 16, .pad_sorted_ids = true, .tail_expert = -2147483647 - 1},

      {.name = "map_identity", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .map = kIdentity},
      {.name = "map_identity_local", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .broken = BrokenIds::kSome, .map = kIdentity, .ignore_invalid_experts = true},
      {.name = "map_half_remote", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .broken = BrokenIds::kSome, .map = kHalfRemote},
      {.name = "map_half_remote_local", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .broken = BrokenIds::kSome, .map = kHalfRemote, .ignore_invalid_experts = true},
      {.name = "map_all_remote", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .map = kAllRemote, .tail_expert = -7},
      {.name = "map_all_remote_local", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .map = kAllRemote, .ignore_invalid_experts = true, .tail_expert = -7},
      {.name = "map_broken", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .dtype = kInt64, .broken = BrokenIds::kSome, .map = kBroken},
      {.name = "map_broken_local", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .dtype = kUint8, .broken = BrokenIds::kSome, .map = kBroken, .ignore_invalid_experts = true},
      {.name = "map_merged", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .map = kMerged},
      {.name = "map_merged_local", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .map = kMerged, .ignore_invalid_experts = true, .pad_sorted_ids = true},
      {.name = "ignore_without_map", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .broken = BrokenIds::kSome, .ignore_invalid_experts = true},

      {.name = "filtered", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .broken = BrokenIds::kSome, .filtered_group = true},
      {.name = "filtered_few_ids", .num_tokens = 5, .num_experts = 4, .top_k = 2, .block_size = 4, .broken = BrokenIds::kAll, .filtered_group = true, .statistics = true, .validation = true},
      {.name = "filtered_no_tokens", .num_experts = 8, .top_k = 2, .block_size = 16, .filtered_group = true, .statistics = true, .validation = true, .extra_length = 3},
      {.name = "filtered_all_broken", .num_tokens = 500, .num_experts = 16, .top_k = 2, .block_size = 16, .broken = BrokenIds::kAll, .filtered_group = true, .statistics = true, .validation = true},
      {.name = "filtered_unsigned", .num_tokens = 200, .num_experts = 64, .top_k = 4, .block_size = 16, .dtype = kUint64, .broken = BrokenIds::kSome, .filtered_group = true, .statistics = true, .validation = true},
      {.name = "filtered_int8", .num_tokens = 200, .num_experts = 100, .top_k = 4, .block_size = 16, .dtype = kInt8, .broken = BrokenIds::kSome, .pad_sorted_ids = true, .filtered_group = true},
      {.name = "filtered_int64_map", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .dtype = kInt64, .broken = BrokenIds::kSome, .map = kHalfRemote, .filtered_group = true},
      {.name = "filtered_map_local", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .broken = BrokenIds::kSome, .map = kBroken, .ignore_invalid_experts = true, .filtered_group = true, .statistics = true, .validation = true},
      {.name = "filtered_64_groups", .num_tokens = 600, .num_experts = 63, .top_k = 2, .block_size = 8, .dtype = kInt16, .broken = BrokenIds::kSome, .filtered_group = true},
      {.name = "filtered_65536_experts", .num_tokens = 3000, .num_experts = 65536, .top_k = 4, .block_size = 16, .broken = BrokenIds::kSome, .filtered_group = true, .statistics = true},
      {.name = "map_tail_zero", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .map = kHalfRemote, .tail_expert = 0, .map_tail = true, .extra_length = 9},
      {.name = "map_tail_remote", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .map = kBroken, .ignore_invalid_experts = true, .tail_expert = 7, .map_tail = true},
      {.name = "map_tail_no_expert", .num_tokens = 3, .num_experts = 24, .top_k = 3, .block_size = 16, .map = kIdentity, .tail_expert = 24, .map_tail = true},
      {.name = "map_tail_without_map", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .tail_expert = 5, .map_tail = true},
      {.name = "statistics", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .distribution = kZipf, .broken = BrokenIds::kSome, .statistics = true},
      {.name = "statistics_map_local", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .map = kMerged, .ignore_invalid_experts = true, .statistics = true},
      {.name = "statistics_one_expert", .num_tokens = 1000, .num_experts = 7, .block_size = 64, .distribution = kOneExpert, .statistics = true},
      {.name = "validation", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .broken = BrokenIds::kSome, .validation = true},
      {.name = "validation_all_good", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .map = kHalfRemote, .validation = true},
      {.name = "validation_map", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .dtype = kInt64, .broken = BrokenIds::kSome, .map = kBroken, .validation = true},
      {.name = "validation_uint8", .num_tokens = 200, .num_experts = 100, .top_k = 4, .block_size = 16, .dtype = kUint8, .broken = BrokenIds::kAll, .map = kBroken, .ignore_invalid_experts = true, .validation = true},

      // Enough ids that every host implementation spreads the work over its threads.
      {.name = "many_broken_ids", .num_tokens = 100001, .num_experts = 96, .top_k = 3, .block_size = 48, .broken = BrokenIds::kSome, .extra_length = 17},
      {.name = "many_ids_map_local", .num_tokens = 100001, .num_experts = 96, .top_k = 3, .block_size = 48, .dtype = kInt64, .map = kMerged, .ignore_invalid_experts = true},
      {.name = "many_ids_one_expert", .num_tokens = 300007, .num_experts = 5, .block_size = 128, .dtype = kUint8, .distribution = kOneExpert},
      {.name = "many_sorted_ids", .num_tokens = 150000, .num_experts = 1000, .top_k = 2, .block_size = 32, .dtype = kInt16, .distribution = kSorted, .map = kHalfRemote},
      {.name = "many_filtered_ids", .num_tokens = 100001, .num_experts = 96, .top_k = 3, .block_size = 48, .broken = BrokenIds::kAll, .filtered_group = true, .statistics = true, .validation = true, .extra_length = 17},
      {.name = "many_ids_filtered_local", .num_tokens = 150000, .num_experts = 1000, .top_k = 2, .block_size = 32, .dtype = kInt64, .broken = BrokenIds::kSome, .map = kBroken, .ignore_invalid_experts = true, .tail_expert = 0, .map_tail = true, .filtered_group = true, .statistics = true, .validation = true},
  };
  return table;
}
// clang-format on

/// Writes one JSON object, field by field.
class JsonObject {
 public:
  void add(std::string_view key, std::string_view value) { add_raw(key, value, "\""); }
  void add(std::string_view key, std::int64_t value) { add_raw(key, std::to_string(value), ""); }
  void add_flag(std::string_view key, bool value) { add_raw(key, value ? "true" : "false", ""); }

  std::string text() const { return text_ + '}'; }

 private:
  void add_raw(std::string_view key, std::string_view value, std::string_view quote) {
    text_.append(text_.size() == 1 ? "\"" : ", \"").append(key).append("\": ");
    text_.append(quote).append(value).append(quote);
  }

  std::string text_ = "{";
};

/// Draws some arguments of a random case again, from as much of their range as memory allows: the
/// first draw covers typical use. It comes last, so that other cases do not change.
void widen(Case* c, std::int64_t num_ids, RandomNumbers& random) {
  constexpr std::int64_t kMaxPadding = std::int64_t{1} << 18;
  // Elements that some implementations add to their outputs, whatever the ids.
  constexpr std::int64_t kMaxPaddingOfAllExperts = std::int64_t{1} << 26;
  if (random.one_in(32)) c->num_experts = 1 + random.magnitude_below(std::int64_t{1} << 20);
  if (random.one_in(8)) {
    // Small enough that drawing experts until they differ ends soon.
    const std::int64_t top_k = 1 + random.magnitude_below(256);
    if (2 * top_k <= nameable_experts(*c)) c->top_k = top_k;
    c->num_tokens = num_ids / c->top_k;
  }
  if (random.one_in(4)) {
    const std::int64_t num_groups = std::min(num_ids, c->num_experts + 1) + 1;
    c->block_size = 1 + random.magnitude_below(std::min(kMaxPadding / num_groups + 1,
                                                        kMaxPaddingOfAllExperts / c->num_experts));
  }
  if (random.one_in(4)) c->tail_expert = any_int32(random);
  if (random.one_in(8)) c->extra_length = random.magnitude_below(std::int64_t{1} << 16);
}

}  // namespace

std::span<const AlignBlockSizeCase> align_block_size_cases() {
  static const std::vector<Case> table = make_table();
  return table;
}

AlignBlockSizeCase random_align_block_size_case(std::uint64_t seed, std::int64_t max_ids) {
  RandomNumbers random(seed);
  Case c;
  c.name = random_case_name(seed, max_ids);
  const std::int64_t num_ids = random.magnitude_below(max_ids + 1);
  c.top_k = 1 + random.magnitude_below(16);
  c.num_tokens = num_ids / c.top_k;
  c.num_experts = random.one_in(64) ? 65536 : 1 + random.magnitude_below(1024);
  c.block_size = random.one_in(2) ? std::int64_t{1} << random.below(9) : 1 + random.below(300);
  c.dtype = kDtypes[random.below(std::ssize(kDtypes))];
  c.distribution = static_cast<IdDistribution>(random.below(std::ssize(kDistributionNames)));
  // Drawn twice as often as the rest: most callers have neither broken ids nor a map.
  c.broken = random.one_in(2) ? BrokenIds::kNone
                              : static_cast<BrokenIds>(random.below(std::ssize(kBrokenNames)));
  c.map = random.one_in(2) ? kNone : static_cast<MapKind>(random.below(std::ssize(kMapNames)));
  c.ignore_invalid_experts = random.one_in(2);
  c.pad_sorted_ids = random.one_in(2);
  c.tail_expert = random.one_in(2) ? -1 : static_cast<std::int32_t>(random.below(1 << 20)) - 1000;
  c.extra_length = random.one_in(2) ? 0 : random.below(300);
  c.map_tail = random.one_in(4);
  if (c.map_tail && random.one_in(2)) {
    c.tail_expert = static_cast<std::int32_t>(random.below(c.num_experts));
  }
  c.filtered_group = random.one_in(4);
  c.statistics = random.one_in(2);
  c.validation = random.one_in(2);
  widen(&c, num_ids, random);
  return c;
}

std::optional<AlignBlockSizeCase> find_case(std::string_view name) {
  if (const auto random = find_random_case(name)) {
    return random_align_block_size_case(random->seed, random->size);
  }
  const auto table = align_block_size_cases();
  const auto found =
      std::find_if(table.begin(), table.end(), [&](const Case& c) { return c.name == name; });
  return found == table.end() ? std::nullopt : std::optional<Case>(*found);
}

std::string to_json(const AlignBlockSizeCase& c) {
  std::string dtype = c.dtype.code == kDLInt ? "int" : "uint";
  dtype += std::to_string(c.dtype.bits);
  JsonObject json;
  json.add("name", c.name);
  json.add("num_ids", c.num_tokens * c.top_k);
  json.add("num_tokens", c.num_tokens);
  json.add("num_experts", c.num_experts);
  json.add("top_k", c.top_k);
  json.add("block_size", c.block_size);
  json.add("dtype", dtype);
  json.add("distribution", kDistributionNames[static_cast<int>(c.distribution)]);
  json.add("broken", kBrokenNames[static_cast<int>(c.broken)]);
  json.add("map", kMapNames[static_cast<int>(c.map)]);
  json.add_flag("ignore_invalid_experts", c.ignore_invalid_experts);
  json.add_flag("pad_sorted_ids", c.pad_sorted_ids);
  json.add("tail_expert", c.tail_expert);
  json.add_flag("map_tail", c.map_tail);
  json.add_flag("filtered_group", c.filtered_group);
  json.add_flag("statistics", c.statistics);
  json.add_flag("validation", c.validation);
  json.add("extra_length", c.extra_length);
  json.add_flag("benchmark", c.benchmark);
  return json.text();
}

std::string align_block_size_cases_json() {
  std::string text = "[";
  for (const Case& c : align_block_size_cases()) {
    text.append(text.size() == 1 ? "" : ",\n ").append(to_json(c));
  }
  return text + "]";
}

}  // namespace tessera::contract
