// The C interface: life cycle, results, misuse, files that are not there or are being replaced.

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>

#include "bundle_writer.h"
#include "mdprune.h"
#include "mdprune.hpp"

namespace mdprune {
namespace {

class ApiTest : public testing::Test {
 protected:
  void SetUp() override { small_bundle().write(path()); }
  std::string path() const { return directory_.path("bundle"); }

  mdp_status open(const std::string& path) {
    mdp_model* model = nullptr;
    const mdp_status status = mdp_model_open(path.c_str(), &model, message_, sizeof(message_));
    EXPECT_EQ(model != nullptr, status == MDP_OK);
    mdp_model_close(model);
    return status;
  }

  TemporaryDirectory directory_;
  char message_[256] = "";
};

std::vector<float> image(std::size_t batch, float phase = 0.0F) {
  std::vector<float> values(batch * 384);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::sin(float(i) * 0.7F + phase);
  return values;
}

TEST_F(ApiTest, DescribesTheBundle) {
  const Model model(path());
  EXPECT_EQ(model.domains(), (std::vector<std::string>{"domain 0", "domain 1", "domain 2"}));
  EXPECT_EQ(model.find("domain 1"), 1U);
  EXPECT_EQ(model.labels(1).size(), 5U);
  EXPECT_EQ(model.labels(1)[4], "class 4");
  const mdp_tensor input = model.inputs(0).at(0);
  EXPECT_STREQ(input.name, "image");
  EXPECT_EQ(input.rank, 4U);
  EXPECT_EQ(input.dims[3], 8U);
  EXPECT_EQ(input.elements, 384U);
  EXPECT_EQ(input.batched, 1);
  const auto outputs = model.outputs(2);
  ASSERT_EQ(outputs.size(), 2U);
  EXPECT_EQ(outputs[0].elements, 6U);
  EXPECT_STREQ(outputs[1].name, "map");
  const mdp_memory memory = model.memory();
  EXPECT_EQ(memory.weight_bytes, small_bundle().weights.bytes.size());
  EXPECT_GT(memory.plan_bytes, 0U);
  EXPECT_GT(memory.arena_bytes, 8192U);
  EXPECT_STREQ(mdp_version(), "0.1.0");
}

TEST_F(ApiTest, EveryInstructionSetComputesTheSame) {
  const Model model(path());
  mdp_context_options options = MDP_CONTEXT_OPTIONS_INIT;
  options.isa = "reference";
  Context reference(model, options);
  for (const char* isa : {"avx512", "avx2", "neon", "portable"}) {
    options.isa = isa;
    mdp_context* probe = nullptr;
    const mdp_status status = mdp_context_create(model.handle(), &options, &probe, nullptr, 0);
    mdp_context_destroy(probe);
    if (status == MDP_UNSUPPORTED) continue;
    Context context(model, options);
    EXPECT_EQ(context.isa(), isa);
    for (std::size_t domain = 0; domain < 3; ++domain) {
      reference.select(domain);
      context.select(domain);
      const auto r = reference.run(2, {image(2)});
      const auto y = context.run(2, {image(2)});
      for (std::size_t k = 0; k < 2; ++k) {
        for (std::size_t i = 0; i < r[k].size(); ++i) {
          EXPECT_NEAR(y[k][i], r[k][i], 1e-5) << isa << " " << domain << " " << k << " " << i;
        }
      }
    }
  }
}

TEST_F(ApiTest, ImagesOfABatchAreRunOneByOne) {
  Context context((Model(path())));
  context.select("domain 2");
  EXPECT_EQ(context.domain(), 2U);
  const auto many = context.run(3, {image(3)});
  const auto all = image(3);
  for (std::size_t n = 0; n < 3; ++n) {
    const auto one =
        context.run(1, {{all.begin() + long(n) * 384, all.begin() + long(n + 1) * 384}});
    for (std::size_t k = 0; k < 2; ++k) {
      EXPECT_EQ(std::memcmp(one[k].data(), many[k].data() + n * one[k].size(), one[k].size() * 4),
                0);
    }
  }
  // What the plan fills and does not overwrite: the first column of every row.
  EXPECT_EQ(many[1][8], 0.5F);
  EXPECT_NE(many[1][9], 0.5F);
}

TEST_F(ApiTest, ContextsOutliveTheirModelAndItsFiles) {
  auto model = std::make_unique<Model>(path());
  Context context(*model);
  const auto before = context.run(1, {image(1)});
  model.reset();
  std::filesystem::remove_all(path());
  EXPECT_EQ(context.run(1, {image(1)}), before);
}

TEST_F(ApiTest, ProfilesEveryOperator) {
  const Model model(path());
  mdp_context_options options = MDP_CONTEXT_OPTIONS_INIT;
  EXPECT_TRUE(Context(model, options).profile().empty());
  options.profile = 1;
  Context context(model, options);
  context.run(2, {image(2)});
  const auto profile = context.profile();
  ASSERT_EQ(profile.size(), 18U);
  EXPECT_STREQ(profile[1].name, "convolution");
  EXPECT_STREQ(profile[1].kind, "Convolution");
  EXPECT_GT(profile[1].nanoseconds, 0U);
}

TEST_F(ApiTest, MisuseIsAStatus) {
  EXPECT_EQ(mdp_model_open(nullptr, nullptr, nullptr, 0), MDP_INVALID_ARGUMENT);
  mdp_model* none = nullptr;
  EXPECT_EQ(mdp_model_open(nullptr, &none, message_, sizeof(message_)), MDP_INVALID_ARGUMENT);
  EXPECT_STREQ(message_, "a null pointer");
  const Model model(path());
  std::size_t number = 0;
  mdp_tensor tensor;
  EXPECT_EQ(mdp_model_find_domain(model.handle(), "domain", &number), MDP_NOT_FOUND);
  EXPECT_EQ(mdp_model_find_domain(nullptr, "domain", &number), MDP_INVALID_ARGUMENT);
  EXPECT_EQ(mdp_model_domain_name(model.handle(), 3), nullptr);
  EXPECT_EQ(mdp_model_label(model.handle(), 0, 4), nullptr);
  EXPECT_EQ(mdp_model_input(model.handle(), 0, 1, &tensor), MDP_INVALID_ARGUMENT);
  EXPECT_EQ(mdp_model_output(model.handle(), 9, 0, &tensor), MDP_INVALID_ARGUMENT);
  mdp_model_close(nullptr);
  mdp_context_destroy(nullptr);
  EXPECT_EQ(mdp_context_run(nullptr, 1, nullptr, nullptr), MDP_INVALID_ARGUMENT);
  EXPECT_STREQ(mdp_status_text(MDP_CORRUPT), "the bundle is corrupt");
  EXPECT_STREQ(mdp_status_text(static_cast<mdp_status>(99)), "unknown status");

  Context context(model);
  const auto message = [&] { return std::string(mdp_context_message(context.handle())); };
  EXPECT_EQ(mdp_context_select_domain(context.handle(), 3), MDP_INVALID_ARGUMENT);
  EXPECT_EQ(message(), "domain 3: there are 3");
  EXPECT_EQ(mdp_context_run(context.handle(), 1, nullptr, nullptr), MDP_INVALID_ARGUMENT);
  EXPECT_EQ(message(), "there are no inputs");
  const auto x = image(1);
  std::vector<float> y(4), map(768);
  const float* inputs[] = {x.data()};
  float* outputs[] = {y.data(), nullptr};
  EXPECT_EQ(mdp_context_run(context.handle(), 1, inputs, outputs), MDP_INVALID_ARGUMENT);
  EXPECT_EQ(message(), "output 1 (map) is null or not aligned");
  outputs[1] = map.data();
  EXPECT_EQ(mdp_context_run(context.handle(), 0, inputs, outputs), MDP_INVALID_ARGUMENT);
  EXPECT_EQ(message(), "the batch is 0");
  EXPECT_EQ(mdp_context_run(context.handle(), SIZE_MAX, inputs, outputs), MDP_INVALID_ARGUMENT);
  EXPECT_EQ(mdp_context_run(context.handle(), 1, inputs, outputs), MDP_OK);
  EXPECT_THROW(context.select("none"), Error);
  EXPECT_THROW(context.run(2, {x}), Error);
}

TEST_F(ApiTest, BadOptionsAreAStatus) {
  const Model model(path());
  const auto create = [&](const mdp_context_options& options) {
    mdp_context* context = nullptr;
    const mdp_status status =
        mdp_context_create(model.handle(), &options, &context, message_, sizeof(message_));
    mdp_context_destroy(context);
    return status;
  };
  mdp_context_options options = MDP_CONTEXT_OPTIONS_INIT;
  EXPECT_EQ(create(options), MDP_OK);
  options.isa = "sse9";
  EXPECT_EQ(create(options), MDP_UNSUPPORTED);
  EXPECT_STREQ(message_, "sse9: these instructions are not there");
  options.isa = nullptr;
  options.threads = 5000;
  EXPECT_EQ(create(options), MDP_INVALID_ARGUMENT);
  options.threads = 0;
  options.size = sizeof(options) + 8;
  EXPECT_EQ(create(options), MDP_INVALID_ARGUMENT);
  options.size = 2 * sizeof(std::size_t);  // a caller of an older version
  EXPECT_EQ(create(options), MDP_OK);
  options.size = sizeof(options);
  options.parallel_for = [](void*, size_t, void (*)(void*, size_t, size_t), void*) {};
  EXPECT_EQ(create(options), MDP_INVALID_ARGUMENT);
}

TEST_F(ApiTest, AMissingCudaLibraryIsAStatus) {
  const Model model(path());
  mdp_context_options options = MDP_CONTEXT_OPTIONS_INIT;
  options.device = "cuda";
  for (const std::string& file : {directory_.path("none.so"), path() + "/native/weights.bin"}) {
    setenv("MDPRUNE_CUDA_LIBRARY", file.c_str(), 1);
    mdp_context* context = nullptr;
    EXPECT_EQ(mdp_context_create(model.handle(), &options, &context, message_, sizeof(message_)),
              MDP_UNSUPPORTED);
    EXPECT_EQ(context, nullptr);
    const std::string told = "device cuda: the library of the CUDA kernels is not there: " + file;
    EXPECT_EQ(std::string(message_).substr(0, told.size()), told);
  }
  unsetenv("MDPRUNE_CUDA_LIBRARY");
}

TEST_F(ApiTest, MissingAndForeignFilesAreAStatus) {
  EXPECT_EQ(open(directory_.path("nowhere")), MDP_NOT_FOUND);
  std::filesystem::create_directories(directory_.path("empty/native"));
  EXPECT_EQ(open(directory_.path("empty")), MDP_NOT_FOUND);
  EXPECT_STREQ(message_, "index.bin: No such file or directory");
  EXPECT_EQ(open(path() + "/native/index.bin"), MDP_NOT_FOUND);

  const std::string weights = path() + "/native/weights.bin";
  std::filesystem::rename(weights, directory_.path("moved"));
  EXPECT_EQ(open(path()), MDP_NOT_FOUND);
  std::filesystem::create_symlink(directory_.path("moved"), weights);
  EXPECT_EQ(open(path()), MDP_NOT_FOUND);
  std::filesystem::remove(weights);
  std::filesystem::create_directory(weights);
  EXPECT_EQ(open(path()), MDP_CORRUPT);
  EXPECT_STREQ(message_, "0.plan: weights.bin is not a regular file");
  std::filesystem::remove(weights);
  write_file(weights, Bytes(64));
  EXPECT_EQ(open(path()), MDP_CORRUPT);
  EXPECT_NE(std::string(message_).find("weights.bin has 64 bytes instead of "), std::string::npos);
}

// While one thread puts one of two bundles in the place of the other, over and over, a reader opens
// one of them whole.
TEST_F(ApiTest, AReplacedBundleIsTheOldOrTheNew) {
  BundleWriter other = small_bundle();
  other.plans.resize(1);
  other.plans[0].first = "other";
  other.write(directory_.path("spare"));
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    while (!stop) {
      std::filesystem::rename(path(), directory_.path("old"));
      std::filesystem::rename(directory_.path("spare"), path());
      std::filesystem::rename(directory_.path("old"), directory_.path("spare"));
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  });
  for (int i = 0; i < 500; ++i) {
    const Model model(path());
    const auto domains = model.domains();
    EXPECT_EQ(domains.size(), domains[0] == "other" ? 1U : 3U);
  }
  stop = true;
  writer.join();
}

}  // namespace
}  // namespace mdprune
