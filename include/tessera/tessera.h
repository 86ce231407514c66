/* Tessera's C API: plain pointers and sizes, usable from C99.
 *
 * tessera_call runs any op; some ops have a function and a struct of arguments of their own, too.
 * The contract of every op is in its C++ header, such as align_block_size.hpp. A function returns
 * TESSERA_OK or an error code; then tessera_last_error() returns a message with the op, the
 * argument, what was expected and what came.
 *
 * Compatibility: an argument struct starts with its size in the header that the caller was compiled
 * with, and new fields are only appended. Zero in an appended field keeps the older behaviour. A
 * tessera_argument, of which callers have arrays, stays as it is.
 */
#ifndef TESSERA_TESSERA_H_
#define TESSERA_TESSERA_H_

#include <stddef.h>
#include <stdint.h>

#include "tessera/export.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when a function or an argument struct gains a field. */
#define TESSERA_C_API_VERSION 3

typedef enum tessera_status {
  TESSERA_OK = 0,
  TESSERA_INVALID_TYPE = 1,  /* an argument has the wrong data type */
  TESSERA_INVALID_VALUE = 2, /* an argument has a value outside its domain */
  TESSERA_UNSUPPORTED = 3,   /* valid, but nothing in this build can do it */
  TESSERA_RUNTIME_ERROR = 4  /* runtime failure: memory, driver, launch */
} tessera_status;

typedef enum tessera_dtype {
  TESSERA_INT8 = 0,
  TESSERA_UINT8 = 1,
  TESSERA_INT16 = 2,
  TESSERA_UINT16 = 3,
  TESSERA_INT32 = 4,
  TESSERA_UINT32 = 5,
  TESSERA_INT64 = 6,
  TESSERA_UINT64 = 7,

  /* Since version 3. */
  TESSERA_FLOAT16 = 8,
  TESSERA_BFLOAT16 = 9,
  TESSERA_FLOAT32 = 10,
  TESSERA_FLOAT64 = 11,
  TESSERA_FLOAT8_E4M3FN = 12
} tessera_dtype;

typedef enum tessera_device_type { TESSERA_CPU = 0, TESSERA_CUDA = 1 } tessera_device_type;

/* Lengths of `statistics` and `validation`; AlignBlockSizeStatistic and AlignBlockSizeValidation in
 * align_block_size.hpp name their elements. */
#define TESSERA_ALIGN_BLOCK_SIZE_NUM_STATISTICS 6
#define TESSERA_ALIGN_BLOCK_SIZE_VALIDATION_LENGTH 6

typedef struct tessera_align_block_size_args {
  size_t struct_size; /* sizeof(tessera_align_block_size_args) */

  /* Inputs. */
  const void* topk_ids;      /* [num_ids], contiguous */
  int topk_ids_dtype;        /* a tessera_dtype */
  int64_t num_ids;           /* N = tokens * top_k */
  int64_t block_size;        /* B */
  int64_t num_experts;       /* E */
  const int32_t* expert_map; /* [num_experts], or NULL */
  int ignore_invalid_experts;
  int pad_sorted_ids;
  int32_t tail_expert; /* usually -1; a zero-initialised struct has 0 */

  /* Outputs, all written in full. */
  int32_t* sorted_token_ids; /* [sorted_token_ids_length] */
  int64_t sorted_token_ids_length;
  int32_t* expert_ids; /* [expert_ids_length] */
  int64_t expert_ids_length;
  int32_t* num_tokens_post_pad; /* [1] */
  int32_t* expert_counts;       /* [num_experts], or NULL */
  int32_t* num_dropped;         /* [1], or NULL */

  /* Device and threads. Zeros run on the host, on as many threads as are worthwhile. */
  int device_type; /* a tessera_device_type */
  int device_id;
  void* stream;    /* the device's stream; ignored on the host */
  void* workspace; /* [workspace_bytes], any alignment and content */
  size_t workspace_bytes;
  int num_threads; /* maximum number of host threads, capped by TESSERA_NUM_THREADS; 0: that, else
                    * the cores that the process can use, see context.hpp */

  /* Since version 2. */
  double* statistics;  /* [TESSERA_ALIGN_BLOCK_SIZE_NUM_STATISTICS], or NULL */
  int64_t* validation; /* [TESSERA_ALIGN_BLOCK_SIZE_VALIDATION_LENGTH], or NULL */
  int map_tail;        /* with a map: use the map's entry of tail_expert past the last block */
  int filtered_group;  /* the pairs with id -1 form a group of their own, the first */
} tessera_align_block_size_args;

/* The smallest legal sizes for a problem. Reads num_ids, block_size, num_experts, pad_sorted_ids,
 * filtered_group, device_type, device_id and num_threads of `args`. */
typedef struct tessera_align_block_size_sizes {
  size_t struct_size; /* sizeof(tessera_align_block_size_sizes), set by the caller */
  int64_t sorted_token_ids_length;
  int64_t expert_ids_length;
  size_t workspace_bytes;
} tessera_align_block_size_sizes;

TESSERA_API tessera_status tessera_align_block_size_query(const tessera_align_block_size_args* args,
                                                          tessera_align_block_size_sizes* sizes);

/* Runs the op. Nothing is written unless every argument is valid. */
TESSERA_API tessera_status tessera_align_block_size(const tessera_align_block_size_args* args);

typedef struct tessera_batched_align_block_size_args {
  size_t struct_size; /* sizeof(tessera_batched_align_block_size_args) */

  /* Inputs. */
  const int32_t* expert_num_tokens; /* [num_batches] */
  int64_t num_batches;
  int64_t max_tokens_per_batch;
  int64_t block_size;
  int32_t tail_expert; /* usually -1; a zero-initialised struct has 0 */

  /* Outputs, all written in full. */
  int32_t* sorted_token_ids; /* [sorted_token_ids_length] */
  int64_t sorted_token_ids_length;
  int32_t* expert_ids; /* [expert_ids_length] */
  int64_t expert_ids_length;
  int32_t* num_tokens_post_pad; /* [1] */

  /* Device. Zeros run on the host. No workspace is needed. */
  int device_type; /* a tessera_device_type */
  int device_id;
  void* stream; /* the device's stream; ignored on the host */
} tessera_batched_align_block_size_args;

/* The smallest legal lengths of the outputs for a problem. Reads num_batches, max_tokens_per_batch
 * and block_size of `args`. */
typedef struct tessera_batched_align_block_size_sizes {
  size_t struct_size; /* sizeof(tessera_batched_align_block_size_sizes), set by the caller */
  int64_t sorted_token_ids_length;
  int64_t expert_ids_length;
} tessera_batched_align_block_size_sizes;

TESSERA_API tessera_status
tessera_batched_align_block_size_query(const tessera_batched_align_block_size_args* args,
                                       tessera_batched_align_block_size_sizes* sizes);

/* Runs the op. Nothing is written unless every argument is valid. */
TESSERA_API tessera_status
tessera_batched_align_block_size(const tessera_batched_align_block_size_args* args);

/* The outputs have max_loras rows of equal length, one after the other. */
typedef struct tessera_lora_align_block_size_args {
  size_t struct_size; /* sizeof(tessera_lora_align_block_size_args) */

  /* Inputs. */
  const void* topk_ids;              /* [num_ids], contiguous */
  int topk_ids_dtype;                /* a tessera_dtype */
  int64_t num_ids;                   /* N = tokens * top_k */
  int64_t top_k;                     /* divides num_ids */
  const int32_t* token_lora_mapping; /* [num_ids / top_k] */
  int64_t block_size;                /* B */
  int64_t num_experts;               /* E */
  int64_t max_loras;
  const int32_t* adapter_enabled; /* [max_loras], or NULL */
  const int32_t* lora_ids;        /* [num_lora_ids], or NULL; an empty list needs a pointer, too */
  int64_t num_lora_ids;
  const int32_t* expert_map; /* [num_experts], or NULL */
  int pad_sorted_ids;
  int32_t tail_expert; /* usually -1; a zero-initialised struct has 0 */

  /* Outputs, all written in full. Lengths count all rows together. */
  int32_t* sorted_token_ids; /* [sorted_token_ids_length] */
  int64_t sorted_token_ids_length;
  int32_t* expert_ids; /* [expert_ids_length] */
  int64_t expert_ids_length;
  int32_t* num_tokens_post_pad; /* [max_loras] */

  /* Device and workspace. Zeros run on the host. */
  int device_type; /* a tessera_device_type */
  int device_id;
  void* stream;    /* the device's stream; ignored on the host */
  void* workspace; /* [workspace_bytes], any alignment and content */
  size_t workspace_bytes;
} tessera_lora_align_block_size_args;

/* The smallest legal sizes for a problem: lengths of all rows together. Reads num_ids, block_size,
 * num_experts, max_loras, pad_sorted_ids, device_type and device_id of `args`. */
typedef struct tessera_lora_align_block_size_sizes {
  size_t struct_size; /* sizeof(tessera_lora_align_block_size_sizes), set by the caller */
  int64_t sorted_token_ids_length;
  int64_t expert_ids_length;
  size_t workspace_bytes;
} tessera_lora_align_block_size_sizes;

TESSERA_API tessera_status tessera_lora_align_block_size_query(
    const tessera_lora_align_block_size_args* args, tessera_lora_align_block_size_sizes* sizes);

/* Runs the op. Nothing is written unless every argument is valid. */
TESSERA_API tessera_status
tessera_lora_align_block_size(const tessera_lora_align_block_size_args* args);

/* Values of the argument "scoring" of select_experts, select_and_align and fused_moe;
 * select_experts.hpp has the formulas. */
typedef enum tessera_scoring {
  TESSERA_SCORING_SOFTMAX = 0,
  TESSERA_SCORING_SIGMOID = 1,
  TESSERA_SCORING_SQRT_SOFTPLUS = 2
} tessera_scoring;

/* Values of the argument "group" of quantize_fp8; quantize_fp8.hpp has their elements. */
typedef enum tessera_fp8_group {
  TESSERA_FP8_TENSOR = 0,
  TESSERA_FP8_ROW = 1,
  TESSERA_FP8_1X128 = 2,
  TESSERA_FP8_128X128 = 3
} tessera_fp8_group;

/* Values of the argument "activation" of fused_experts and fused_moe; fused_experts.hpp has the
 * formulas. */
typedef enum tessera_activation {
  TESSERA_SILU = 0,
  TESSERA_GELU = 1,
  TESSERA_GELU_TANH = 2,
  TESSERA_SWIGLUOAI = 3,
  TESSERA_SWIGLUOAI_UNINTERLEAVE = 4,
  TESSERA_SILU_NO_MUL = 5,
  TESSERA_GELU_NO_MUL = 6,
  TESSERA_GELU_TANH_NO_MUL = 7,
  TESSERA_RELU2_NO_MUL = 8
} tessera_activation;

/* Any op, its arguments by name: tessera_query and tessera_call. Since version 3. */

#define TESSERA_MAX_AXES 4

/* An argument by its name in the op's C++ header. Fields that are not named below are zero. */
typedef struct tessera_argument {
  const char* name;

  /* An array: data, dtype and axes. Without data and axes it counts as left out. An op writes its
   * outputs, and no input. An array that the op reads flattened may have any axes. */
  void* data;
  int dtype; /* a tessera_dtype */
  int ndim;  /* number of axes; 0: a single element */
  int64_t shape[TESSERA_MAX_AXES];
  int64_t strides[TESSERA_MAX_AXES]; /* in elements; all zero: contiguous */

  /* An integer; a flag, which is set unless it is 0; or the number of a choice: a
   * tessera_activation or a tessera_scoring. */
  int64_t value;
  double real; /* a floating-point number; NaN stands for its default, as if it were left out */
} tessera_argument;

typedef struct tessera_call_args {
  size_t struct_size; /* sizeof(tessera_call_args) */
  const char* op;     /* "moe_sum" */

  /* In any order; what is left out has its default in the op's C++ struct: tail_expert is -1. */
  tessera_argument* arguments; /* [num_arguments] */
  size_t num_arguments;

  /* Device and threads, as in tessera_align_block_size_args. All arrays are on this device. */
  int device_type;
  int device_id;
  void* stream;
  void* workspace;
  size_t workspace_bytes;
  int num_threads;
  const char* implementation; /* the only one that may run, such as "cpu/reference"; NULL: any */
} tessera_call_args;

/* Sets workspace_bytes, and for each output among the arguments the data type and the smallest
 * legal shape, contiguous. Reads no array's memory, and nothing of the outputs but their names.
 * Nothing is written unless it returns TESSERA_OK. */
TESSERA_API tessera_status tessera_query(tessera_call_args* args);

/* Runs the op. Nothing is written unless every argument is valid. */
TESSERA_API tessera_status tessera_call(const tessera_call_args* args);

/* Does the work in advance that makes the first call on a device slow: creates its context and
 * loads the code of every kernel. No call requires it. `device_type` is a tessera_device_type. */
TESSERA_API tessera_status tessera_warmup(int device_type, int device_id);

/* Message of the calling thread's last failed call; empty if none failed. Valid until this thread's
 * next call. */
TESSERA_API const char* tessera_last_error(void);

/* "major.minor.patch" of the library in use. */
TESSERA_API const char* tessera_version(void);

/* TESSERA_C_API_VERSION of the library in use. */
TESSERA_API int tessera_c_api_version(void);

#ifdef __cplusplus
}
#endif

#endif
