// Usage: write_fuzz_corpus <folder>
// Writes the smaller cases of all ops, from their tables and random ones, as fuzz inputs.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "contracts.hpp"
#include "fuzz_input.hpp"
#include "op_arguments.hpp"

namespace {

using namespace tessera;
using namespace tessera::fuzz;

constexpr std::int64_t kMaxElements = 12000;
constexpr std::uint64_t kRandomCasesEach = 40;

template <typename Part>
void append(const Part& part, std::vector<char>* bytes) {
  const auto* const begin = reinterpret_cast<const char*>(&part);
  bytes->insert(bytes->end(), begin, begin + sizeof(part));
}

ArrayPart part_of(const Argument& argument, TensorView view, const OpSizes& sizes) {
  ArrayPart part{};
  if (!view.given()) return part;
  part.flags = kGiven;
  while (dtypes::set_of(dtypes::kAll[part.dtype].dtype) != dtypes::set_of(view.dtype)) ++part.dtype;
  for (int axis = 0; axis < test::num_lengths(argument); ++axis) {
    const Length& length = argument.extents.lengths[axis];
    const std::int64_t found = test::length_in(view, argument, axis);
    const std::int64_t wanted = length.symbol < 0 ? length.constant : sizes.symbols[length.symbol];
    part.lengths[axis] = static_cast<std::int32_t>(found);
    if (is_free(length) || found == wanted) continue;
    part.extra = static_cast<std::int16_t>(found - wanted);
    part.axis = static_cast<std::uint8_t>(axis);
  }
  return part;
}

std::vector<char> input_of(std::uint8_t number, const contract::CaseArguments& made) {
  const OpEntry& op = all_ops()[number];
  OpSizes sizes;
  (void)op.sizes(made.args.get(), Context{}, &sizes);
  std::vector<char> bytes;
  FuzzHead head{};
  head.op = number;
  head.num_threads = 2;
  head.moved = head.workspace_in = kNone;
  append(head, &bytes);
  for (const Argument& argument : op.schema->arguments) {
    if (argument.is_array()) {
      append(part_of(argument, view_in(made.args.get(), argument), sizes), &bytes);
    } else {
      append(NumberPart{number_in(made.args.get(), argument)}, &bytes);
    }
  }
  for (const Argument& argument : op.schema->arguments) {
    if (!argument.is_array() || argument.is_output()) continue;
    const TensorView& view = view_in(made.args.get(), argument);
    const auto* const begin = static_cast<const char*>(view.data);
    bytes.insert(bytes.end(), begin, begin + test::bytes_of(view));
  }
  return bytes;
}

/// Ends the program where it cannot.
void write(const std::filesystem::path& path, const std::vector<char>& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (file.flush()) return;
  std::fprintf(stderr, "%s: cannot write\n", path.c_str());
  std::exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s <folder>\n", argv[0]);
    return 2;
  }
  const std::filesystem::path folder = argv[1];
  std::filesystem::create_directories(folder);
  for (std::uint8_t number = 0; number < all_ops().size(); ++number) {
    const std::string op(all_ops()[number].schema->op);
    const contract::OpContract& contract = *contract::find_contract(op);
    std::vector<contract::CaseArguments> cases = {test::full_arguments(contract)};
    for (const std::string& name : contract.case_names()) {
      cases.push_back(contract.arguments(name, 1));
    }
    for (std::uint64_t seed = 0; seed < kRandomCasesEach; ++seed) {
      cases.push_back(contract.arguments(contract::random_case_name(seed, 300), seed));
    }
    int index = 0;
    for (const contract::CaseArguments& made : cases) {
      if (test::num_elements_of(made) > kMaxElements) continue;
      write(folder / (op + std::to_string(index++)), input_of(number, made));
    }
  }
  return 0;
}
