#include "device_call.hpp"

#include <memory>
#include <optional>

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

}  // namespace

std::string check_on_device(const contract::AlignBlockSizeCase& c, std::uint64_t seed,
                            const Outputs& expected, const DeviceSurroundings& surroundings) {
  const contract::AlignBlockSizeInputs inputs = contract::make_inputs(c, seed);
  const auto buffer = [&](std::size_t num_elements, std::size_t element_bytes) {
    return std::make_unique<DeviceBuffer>(num_elements * element_bytes,
                                          surroundings.misalignment * element_bytes,
                                          surroundings.is_exact);
  };
  const auto int32_buffer = [&](std::size_t size) { return buffer(size, sizeof(std::int32_t)); };

  const auto topk_ids = buffer(c.num_tokens * c.top_k, c.dtype.bits / 8);
  topk_ids->upload(inputs.topk_ids.data());
  std::unique_ptr<DeviceBuffer> expert_map;
  if (inputs.expert_map) {
    expert_map = int32_buffer(inputs.expert_map->size());
    expert_map->upload(inputs.expert_map->data());
  }
  const auto sorted_token_ids = int32_buffer(expected.sorted_token_ids.size());
  const auto expert_ids = int32_buffer(expected.expert_ids.size());
  const auto num_tokens_post_pad = int32_buffer(1);
  const auto expert_counts = int32_buffer(expected.expert_counts.size());
  const auto num_dropped = int32_buffer(1);
  const auto statistics = buffer(expected.statistics.size(), sizeof(double));
  const auto validation = buffer(expected.validation.size(), sizeof(std::int64_t));

  AlignBlockSizeArgs args;
  args.topk_ids = view_of(*topk_ids, c.dtype);
  args.block_size = c.block_size;
  args.num_experts = c.num_experts;
  if (expert_map) args.expert_map = int32_view(*expert_map);
  args.ignore_invalid_experts = c.ignore_invalid_experts;
  args.pad_sorted_ids = c.pad_sorted_ids;
  args.tail_expert = c.tail_expert;
  args.map_tail = c.map_tail;
  args.filtered_group = c.filtered_group;
  args.sorted_token_ids = int32_view(*sorted_token_ids);
  args.expert_ids = int32_view(*expert_ids);
  args.num_tokens_post_pad = int32_view(*num_tokens_post_pad);
  if (surroundings.with_counts) {
    args.expert_counts = int32_view(*expert_counts);
    args.num_dropped = int32_view(*num_dropped);
  }
  if (c.statistics) args.statistics = view_of(*statistics, {kDLFloat, 64, 1});
  if (c.validation) args.validation = view_of(*validation, {kDLInt, 64, 1});

  Context context;
  context.device = kDevice;
  context.implementation = surroundings.implementation;
  AlignBlockSizeSizes sizes;
  const AlignBlockSizeShape shape{c.num_tokens * c.top_k, c.block_size, c.num_experts,
                                  c.pad_sorted_ids, c.filtered_group};
  if (Status s = align_block_size_sizes(shape, context, &sizes); !s.ok()) return s.message();
  DeviceBuffer workspace(sizes.workspace_bytes, surroundings.misalignment, surroundings.is_exact);
  // Not initialised, so that initcheck finds reads of unwritten memory.
  if (!surroundings.is_exact) {
    for (DeviceBuffer* poisoned :
         {&workspace, sorted_token_ids.get(), expert_ids.get(), num_tokens_post_pad.get(),
          expert_counts.get(), num_dropped.get(), statistics.get(), validation.get()}) {
      poisoned->poison(surroundings.poison);
    }
  }
  context.workspace = {workspace.data(), workspace.size()};
  context.stream = surroundings.stream;
  require(cudaDeviceSynchronize(), "what was uploaded");

  Status status;
  if (surroundings.is_captured) {
    const auto capture = [&] { status = align_block_size(args, context); };
    launch_captured(surroundings.stream, capture);
  } else {
    status = align_block_size(args, context);
  }
  if (!status.ok()) return status.message();
  require(cudaDeviceSynchronize(), (c.name + " on " + surroundings.implementation).c_str());

  if (topk_ids->download() != inputs.topk_ids) return "topk_ids: changed";
  std::string difference;
  const auto compare = [&]<typename T>(const char* name, const DeviceBuffer& found,
                                       std::span<const T> wanted) {
    if (difference.empty()) difference = first_difference(name, found, wanted);
  };
  compare("sorted_token_ids", *sorted_token_ids, std::span(expected.sorted_token_ids));
  compare("expert_ids", *expert_ids, std::span(expected.expert_ids));
  compare("num_tokens_post_pad", *num_tokens_post_pad, std::span(&expected.num_tokens_post_pad, 1));
  if (surroundings.with_counts) {
    compare("expert_counts", *expert_counts, std::span(expected.expert_counts));
    compare("num_dropped", *num_dropped, std::span(&expected.num_dropped, 1));
  }
  compare("statistics", *statistics, std::span(expected.statistics));
  compare("validation", *validation, std::span(expected.validation));
  if (!difference.empty()) return difference;
  const std::pair<const char*, const DeviceBuffer*> buffers[] = {
      {"workspace", &workspace},
      {"topk_ids", topk_ids.get()},
      {"sorted_token_ids", sorted_token_ids.get()},
      {"expert_ids", expert_ids.get()},
      {"num_tokens_post_pad", num_tokens_post_pad.get()},
      {"expert_counts", expert_counts.get()},
      {"num_dropped", num_dropped.get()},
      {"statistics", statistics.get()},
      {"validation", validation.get()}};
  for (const auto& [name, guarded] : buffers) {
    if (!guarded->intact()) return std::string(name) + ": written beside";
  }
  return {};
}

Status call_on_device(const Context& context) {
  constexpr std::size_t kBytes = 256;
  const auto int32_view = [&](const DeviceBuffer& buffer) {
    TensorView view = view_of(buffer, {kDLInt, 32, 1});
    view.device = context.device;
    return view;
  };
  const DeviceBuffer ids(4 * sizeof(std::int32_t), 0, true);
  const DeviceBuffer slots(kBytes, 0, true);
  const DeviceBuffer experts(kBytes, 0, true);
  const DeviceBuffer post(sizeof(std::int32_t), 0, true);
  AlignBlockSizeArgs args;
  args.topk_ids = int32_view(ids);
  args.block_size = 4;
  args.num_experts = 4;
  args.sorted_token_ids = int32_view(slots);
  args.expert_ids = int32_view(experts);
  args.num_tokens_post_pad = int32_view(post);
  return align_block_size(args, context);
}

std::vector<std::string> device_implementations(const contract::AlignBlockSizeCase& c) {
  const AlignBlockSizeShape shape{c.num_tokens * c.top_k, c.block_size, c.num_experts,
                                  c.pad_sorted_ids, c.filtered_group};
  Context context;
  context.device = kDevice;
  std::vector<ImplementationReport> reports;
  if (!explain_align_block_size(shape, context, &reports).ok()) return {};
  std::vector<std::string> names;
  for (const ImplementationReport& report : reports) {
    context.implementation = report.name;
    AlignBlockSizeSizes sizes;
    if (!align_block_size_sizes(shape, context, &sizes).ok()) continue;
    names.insert(report.selected ? names.begin() : names.end(), report.name);
  }
  return names;
}

}  // namespace tessera::test
