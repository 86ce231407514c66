/* Aligns four tokens of two experts each to blocks of four, and prints the outputs. */
#include <stdio.h>
#include <stdlib.h>
#include <tessera/tessera.h>

static void print(const char* name, const int32_t* values, int64_t length) {
  int64_t i;
  printf("%s:", name);
  for (i = 0; i < length; ++i) printf(" %d", (int)values[i]);
  printf("\n");
}

static int fail(void) {
  fprintf(stderr, "%s\n", tessera_last_error());
  return EXIT_FAILURE;
}

int main(void) {
  const int32_t topk_ids[] = {2, 0, 1, 2, 2, 3, 0, 2}; /* [4 tokens, top_k 2] */
  int32_t num_tokens_post_pad;
  tessera_align_block_size_args args = {0};
  tessera_align_block_size_sizes sizes = {0};
  tessera_status status;

  args.struct_size = sizeof(args);
  args.topk_ids = topk_ids;
  args.topk_ids_dtype = TESSERA_INT32;
  args.num_ids = 8;
  args.block_size = 4;
  args.num_experts = 4;
  args.tail_expert = -1;

  sizes.struct_size = sizeof(sizes);
  if (tessera_align_block_size_query(&args, &sizes) != TESSERA_OK) return fail();

  args.sorted_token_ids_length = sizes.sorted_token_ids_length;
  args.sorted_token_ids = malloc((size_t)sizes.sorted_token_ids_length * sizeof(int32_t));
  args.expert_ids_length = sizes.expert_ids_length;
  args.expert_ids = malloc((size_t)sizes.expert_ids_length * sizeof(int32_t));
  args.num_tokens_post_pad = &num_tokens_post_pad;
  args.workspace_bytes = sizes.workspace_bytes;
  args.workspace = malloc(sizes.workspace_bytes);

  status = tessera_align_block_size(&args);
  if (status == TESSERA_OK) {
    print("sorted_token_ids", args.sorted_token_ids, args.sorted_token_ids_length);
    print("expert_ids", args.expert_ids, args.expert_ids_length);
    print("num_tokens_post_pad", &num_tokens_post_pad, 1);
  }
  free(args.sorted_token_ids);
  free(args.expert_ids);
  free(args.workspace);
  return status == TESSERA_OK ? EXIT_SUCCESS : fail();
}
