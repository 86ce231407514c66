// Fuzzes all ops through the C API on guarded memory: whatever the bytes say, the call is refused
// and writes nothing, or its outputs satisfy the contract. Before the call, the contract's checker
// decides which of the two must happen: it finds broken inputs and outputs of the wrong size by
// itself. The C API must return the same sizes and messages as the C++ API.
//
//   scripts/fuzz.sh 30
//
// builds it and runs it for 30 seconds. A finding is replayed by giving its file to the program,
// build/fuzz/tests/fuzz/fuzz_ops. TESSERA_IMPL picks the implementation of ops that have several.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "contracts.hpp"
#include "fuzz_input.hpp"
#include "guarded_buffer.hpp"
#include "named_call.hpp"
#include "op_arguments.hpp"
#include "tessera/ops.hpp"

namespace {

using namespace tessera;
using namespace tessera::fuzz;
using test::GuardedBuffer;
using test::NamedCall;

/// Larger problems are only asked for their sizes: the fuzzer would spend its time on memory, and
/// the checkers of some ops go through all numbers for each other.
constexpr std::int64_t kMaxElements = 1 << 18;

/// The largest product of all lengths of inputs, which bounds the time of ops that multiply
/// matrices.
constexpr std::int64_t kMaxSteps = 1 << 24;

void require(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "%s\n", what.c_str());
  std::abort();
}

/// What is left of an input.
class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : left_(data, size) {}

  /// Zeros where the bytes do not suffice.
  template <typename Part>
  Part take() {
    Part part{};
    const std::size_t taken = std::min(left_.size(), sizeof(Part));
    if (taken > 0) std::memcpy(&part, left_.data(), taken);
    left_ = left_.subspan(taken);
    return part;
  }

  /// With all bytes that are left, over and over; each call goes on where the last one ended.
  void fill(std::span<std::byte> memory) {
    for (std::byte& value : memory) {
      value = left_.empty() ? std::byte{} : std::byte{left_[next_++ % left_.size()]};
    }
  }

 private:
  std::span<const std::uint8_t> left_;
  std::size_t next_ = 0;
};

DLDataType dtype_of(std::uint8_t number) {
  constexpr DLDataType kOfNoOp[] = {{6, 8, 1}, {kDLInt, 4, 1}, {kDLInt, 32, 2}};
  const std::size_t index = number % (std::size(dtypes::kAll) + std::size(kOfNoOp));
  return index < std::size(dtypes::kAll) ? dtypes::kAll[index].dtype
                                         : kOfNoOp[index - std::size(dtypes::kAll)];
}

/// An array of the call.
struct Array {
  const Argument* argument;
  ArrayPart part;
  std::unique_ptr<GuardedBuffer<std::byte>> buffer;  // null: not given
  std::vector<std::byte> contents;                   // of an input

  bool has(ArrayFlags flag) const { return (part.flags & flag) != 0; }
  bool is_malformed() const {
    return has(kGiven) && part.malformation >= kUnnamed && part.malformation <= kHasNumber;
  }
};

/// A number or flag as the input has it.
struct Number {
  const Argument* argument;
  std::int64_t value;
};

class Call {
 public:
  explicit Call(Bytes bytes) : bytes_(bytes), head_(bytes_.take<FuzzHead>()) {
    op_ = &all_ops()[head_.op % all_ops().size()];
    contract_ = contract::find_contract(op_->schema->op);
    args_.resize(op_->args_bytes);
    std::memcpy(args_.data(), op_->default_args, op_->args_bytes);
    context_.num_threads = head_.num_threads % 5;
    for (const Argument& argument : op_->schema->arguments) {
      if (argument.is_array()) {
        arrays_.push_back({&argument, bytes_.take<ArrayPart>(), nullptr, {}});
      } else {
        const std::int64_t value = bytes_.take<NumberPart>().value;
        numbers_.push_back({&argument, value});
        set_number(args(), argument, value);
      }
    }
  }

  void run() {
    for (const Array& array : arrays_) set_view(array, nullptr);
    OpSizes sizes;
    const Status asked = op_->sizes(args(), context_, &sizes);
    check_query(asked, sizes);
    if (!asked.ok() || !is_small(sizes)) return;
    for (Array& array : arrays_) allocate(array, sizes.symbols);
    move_array();
    place_workspace(sizes.workspace_bytes);
    check_call(sizes.workspace_bytes);
  }

 private:
  void* args() { return args_.data(); }
  TensorView& view(const Array& array) { return view_in(args(), *array.argument); }

  void require_form(const Status& refusal) {
    require(refusal.message().starts_with(std::string(op_->schema->op) + ": "),
            "a refusal without its form: " + refusal.message());
  }

  /// What the C API is to refuse by itself.
  bool is_malformed() const {
    return std::ranges::any_of(arrays_, &Array::is_malformed) ||
           std::ranges::any_of(numbers_, [](const Number& number) {
             return number.argument->kind == Argument::Kind::kInt32 &&
                    number.value != static_cast<std::int32_t>(number.value);
           });
  }

  /// The call for the C API, with what an argument struct cannot say.
  std::unique_ptr<NamedCall> named() {
    auto call = std::make_unique<NamedCall>(*op_, args(), context_);
    for (const Number& number : numbers_) {
      test::set_value(number.value, *number.argument, &call->at(number.argument->name));
    }
    std::vector<tessera_argument> twice;
    for (const Array& array : arrays_) {
      if (!array.is_malformed()) continue;
      tessera_argument& argument = call->at(array.argument->name);
      switch (array.part.malformation) {
        case kUnnamed:
          argument.name = nullptr;
          break;
        case kUnknown:
          argument.name = "unknown";
          break;
        case kNamedTwice:
          twice.push_back(argument);
          break;
        case kHasManyAxes:
          argument.ndim = TESSERA_MAX_AXES + 1 + array.part.axis;
          break;
        case kHasNumber:
          argument.value = 1;
          break;
      }
    }
    call->arguments.insert(call->arguments.end(), twice.begin(), twice.end());
    call->args.arguments = call->arguments.data();
    call->args.num_arguments = call->arguments.size();
    return call;
  }

  /// `expected` and `sizes` are what the C++ API answers.
  void check_query(const Status& expected, const OpSizes& sizes) {
    const std::unique_ptr<NamedCall> call = named();
    constexpr std::size_t kUnwritten = 12345;
    call->args.workspace_bytes = kUnwritten;
    const Status status = call->query();
    if (status.ok()) {
      require(expected.ok() && call->args.workspace_bytes == sizes.workspace_bytes,
              "C and C++ answer a query differently");
      return;
    }
    require_form(status);
    require(call->args.workspace_bytes == kUnwritten, "a refused query wrote its result");
    require(!call->run().ok(), "the call accepts what the query refuses");
    if (is_malformed() || !test::can_be_named(*op_, args(), context_)) return;
    require(status.message() == expected.message(), "C refuses otherwise: " + status.message());
  }

  /// As long as the input says, or, once they are known, as sizes ask for.
  void set_view(const Array& array, const std::int64_t* symbols) {
    if (!array.has(kGiven)) return;
    TensorView& view = this->view(array);
    const Argument& argument = *array.argument;
    const int num_lengths = test::num_lengths(argument);
    view.dtype = dtype_of(array.part.dtype);
    view.ndim = num_lengths;
    view.num_elements = 1;
    for (int axis = num_lengths - 1; axis >= 0; --axis) {
      const Length& length = argument.extents.lengths[axis];
      std::int64_t elements = array.part.lengths[axis];
      if (!is_free(length)) {
        const bool is_extended = array.part.axis % num_lengths == axis;
        elements = length.symbol < 0    ? length.constant
                   : symbols == nullptr ? 0
                                        : symbols[length.symbol];
        elements = std::max<std::int64_t>(0, elements + (is_extended ? array.part.extra : 0));
      }
      view.shape[axis] = elements;
      view.strides[axis] = view.num_elements;
      if (__builtin_mul_overflow(view.num_elements, elements, &view.num_elements)) {
        view.num_elements = kInt32Max;
      }
    }
  }

  /// Whether memory and time suffice for a call.
  bool is_small(const OpSizes& sizes) {
    std::int64_t product = 1;
    for (const Argument& argument : op_->schema->inputs) {
      for (const Length& length : argument.extents.lengths) {
        if (length.bound != Length::Bound::kGives) continue;
        product *= std::clamp<std::int64_t>(sizes.symbols[length.symbol], 1, kMaxSteps);
        if (product > kMaxSteps) return false;
      }
    }
    product = 1;
    for (const Argument& argument : op_->schema->arguments) {
      if (argument.is_array() || argument.symbol < 0) continue;
      product *= std::min(kMaxElements + 1, sizes.symbols[argument.symbol]);
      if (product > kMaxElements) return false;
    }
    for (const Array& array : arrays_) {
      set_view(array, sizes.symbols);
      const TensorView& view = this->view(array);
      if (view.num_elements < 0 || view.num_elements > kMaxElements) return false;
      // Also of an array without elements, whose rows a checker may go through.
      for (const std::int64_t length : view.shape) {
        if (length > kMaxElements) return false;
      }
    }
    return sizes.workspace_bytes <= std::size_t{64} << 20;
  }

  void allocate(Array& array, const std::int64_t* symbols) {
    if (!array.has(kGiven)) return;
    set_view(array, symbols);
    TensorView& view = this->view(array);
    if (array.has(kStrided)) std::ranges::fill(view.strides, 3);
    if (array.has(kTransposed) && view.ndim >= 2) {
      view.strides[view.ndim - 2] = 1;
      view.strides[view.ndim - 1] = view.shape[view.ndim - 2];
    }
    if (array.has(kStrided) || array.has(kTransposed)) {
      view = TensorView::of(
          DLTensor{nullptr, kHostDevice, view.ndim, view.dtype, view.shape, view.strides, 0});
    }
    array.buffer = std::make_unique<GuardedBuffer<std::byte>>(
        static_cast<std::int64_t>(test::bytes_of(view)) * std::max<int>(1, view.dtype.lanes),
        array.part.offset);
    if (!array.argument->is_output()) {
      bytes_.fill(array.buffer->span());
      array.contents.assign(array.buffer->span().begin(), array.buffer->span().end());
    }
    view.data = array.has(kWithoutMemory) ? nullptr : array.buffer->data();
  }

  /// Lets one array begin where another does, if that is as long.
  void move_array() {
    if (head_.moved >= arrays_.size() || head_.moved_to >= arrays_.size()) return;
    const Array& from = arrays_[head_.moved];
    const Array& to = arrays_[head_.moved_to];
    if (from.buffer == nullptr || to.buffer == nullptr || from.has(kWithoutMemory)) return;
    if (from.buffer->span().size() <= to.buffer->span().size()) {
      view(from).data = to.buffer->data();
    }
  }

  void place_workspace(std::size_t min_bytes) {
    const std::int64_t bytes = static_cast<std::int64_t>(min_bytes) + head_.extra_bytes;
    workspace_ =
        std::make_unique<GuardedBuffer<std::byte>>(std::max<std::int64_t>(0, bytes), head_.offset);
    context_.workspace = workspace_->span();
    if (head_.workspace_in == kNowhere) {
      context_.workspace = {};
    } else if (head_.workspace_in < arrays_.size() && arrays_[head_.workspace_in].buffer) {
      const std::span<std::byte> array = arrays_[head_.workspace_in].buffer->span();
      if (!array.empty()) {
        context_.workspace = {array.data() + head_.offset % array.size(),
                              workspace_->span().size()};
      }
    }
  }

  /// Whether memory that the call writes is memory of something else, too.
  bool overlaps() {
    struct Piece {
      const std::byte* begin;
      std::size_t bytes;
      bool is_written;
    };
    std::vector<Piece> pieces = {{context_.workspace.data(), context_.workspace.size(), true}};
    for (const Array& array : arrays_) {
      if (array.buffer == nullptr) continue;
      pieces.push_back({static_cast<const std::byte*>(view(array).data),
                        array.buffer->span().size(), array.argument->is_output()});
    }
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      for (std::size_t j = 0; j < i; ++j) {
        const Piece& a = pieces[i];
        const Piece& b = pieces[j];
        if ((a.is_written || b.is_written) && a.bytes > 0 && b.bytes > 0 &&
            a.begin < b.begin + b.bytes && b.begin < a.begin + a.bytes) {
          return true;
        }
      }
    }
    return false;
  }

  /// Whether the contract's checker finds fault with inputs, or with outputs before they are
  /// written.
  bool is_good_for_checker() {
    return std::ranges::none_of(contract_->check(args()), [](const contract::Violation& v) {
      return v.rule == "valid_inputs" || v.rule == "output_sizes";
    });
  }

  void check_call(std::size_t workspace_bytes) {
    const bool good = !is_malformed() && is_good_for_checker() &&
                      context_.workspace.size() >= workspace_bytes && !overlaps();
    const Status status = named()->run();
    require(status.ok() == good, good ? "refused: " + status.message() : "bad arguments accepted");
    if (!good && !is_malformed() && test::can_be_named(*op_, args(), context_)) {
      require(status.message() == op_->call(args(), context_).message(),
              "C refuses otherwise: " + status.message());
    }
    if (!good) require_form(status);
    require(workspace_->intact(), "wrote beside the workspace");
    for (const Array& array : arrays_) {
      if (array.buffer == nullptr) continue;
      const std::string name = array.argument->name;
      require(array.buffer->intact(), "wrote beside " + name);
      if (!array.argument->is_output()) {
        require(std::ranges::equal(array.contents, array.buffer->span()), "wrote to " + name);
      } else if (!good) {
        require(array.buffer->untouched(), "a refused call wrote to " + name);
      }
    }
    if (!good) return;
    const std::vector<contract::Violation> violations = contract_->check(args());
    require(violations.empty(), violations.empty() ? "" : violations.front().message);
  }

  Bytes bytes_;
  FuzzHead head_;
  const OpEntry* op_ = nullptr;
  const contract::OpContract* contract_ = nullptr;
  std::vector<std::byte> args_;  // aligned as operator new aligns
  std::vector<Array> arrays_;
  std::vector<Number> numbers_;
  Context context_;
  std::unique_ptr<GuardedBuffer<std::byte>> workspace_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Call(Bytes(data, size)).run();
  return 0;
}

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

/// Every other time what comes before the contents of arrays is changed alone: it decides which
/// arguments are good, and is a small part of most inputs.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t max_size, unsigned seed) {
  if (seed % 2 == 0 || size == 0) return LLVMFuzzerMutate(data, size, max_size);
  std::size_t head = sizeof(FuzzHead);
  for (const Argument& argument : all_ops()[data[0] % all_ops().size()].schema->arguments) {
    head += argument.is_array() ? sizeof(ArrayPart) : sizeof(NumberPart);
  }
  head = std::min(head, size);
  const std::size_t left = LLVMFuzzerMutate(data, head, head);
  std::fill(data + left, data + head, std::uint8_t{0});
  return size;
}
