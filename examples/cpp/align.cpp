// Aligns four tokens of two experts each to blocks of four, and prints the outputs.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <tessera/align_block_size.hpp>
#include <vector>

namespace {

void print(const char* name, const std::vector<std::int32_t>& values) {
  std::printf("%s:", name);
  for (const std::int32_t value : values) std::printf(" %d", value);
  std::printf("\n");
}

int fail(const tessera::Status& status) {
  std::fprintf(stderr, "%s\n", status.message().c_str());
  return 1;
}

}  // namespace

int main() {
  const std::vector<std::int32_t> topk_ids = {2, 0, 1, 2, 2, 3, 0, 2};  // [4 tokens, top_k 2]
  const std::int64_t num_ids = 8;
  const std::int64_t block_size = 4;
  const std::int64_t num_experts = 4;

  tessera::Context context;
  tessera::AlignBlockSizeSizes sizes;
  const tessera::AlignBlockSizeShape shape{num_ids, block_size, num_experts};
  if (auto s = tessera::align_block_size_sizes(shape, context, &sizes); !s.ok()) return fail(s);

  std::vector<std::byte> workspace(sizes.workspace_bytes);
  std::vector<std::int32_t> sorted_token_ids(sizes.sorted_token_ids);
  std::vector<std::int32_t> expert_ids(sizes.expert_ids);
  std::vector<std::int32_t> num_tokens_post_pad(1);
  context.workspace = workspace;

  tessera::AlignBlockSizeArgs args;
  args.topk_ids = tessera::TensorView::of(std::span(topk_ids));
  args.block_size = block_size;
  args.num_experts = num_experts;
  args.sorted_token_ids = tessera::TensorView::of(std::span(sorted_token_ids));
  args.expert_ids = tessera::TensorView::of(std::span(expert_ids));
  args.num_tokens_post_pad = tessera::TensorView::of(std::span(num_tokens_post_pad));
  if (auto s = tessera::align_block_size(args, context); !s.ok()) return fail(s);

  print("sorted_token_ids", sorted_token_ids);
  print("expert_ids", expert_ids);
  print("num_tokens_post_pad", num_tokens_post_pad);
  return 0;
}
