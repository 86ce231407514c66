#include "device_call.hpp"

#include <algorithm>
#include <utility>

#include "op_arguments.hpp"

namespace tessera::test {
namespace {

/// Captures what `call` puts into a stream as a graph, and launches it there.
template <typename Call>
void launch_captured(cudaStream_t stream, const Call& call) {
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
  call();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  require(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  require(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  require(cudaGraphLaunch(executable, stream), "cudaGraphLaunch");
  require(cudaStreamSynchronize(stream), "a captured call");
  require(cudaGraphExecDestroy(executable), "cudaGraphExecDestroy");
  require(cudaGraphDestroy(graph), "cudaGraphDestroy");
}

/// Where the array's bytes first differ from those wanted; empty if nowhere.
std::string first_difference(const Argument& argument, const TensorView& view,
                             const std::vector<std::byte>& found,
                             std::span<const std::byte> wanted) {
  if (found.size() != wanted.size()) {
    return std::string(argument.name) + ": expected " + std::to_string(wanted.size()) +
           " bytes written, got " + std::to_string(found.size());
  }
  const auto differs = std::ranges::mismatch(found, wanted);
  if (differs.in1 == found.end()) return {};
  const std::size_t width = element_bytes(view);
  const auto element = static_cast<std::size_t>(differs.in1 - found.begin()) / width;
  const auto hex = [&](std::span<const std::byte> bytes) {
    std::string text = "0x";
    for (std::size_t i = width; i-- > 0;) {
      constexpr const char* kDigits = "0123456789abcdef";
      const auto value = static_cast<unsigned>(bytes[element * width + i]);
      text += {kDigits[value / 16], kDigits[value % 16]};
    }
    return text;
  };
  return std::string(argument.name) + "[" + std::to_string(element) + "]: expected " + hex(wanted) +
         ", got " + hex(found);
}

}  // namespace

DeviceCall::Array::Array(const Argument& row, TensorView view,
                         const DeviceSurroundings& surroundings)
    : argument(&row),
      host(view),
      buffer(bytes_of(view), surroundings.misalignment * element_bytes(view),
             surroundings.is_exact) {}

DeviceCall::DeviceCall(const contract::CaseArguments& made, const DeviceSurroundings& surroundings)
    : op_(*find_op(made.op)),
      contract_(*contract::find_contract(made.op)),
      made_(made),
      surroundings_(surroundings) {
  const auto* const given = static_cast<const std::byte*>(made_.args.get());
  args_.assign(given, given + op_.args_bytes);
  int num_optional = 0;
  for (const Argument& argument : op_.schema->arguments) {
    if (!argument.is_array()) continue;
    TensorView& view = view_in(args(), argument);
    if (argument.role == Argument::Role::kOptionalOutput &&
        (surroundings.left_out >> num_optional++ & 1) != 0) {
      view = {};
    }
    if (!view.given()) continue;
    Array& array = arrays_.emplace_back(argument, view, surroundings);
    view.data = array.buffer.data();
    view.device = kDevice;
    if (!argument.is_output()) {
      array.buffer.upload(array.host.data);
    } else if (!surroundings.is_exact || !array.host.contiguous ||
               contract_.partly_written.array == argument.name) {
      array.buffer.poison(surroundings.poison);  // what calls do not write is downloaded, too
    }
  }
}

DeviceBuffer* DeviceCall::buffer(std::string_view argument) {
  for (Array& array : arrays_) {
    if (array.argument->name == argument) return &array.buffer;
  }
  return nullptr;
}

Context DeviceCall::context() const {
  Context context;
  context.device = kDevice;
  context.implementation = surroundings_.implementation;
  context.stream = surroundings_.stream;
  return context;
}

Status DeviceCall::workspace_bytes(std::size_t* bytes) {
  OpSizes sizes;
  const Status status = op_.sizes(args(), context(), &sizes);
  *bytes = sizes.workspace_bytes;
  return status;
}

Status DeviceCall::enqueue(const DeviceBuffer& workspace) {
  Context with_workspace = context();
  with_workspace.workspace = {workspace.data(), workspace.size()};
  return op_.call(args(), with_workspace);
}

Status DeviceCall::run() {
  std::size_t bytes = 0;
  if (Status s = workspace_bytes(&bytes); !s.ok()) return s;
  DeviceBuffer workspace(bytes, surroundings_.misalignment, surroundings_.is_exact);
  if (!surroundings_.is_exact) workspace.poison(surroundings_.poison);
  Status status;
  if (surroundings_.is_captured) {
    launch_captured(surroundings_.stream, [&] { status = enqueue(workspace); });
  } else {
    status = enqueue(workspace);
  }
  if (!status.ok()) return status;
  require(cudaDeviceSynchronize(), op_.schema->op.data());
  workspace_intact_ = workspace_intact_ && workspace.intact();
  return status;
}

std::string DeviceCall::damage(bool ran_once) {
  if (!workspace_intact_) return "workspace: written beside";
  for (const Array& array : arrays_) {
    const std::string name = array.argument->name;
    if (!array.buffer.intact()) return name + ": written beside";
    if (!array.argument->is_output()) continue;
    const TensorView written = ran_once ? written_part(array) : array.host;
    if (written.contiguous) continue;
    if (!has_gaps_of(surroundings_.poison, array.buffer.download(), written)) {
      return name + ": written between or after rows";
    }
  }
  return {};
}

Outputs DeviceCall::outputs() {
  Outputs outputs;
  for (const Array& array : arrays_) {
    if (!array.argument->is_output()) continue;
    outputs.bytes[array.argument->name] = elements_in(array.buffer.download(), written_part(array));
  }
  return outputs;
}

DeviceCall::OnHost DeviceCall::on_host() {
  const auto* const given = static_cast<const std::byte*>(made_.args.get());
  OnHost copy{{given, given + op_.args_bytes}, {}};
  for (const Array& array : arrays_) {
    if (!array.argument->is_output()) continue;
    TensorView& view = view_in(copy.args.data(), *array.argument);
    view.data = copy.contents.emplace_back(array.buffer.download()).data();
    // The device tells by which bound an output is judged.
    if (!adds_fp8_exactly(surroundings_.implementation)) view.device = kDevice;
  }
  return copy;
}

TensorView DeviceCall::written_part(const Array& array) {
  if (contract_.partly_written.array != array.argument->name) return array.host;
  return test::written_part(contract_, *array.argument, on_host().args.data());
}

std::string DeviceCall::violation() {
  const OnHost copy = on_host();
  const std::vector<contract::Violation> violations = contract_.check(copy.args.data());
  return violations.empty() ? std::string() : violations.front().message;
}

std::string DeviceCall::difference(const Outputs& expected) {
  for (const Array& array : arrays_) {
    std::span<const std::byte> wanted(static_cast<const std::byte*>(array.host.data),
                                      array.buffer.size());
    if (array.argument->is_output()) wanted = expected.bytes.find(array.argument->name)->second;
    std::vector<std::byte> written = array.buffer.download();
    if (array.argument->is_output()) written = elements_in(written, written_part(array));
    const std::string found = first_difference(*array.argument, array.host, written, wanted);
    if (!found.empty()) return found;
  }
  return damage();
}

bool adds_fp8_exactly(std::string_view implementation) {
  return implementation.starts_with("cuda/mma_");
}

cudaStream_t stream_of_calls() {
  static cudaStream_t stream = [] {
    cudaStream_t created = nullptr;
    require(cudaStreamCreateWithFlags(&created, cudaStreamNonBlocking), "cudaStreamCreate");
    return created;
  }();
  return stream;
}

std::string check_on_device(const contract::CaseArguments& made, const Outputs& expected,
                            const DeviceSurroundings& surroundings) {
  DeviceCall call(made, surroundings);
  const Status status = call.run();
  return status.ok() ? call.difference(expected) : status.message();
}

std::string judge_on_device(const contract::CaseArguments& made,
                            const DeviceSurroundings& surroundings) {
  DeviceCall call(made, surroundings);
  if (const Status status = call.run(); !status.ok()) return status.message();
  const std::string violation = call.violation();
  return violation.empty() ? call.damage() : violation;
}

}  // namespace tessera::test
