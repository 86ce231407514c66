// What a call writes may share memory with nothing else: every pair of arrays of every op, and
// arrays so long that their ends wrap around.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "op_arguments.hpp"
#include "ops_tested.hpp"

namespace tessera::test {
namespace {

constexpr std::int64_t kLongest = std::numeric_limits<std::int64_t>::max();
constexpr std::size_t kWorkspaceBytes = 1 << 19;

/// An array of the call under test, or its workspace.
struct Array {
  std::string name;
  TensorView* view;  // null: the workspace
  bool is_written;
  bool is_flat;
  std::byte* begin;  // where it lies unless a test moves it

  std::size_t width() const { return view == nullptr ? 1 : element_bytes(*view); }
  std::size_t bytes() const { return view == nullptr ? kWorkspaceBytes : bytes_of(*view); }
};

std::byte* align_down(std::byte* address, std::size_t alignment) {
  return address - reinterpret_cast<std::uintptr_t>(address) % alignment;
}

/// Arrays lie far apart in one piece of memory, in the order in which messages name them: outputs,
/// inputs, workspace.
class Overlap : public OpTest {
 protected:
  Overlap() : made_(full_arguments(contract())) {
    context_.num_threads = 1;  // some ops take workspace for each thread
    for (const bool is_output : {true, false}) {
      for (const Argument& argument : op().schema->arguments) {
        if (!argument.is_array() || argument.is_output() != is_output) continue;
        arrays_.push_back({argument.name, &view_in(made_.args.get(), argument), is_output,
                           argument.extents.ndim == 0, nullptr});
      }
    }
    arrays_.push_back({"workspace", nullptr, true, true, nullptr});
    std::size_t region = kWorkspaceBytes;
    for (const Array& array : arrays_) region = std::max(region, array.bytes());
    region = (region + 63) / 64 * 64;
    memory_.assign((2 * arrays_.size() + 4) * region, std::byte{0});
    std::byte* next = align_down(memory_.data() + region + 64, 64);
    for (Array& array : arrays_) {
      array.begin = next;
      next += 2 * region;
      if (array.view != nullptr && !array.is_written) {
        std::copy_n(static_cast<const std::byte*>(array.view->data), array.bytes(), array.begin);
      }
      move(array, array.begin);
    }
  }

  void move(const Array& array, std::byte* to) {
    if (array.view == nullptr) {
      context_.workspace = {to, array.bytes()};
    } else {
      array.view->data = to;
    }
  }

  Status call() { return op().call(made_.args.get(), context_); }

  void expect_refused(const std::string& message) {
    const std::vector<std::byte> before = memory_;
    const Status status = call();
    EXPECT_EQ(status.code(), StatusCode::kInvalidValue);
    EXPECT_EQ(status.message(), name() + ": " + message);
    EXPECT_TRUE(memory_ == before);
  }

  contract::CaseArguments made_;
  std::vector<Array> arrays_;
  std::vector<std::byte> memory_;
  Context context_;
};

TESSERA_FOR_ALL_OPS(Overlap);

TEST_P(Overlap, IsRefusedOfEveryPairThatIsWritten) {
  const Status good = call();
  ASSERT_TRUE(good.ok()) << good.message();
  for (std::size_t i = 0; i < arrays_.size(); ++i) {
    for (std::size_t j = i + 1; j < arrays_.size(); ++j) {
      const Array& first = arrays_[i];
      const Array& second = arrays_[j];
      SCOPED_TRACE(first.name + ", " + second.name);
      const bool is_first = first.is_written;
      const std::string message = (is_first ? first.name : second.name) +
                                  ": expected memory of its own, got memory shared with " +
                                  (is_first ? second.name : first.name);
      // The same start, the last element of the first, and the first element of the first.
      for (std::byte* const to :
           {first.begin, align_down(first.begin + first.bytes() - 1, second.width()),
            align_down(first.begin + second.width() - second.bytes(), second.width())}) {
        move(second, to);
        if (first.is_written || second.is_written) {
          expect_refused(message);
        } else {
          EXPECT_TRUE(call().ok());
        }
      }
      // Side by side.
      move(second, align_down(first.begin - second.bytes(), second.width()));
      EXPECT_TRUE(call().ok());
      move(second, second.begin);
    }
  }
}

TEST_P(Overlap, ArraysThatEndBeyondTheAddressSpaceAreRefused) {
  // The lengths in between are those whose bytes are a few when they wrap around.
  for (const std::int64_t length :
       {kLongest - 1, (std::int64_t{1} << 62) + 64, (std::int64_t{1} << 62) - 2}) {
    for (const Array& array : arrays_) {
      if (array.view == nullptr || !array.is_flat) continue;
      const Argument& argument = argument_named(*op().schema, array.name);
      const Length& asked = argument.extents.lengths[0];
      if (asked.bound != Length::Bound::kAtLeast) continue;
      const std::int64_t good = array.view->num_elements;
      array.view->num_elements = length;
      const std::vector<std::byte> before = memory_;
      const Status status = call();
      EXPECT_EQ(status.code(), StatusCode::kInvalidValue);
      EXPECT_TRUE(status.message().starts_with(name() + ": " + array.name + ".num_elements: "));
      EXPECT_TRUE(memory_ == before);
      // As many rows as before, for what an op may ask of them.
      array.view->num_elements = length / good * good;
      expect_refused(array.name + ".num_elements: expected an end within the address space, got " +
                     std::to_string(array.view->num_elements));
      array.view->num_elements = good;
    }
  }
}

TEST_P(Overlap, AWorkspaceOfNoMemoryIsRefused) {
  // The workspace has one byte more than the op asks for, because some ops ask for none.
  context_.workspace = {static_cast<std::byte*>(nullptr), arrays_.back().bytes() + 1};
  expect_refused("workspace: expected memory, got a null pointer");
}

TEST_P(Overlap, AWorkspaceThatEndsBeyondTheAddressSpaceIsRefused) {
  std::byte* const begin = arrays_.back().begin;
  const std::size_t last =
      std::numeric_limits<std::size_t>::max() - reinterpret_cast<std::uintptr_t>(begin);
  for (const std::size_t size : {last + 1, std::numeric_limits<std::size_t>::max()}) {
    context_.workspace = {begin, size};
    expect_refused("workspace: expected an end within the address space, got " +
                   std::to_string(size) + " bytes");
  }
  // All behind the first output, up to the very end.
  context_.workspace = {arrays_[0].begin + arrays_[0].bytes(), last};
  const std::string second = arrays_[1].is_written ? arrays_[1].name : "workspace";
  expect_refused(second + ": expected memory of its own, got memory shared with " +
                 (arrays_[1].is_written ? "workspace" : arrays_[1].name));
}

}  // namespace
}  // namespace tessera::test
