// classify_cpp BUNDLE IMAGE.ppm [DOMAIN...]: prints the class that each domain (all, if none is
// named) sees in an image. One context serves all of them.

#include <algorithm>
#include <exception>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "image.h"
#include "mdprune.hpp"

namespace {

using Pixels = std::unique_ptr<unsigned char, decltype(&std::free)>;

void classify(const mdprune::Model& model, mdprune::Context& context, const std::string& name,
              const image& picture) {
  const std::size_t domain = model.find(name);
  const auto inputs = model.inputs(domain);
  if (inputs.size() != 1 || inputs[0].rank != 4 || inputs[0].dims[0] != 1 ||
      (inputs[0].dims[1] != 3 && inputs[0].dims[1] != 1)) {
    throw std::runtime_error(name + " does not take one image");
  }
  const auto& dims = inputs[0].dims;
  std::vector<float> planes(inputs[0].elements);
  image_to_planes(&picture, int(dims[1]), int(dims[2]), int(dims[3]), planes.data());
  context.select(domain);
  const std::vector<float> scores = context.run(1, {planes}).at(0);
  const auto best = std::max_element(scores.begin(), scores.end()) - scores.begin();
  const char* label = mdp_model_label(model.handle(), domain, std::size_t(best));
  std::cout << name << ": "
            << (label != nullptr ? std::string(label) : "class " + std::to_string(best)) << " "
            << scores[std::size_t(best)] << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: classify_cpp BUNDLE IMAGE.ppm [DOMAIN...]\n";
    return 1;
  }
  try {
    const mdprune::Model model(argv[1]);
    mdprune::Context context(model);
    image picture;
    if (image_read(argv[2], &picture) != 0) {
      throw std::runtime_error("this is no PPM or PGM image of 8 bits");
    }
    const Pixels owner(picture.pixels, &std::free);
    std::vector<std::string> domains(argv + 3, argv + argc);
    if (domains.empty()) domains = model.domains();
    for (const std::string& domain : domains) classify(model, context, domain, picture);
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
