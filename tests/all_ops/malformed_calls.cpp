#include "malformed_calls.hpp"

#include <cstdint>
#include <limits>

namespace tessera::test {
namespace {

constexpr StatusCode kType = StatusCode::kInvalidType;
constexpr StatusCode kValue = StatusCode::kInvalidValue;

/// "a, b or c".
std::string listed(const std::vector<std::string>& names) {
  std::string list;
  for (std::size_t i = 0; i < names.size(); ++i) {
    list += i == 0 ? "" : i + 1 == names.size() ? " or " : ", ";
    list += names[i];
  }
  return list;
}

std::string names_of_ops() {
  std::vector<std::string> names;
  for (const OpEntry& op : all_ops()) names.emplace_back(op.schema->op);
  return listed(names);
}

std::string names_of(const Schema& schema) {
  std::vector<std::string> names;
  for (const Argument& argument : schema.arguments) names.emplace_back(argument.name);
  return listed(names);
}

class Maker {
 public:
  explicit Maker(const OpEntry& op) : schema_(*op.schema) {}

  std::vector<MalformedCall> run() {
    spoil_call();
    spoil_names();
    for (const Argument& argument : schema_.arguments) {
      if (argument.is_array()) {
        spoil_array(argument);
      } else {
        spoil_number(argument);
      }
    }
    return std::move(bad_);
  }

 private:
  void add(StatusCode code, const std::string& message,
           const std::function<void(NamedCall&)>& spoil) {
    bad_.push_back({spoil, code, message});
  }

  void add_to(const Argument& argument, StatusCode code, const std::string& message,
              const std::function<void(tessera_argument&)>& spoil) {
    add(code, argument.name + message,
        [&argument, spoil](NamedCall& call) { spoil(call.at(argument.name)); });
    bad_.back().by_query = !argument.is_output();
  }

  void spoil_call() {
    const std::size_t size = sizeof(tessera_call_args);
    for (const std::size_t wrong : {std::size_t{0}, size - 8, size + 8, SIZE_MAX}) {
      add(kValue,
          "args.struct_size: expected " + std::to_string(size) + ", got " + std::to_string(wrong),
          [wrong](NamedCall& call) { call.args.struct_size = wrong; });
      bad_.back().names_op = false;
    }
    for (const char* wrong : {static_cast<const char*>(nullptr), "", "moe_su", "moe_sum "}) {
      add(kValue, "op: expected " + names_of_ops() + ", got " + (wrong == nullptr ? "NULL" : wrong),
          [wrong](NamedCall& call) { call.args.op = wrong; });
      bad_.back().names_op = false;
    }
    add(kValue, "device_type: expected a tessera_device_type, got 7",
        [](NamedCall& call) { call.args.device_type = 7; });
    add(kValue, "arguments: expected a pointer, got NULL",
        [](NamedCall& call) { call.args.arguments = nullptr; });
  }

  void spoil_names() {
    for (const char* wrong : {static_cast<const char*>(nullptr), "", "inpu", "INPUT", "a%s%n"}) {
      add(kValue,
          "arguments[0].name: expected " + names_of(schema_) + ", got " +
              (wrong == nullptr ? "NULL" : wrong),
          [wrong](NamedCall& call) { call.arguments[0].name = wrong; });
    }
    const std::size_t last = schema_.arguments.size() - 1;
    for (const std::size_t first : {std::size_t{0}, last - 1}) {
      add(kValue,
          "arguments[" + std::to_string(last) + "].name: expected each name once, got " +
              schema_.arguments[first].name,
          [first, last](NamedCall& call) { call.arguments[last] = call.arguments[first]; });
    }
  }

  void spoil_array(const Argument& argument) {
    for (const int dtype : {-1, dtypes::kNumDtypes, std::numeric_limits<int>::max()}) {
      add_to(argument, kType, ".dtype: expected a tessera_dtype, got " + std::to_string(dtype),
             [dtype](tessera_argument& array) { array.dtype = dtype; });
    }
    for (const int ndim : {-1, TESSERA_MAX_AXES + 1, std::numeric_limits<int>::min()}) {
      add_to(argument, kValue, ".ndim: expected an integer in [0, 4], got " + std::to_string(ndim),
             [ndim](tessera_argument& array) { array.ndim = ndim; });
    }
    add_to(argument, kType, ": expected an array, got a number",
           [](tessera_argument& array) { array.value = 1; });
    add_to(argument, kType, ": expected an array, got a number",
           [](tessera_argument& array) { array.real = 0.5; });
  }

  void spoil_number(const Argument& argument) {
    add_to(argument, kType, ": expected a number, got an array",
           [](tessera_argument& number) { number.data = &number; });
    add_to(argument, kType, ": expected a number, got an array",
           [](tessera_argument& number) { number.ndim = 1; });
    if (argument.kind == Argument::Kind::kFloat32) {
      add_to(argument, kType, ": expected a number in real, got one in value",
             [](tessera_argument& number) { number.value = 1; });
      return;
    }
    add_to(argument, kType, ": expected a number in value, got one in real",
           [](tessera_argument& number) { number.real = 0.5; });
    if (argument.kind != Argument::Kind::kInt32) return;
    for (const std::int64_t wrong :
         {std::int64_t{1} << 31, -(std::int64_t{1} << 31) - 1, std::int64_t{1} << 32}) {
      add_to(argument, kValue, ": expected an integer of 32 bits, got " + std::to_string(wrong),
             [wrong](tessera_argument& number) { number.value = wrong; });
    }
  }

  const Schema& schema_;
  std::vector<MalformedCall> bad_;
};

}  // namespace

std::vector<MalformedCall> malformed_calls(const OpEntry& op) { return Maker(op).run(); }

}  // namespace tessera::test
