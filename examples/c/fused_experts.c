/* Runs the experts of a layer for two tokens, of which the second has one expert. */
#include <stdio.h>
#include <stdlib.h>
#include <tessera/tessera.h>

static int fail(void) {
  fprintf(stderr, "%s\n", tessera_last_error());
  return EXIT_FAILURE;
}

int main(void) {
  float x[2][2] = {{1, 2}, {0, 1}};
  float w13[2][2][2] = {{{1, 0}, {0, 1}}, {{0, 1}, {1, 1}}}; /* per expert a gate and an up row */
  float w2[2][2][1] = {{{1}, {2}}, {{1}, {-1}}};
  float topk_weights[2][2] = {{0.5f, 0.25f}, {1, 0}};
  int32_t topk_ids[2][2] = {{0, 1}, {1, -1}};
  tessera_argument arguments[] = {
      {"x", x, TESSERA_FLOAT32, 2, {2, 2}, {0}, 0, 0},
      {"w13", w13, TESSERA_FLOAT32, 3, {2, 2, 2}, {0}, 0, 0},
      {"w2", w2, TESSERA_FLOAT32, 3, {2, 2, 1}, {0}, 0, 0},
      {"topk_weights", topk_weights, TESSERA_FLOAT32, 2, {2, 2}, {0}, 0, 0},
      {"topk_ids", topk_ids, TESSERA_INT32, 2, {2, 2}, {0}, 0, 0},
      {"output", NULL, 0, 0, {0}, {0}, 0, 0}, /* its type and shape come from the query */
      /* A choice is in `value`; a number such as swiglu_limit would be in `real`. */
      {"activation", NULL, 0, 0, {0}, {0}, TESSERA_SILU, 0},
  };
  tessera_argument* output = &arguments[5];
  tessera_call_args args = {0};
  tessera_status status;
  int64_t i, j;

  args.struct_size = sizeof(args);
  args.op = "fused_experts";
  args.arguments = arguments;
  args.num_arguments = sizeof(arguments) / sizeof(arguments[0]);
  if (tessera_query(&args) != TESSERA_OK) return fail();

  output->data = malloc((size_t)(output->shape[0] * output->shape[1]) * sizeof(float));
  args.workspace = malloc(args.workspace_bytes);

  status = tessera_call(&args);
  for (i = 0; status == TESSERA_OK && i < output->shape[0]; ++i) {
    printf("token %d:", (int)i);
    for (j = 0; j < output->shape[1]; ++j) {
      printf(" %.4f", ((float*)output->data)[i * output->shape[1] + j]);
    }
    printf("\n");
  }
  free(output->data);
  free(args.workspace);
  return status == TESSERA_OK ? EXIT_SUCCESS : fail();
}
