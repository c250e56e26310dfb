/* classify_c BUNDLE DOMAIN IMAGE.ppm: prints the class that a domain sees in an image. */

#include <stdio.h>
#include <stdlib.h>

#include "image.h"
#include "mdprune.h"

static int complain(const char* text) {
  fprintf(stderr, "%s\n", text);
  return 1;
}

/* Runs the image and prints the label with the highest score. */
static int classify(mdp_context* context, size_t domain, const struct image* image) {
  const mdp_model* model = mdp_context_model(context);
  mdp_tensor input, output;
  float *planes, *scores;
  const float* inputs[1];
  float* outputs[1];
  size_t i, best = 0;
  const char* label;
  if (mdp_model_input_count(model, domain) != 1 || mdp_model_output_count(model, domain) != 1 ||
      mdp_model_input(model, domain, 0, &input) != MDP_OK ||
      mdp_model_output(model, domain, 0, &output) != MDP_OK || input.rank != 4 ||
      input.dims[0] != 1 || (input.dims[1] != 3 && input.dims[1] != 1)) {
    return complain("the network does not take one image and give one list of scores");
  }
  planes = (float*)malloc(input.elements * sizeof(float));
  scores = (float*)malloc(output.elements * sizeof(float));
  if (planes == NULL || scores == NULL) {
    free(planes);
    free(scores);
    return complain("out of memory");
  }
  image_to_planes(image, (int)input.dims[1], (int)input.dims[2], (int)input.dims[3], planes);
  inputs[0] = planes;
  outputs[0] = scores;
  if (mdp_context_run(context, 1, inputs, outputs) != MDP_OK) {
    free(planes);
    free(scores);
    return complain(mdp_context_message(context));
  }
  for (i = 1; i < output.elements; ++i) {
    if (scores[i] > scores[best]) best = i;
  }
  label = mdp_model_label(model, domain, best);
  if (label != NULL) {
    printf("%s %g\n", label, (double)scores[best]);
  } else {
    printf("class %lu %g\n", (unsigned long)best, (double)scores[best]);
  }
  free(planes);
  free(scores);
  return 0;
}

int main(int argc, char** argv) {
  char why[256];
  mdp_model* model;
  mdp_context* context;
  size_t domain;
  struct image image;
  int result;
  if (argc != 4) return complain("usage: classify_c BUNDLE DOMAIN IMAGE.ppm");
  if (mdp_model_open(argv[1], &model, why, sizeof why) != MDP_OK) return complain(why);
  if (mdp_model_find_domain(model, argv[2], &domain) != MDP_OK) {
    mdp_model_close(model);
    return complain("the bundle has no such domain");
  }
  result = mdp_context_create(model, NULL, &context, why, sizeof why);
  mdp_model_close(model); /* the context keeps it */
  if (result != MDP_OK) return complain(why);
  if (image_read(argv[3], &image) != 0) {
    mdp_context_destroy(context);
    return complain("this is no PPM or PGM image of 8 bits");
  }
  mdp_context_select_domain(context, domain);
  result = classify(context, domain, &image);
  free(image.pixels);
  mdp_context_destroy(context);
  return result;
}
