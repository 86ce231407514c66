/* Adds up the outputs of two experts for each of two tokens, weighted by the router. Arguments are
 * passed by name, as every op takes them. */
#include <stdio.h>
#include <stdlib.h>
#include <tessera/tessera.h>

static int fail(void) {
  fprintf(stderr, "%s\n", tessera_last_error());
  return EXIT_FAILURE;
}

int main(void) {
  float input[2][2][3] = {{{1, 2, 3}, {5, 6, 7}}, {{0, 1, 0}, {4, 4, 8}}};
  float topk_weights[2][2] = {{0.75f, 0.25f}, {0.5f, 0.5f}};
  tessera_argument arguments[] = {
      {"input", input, TESSERA_FLOAT32, 3, {2, 2, 3}, {0}, 0, 0},
      {"topk_weights", topk_weights, TESSERA_FLOAT32, 2, {2, 2}, {0}, 0, 0},
      {"output", NULL, 0, 0, {0}, {0}, 0, 0}, /* its type and shape come from the query */
  };
  tessera_argument* output = &arguments[2];
  tessera_call_args args = {0};
  tessera_status status;
  int64_t i, j;

  args.struct_size = sizeof(args);
  args.op = "moe_sum";
  args.arguments = arguments;
  args.num_arguments = sizeof(arguments) / sizeof(arguments[0]);
  if (tessera_query(&args) != TESSERA_OK) return fail();

  output->data = malloc((size_t)(output->shape[0] * output->shape[1]) * sizeof(float));
  args.workspace = malloc(args.workspace_bytes);

  status = tessera_call(&args);
  for (i = 0; status == TESSERA_OK && i < output->shape[0]; ++i) {
    printf("token %d:", (int)i);
    for (j = 0; j < output->shape[1]; ++j) {
      printf(" %g", ((float*)output->data)[i * output->shape[1] + j]);
    }
    printf("\n");
  }
  free(output->data);
  free(args.workspace);
  return status == TESSERA_OK ? EXIT_SUCCESS : fail();
}
