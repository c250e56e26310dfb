/* mdprune: runs one of many domains of a pruned network whose weights are in memory once.
 *
 * A model is an opened bundle: it is read-only and may be used by any number of threads at once. A
 * context runs one domain of a model at a time and belongs to one thread at a time; it owns the
 * memory of the activations. Make one context per thread.
 *
 *     char why[256];
 *     mdp_model* model;
 *     mdp_context* context;
 *     size_t domain;
 *     if (mdp_model_open("bundle", &model, why, sizeof why) != MDP_OK) return complain(why);
 *     if (mdp_model_find_domain(model, "birds", &domain) != MDP_OK) return complain("no birds");
 *     if (mdp_context_create(model, NULL, &context, why, sizeof why) != MDP_OK)
 *       return complain(why);
 *     mdp_context_select_domain(context, domain);
 *     const float* inputs[] = {image};    // (1, 3, 224, 224), as the network was exported
 *     float* outputs[] = {scores};        // (1, 200)
 *     if (mdp_context_run(context, 1, inputs, outputs) != MDP_OK)
 *       return complain(mdp_context_message(context));
 *     mdp_context_destroy(context);
 *     mdp_model_close(model);
 *
 * Ownership. What a function named create or open gives, the caller gives back to destroy or close,
 * in any order: a context keeps its model alive. Texts and tables that a function returns belong to
 * the model or context that it was called with, and live as long as that. Inputs and outputs belong
 * to the caller and are used during mdp_context_run only; an output must overlap no other buffer.
 *
 * Errors. Every function that can fail returns a status; nothing aborts, and no exception leaves
 * the library. Where a function takes `message`, it writes there what went wrong, ended by a NUL
 * and cut at `message_size` bytes; NULL with 0 is allowed. A null handle or pointer is
 * MDP_INVALID_ARGUMENT.
 *
 * Memory. mdp_context_create allocates what the largest domain needs; mdp_context_select_domain and
 * mdp_context_run allocate nothing (but a graph, see there). Weight files are mapped and shared by
 * all processes that opened the bundle. A bundle may be replaced (renamed away, deleted) while it
 * is open, and a reader sees the old or the new one; its files must not be written or cut in place.
 *
 * Results. The same context options on the same processor give the same bits in every run, and the
 * number of threads does not matter.
 */

#ifndef MDPRUNE_H
#define MDPRUNE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define MDP_API __attribute__((visibility("default")))
#else
#define MDP_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define MDP_MAX_RANK 8

typedef enum mdp_status {
  MDP_OK = 0,
  MDP_INVALID_ARGUMENT = 1, /* the call is wrong */
  MDP_NOT_FOUND = 2,        /* no such file or domain */
  MDP_CORRUPT = 3,          /* the bundle breaks its specification */
  MDP_VERSION = 4,          /* the bundle is of another version */
  MDP_NO_MEMORY = 5,        /* an allocation, a mapping or a thread was refused */
  MDP_IO = 6,               /* the operating system could not read a file */
  MDP_UNSUPPORTED = 7,      /* this processor or build has not what was asked for */
  MDP_INTERNAL = 8,         /* a defect of this library */
  MDP_DEVICE = 9            /* a GPU reported an error */
} mdp_status;

typedef struct mdp_model mdp_model;
typedef struct mdp_context mdp_context;

MDP_API const char* mdp_version(void); /* "1.2.3" */
MDP_API const char* mdp_status_text(mdp_status status);

/* Models */

/* Opens the bundle that `mdprune compile` wrote to the directory `path`, and checks all of it. */
MDP_API mdp_status mdp_model_open(const char* path, mdp_model** model, char* message,
                                  size_t message_size);
MDP_API void mdp_model_close(mdp_model* model); /* NULL is allowed */

MDP_API size_t mdp_model_domain_count(const mdp_model* model);
/* UTF-8; NULL if there is no such domain. */
MDP_API const char* mdp_model_domain_name(const mdp_model* model, size_t domain);
MDP_API mdp_status mdp_model_find_domain(const mdp_model* model, const char* name, size_t* domain);

/* Labels name the classes of a domain; there may be none. */
MDP_API size_t mdp_model_label_count(const mdp_model* model, size_t domain);
MDP_API const char* mdp_model_label(const mdp_model* model, size_t domain, size_t label);

/* A row-major array of float. Where `batched` is set, dims[0] is 1 and stands for the batch that
 * mdp_context_run is given; otherwise the batch must be 1. */
typedef struct mdp_tensor {
  const char* name;
  size_t rank;
  size_t dims[MDP_MAX_RANK];
  size_t elements; /* the product of dims */
  int batched;
} mdp_tensor;

MDP_API size_t mdp_model_input_count(const mdp_model* model, size_t domain);
MDP_API size_t mdp_model_output_count(const mdp_model* model, size_t domain);
MDP_API mdp_status mdp_model_input(const mdp_model* model, size_t domain, size_t input,
                                   mdp_tensor* tensor);
MDP_API mdp_status mdp_model_output(const mdp_model* model, size_t domain, size_t output,
                                    mdp_tensor* tensor);

typedef struct mdp_memory {
  size_t weight_bytes; /* mapped weight files, shared by all domains */
  size_t plan_bytes;   /* mapped plans, of all domains together */
  size_t arena_bytes;  /* activations, per context */
} mdp_memory;

MDP_API mdp_status mdp_model_memory(const mdp_model* model, mdp_memory* memory);

/* Contexts */

/* Runs body(argument, index, worker) for every index below count and returns when all are done.
 * Calls that run at the same time must have different worker numbers, all below the `workers` of
 * the options. */
typedef void (*mdp_parallel_for)(void* user, size_t count,
                                 void (*body)(void* argument, size_t index, size_t worker),
                                 void* argument);

typedef struct mdp_context_options {
  size_t size;     /* sizeof(mdp_context_options): fields may be added behind */
  size_t threads;  /* own threads, the caller's included; 0 is 1 */
  const char* isa; /* "avx512", "avx2", "neon", "portable", "reference"; NULL: the fastest */
  int profile;     /* not 0: measure every operator */
  mdp_parallel_for parallel_for; /* not NULL: the caller's threads are used, and `threads` is not */
  void* parallel_user;
  size_t parallel_workers; /* with parallel_for: at least 1 */
  const char* device;      /* "cpu", "cuda", "cuda:1"; NULL: "cpu" */
  /* What is below, for "cuda" only; `isa` and threads are for "cpu" only. */
  const char* precision; /* of activations and weights: "float32" or "float16"; NULL: "float32" */
  void* stream;          /* the caller's cudaStream_t; NULL: a stream of its own */
  int device_memory;     /* not 0: inputs and outputs are device memory, see mdp_context_run */
  int tune;              /* not 0: measure the tilings of all convolutions now */
} mdp_context_options;

#define MDP_CONTEXT_OPTIONS_INIT \
  { sizeof(mdp_context_options), 1, NULL, 0, NULL, NULL, 0, NULL, NULL, NULL, 0, 0 }

/* `options` NULL: one thread, the fastest instructions. Domain 0 is selected.
 *
 * Device "cuda" is the calling thread's current one. It needs libmdprune_cuda, which is looked for
 * beside this library and where the loader looks, or is the file that the environment variable
 * MDPRUNE_CUDA_LIBRARY names; MDP_UNSUPPORTED says what is missing. Weights of all domains are
 * uploaded once per model, device and precision, and stay until the last of its contexts is gone.
 *
 * Which of several kernels computes a convolution is chosen by a model of its cost or, with `tune`,
 * by measuring; what was measured is kept in the bundle for the next contexts on such a device. */
MDP_API mdp_status mdp_context_create(mdp_model* model, const mdp_context_options* options,
                                      mdp_context** context, char* message, size_t message_size);
MDP_API void mdp_context_destroy(mdp_context* context); /* NULL is allowed */

MDP_API mdp_status mdp_context_select_domain(mdp_context* context, size_t domain);
MDP_API size_t mdp_context_domain(const mdp_context* context);
/* The context's own hold on its model, for the functions above; not to be closed. */
MDP_API const mdp_model* mdp_context_model(const mdp_context* context);

/* `inputs` and `outputs`: one buffer of batch * elements floats for each, aligned as float.
 *
 * On a GPU, host buffers are copied, and the call returns when the outputs are there; the first run
 * of a domain makes a CUDA graph of it. Device buffers (`device_memory`) begin at multiples of 16
 * bytes and are used as they are: the call launches on the stream and returns, which a caller may
 * capture in a graph of its own. */
MDP_API mdp_status mdp_context_run(mdp_context* context, size_t batch, const float* const* inputs,
                                   float* const* outputs);

/* What was wrong with the last call that failed; never NULL. */
MDP_API const char* mdp_context_message(const mdp_context* context);
/* What the context's kernels run on: an instruction set, or "cuda:0 sm_87 float16". */
MDP_API const char* mdp_context_isa(const mdp_context* context);

typedef struct mdp_profile_entry {
  const char* name; /* of the operator in the network */
  const char* kind; /* "Convolution" */
  uint64_t nanoseconds;
} mdp_profile_entry;

/* The operators of the last run, in order; an empty table unless the options asked for it. Valid
 * until the next call that takes the context. */
MDP_API mdp_status mdp_context_profile(const mdp_context* context,
                                       const mdp_profile_entry** entries, size_t* count);

/* Bytes of a GPU's memory; all 0 for device "cpu". */
typedef struct mdp_device_memory {
  size_t size;          /* sizeof(mdp_device_memory), set by the caller */
  size_t weight_bytes;  /* weights of all domains, shared by contexts of one precision */
  size_t table_bytes;   /* index lists, scales and shifts of all domains, shared likewise */
  size_t context_bytes; /* activations and work space of this context */
} mdp_device_memory;

MDP_API mdp_status mdp_context_device_memory(const mdp_context* context, mdp_device_memory* memory);

/* Where a GPU's time of the last run with host buffers went; all 0 for device "cpu". */
typedef struct mdp_device_times {
  size_t size; /* sizeof(mdp_device_times), set by the caller */
  uint64_t to_device_nanoseconds;
  uint64_t compute_nanoseconds;
  uint64_t to_host_nanoseconds;
} mdp_device_times;

MDP_API mdp_status mdp_context_device_times(const mdp_context* context, mdp_device_times* times);

#ifdef __cplusplus
}
#endif

#endif
