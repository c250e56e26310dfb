// Whole bundles on the device "cuda" of the library MDPRUNE_CUDA_FILE: the machine's or, with
// MDPRUNE_EMULATED_CUDA, an emulated one. Results are those of the CPU.

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "bundle_writer.h"
#include "failure.h"
#include "gpu/library.h"
#include "mdprune.h"
#include "mdprune.hpp"

namespace mdprune {
namespace {

mdp_context_options options_of(const char* device, const char* precision) {
  mdp_context_options options = MDP_CONTEXT_OPTIONS_INIT;
  options.device = device;
  options.precision = precision;
  return options;
}

std::vector<float> image(std::size_t batch, float phase = 0.0F) {
  std::vector<float> values(batch * 384);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::sin(float(i) * 0.7F + phase);
  return values;
}

// Of issue 5: against the largest value.
float tolerance(const std::string& precision) { return precision == "float16" ? 5e-3F : 1e-5F; }

void expect_near(const std::vector<float>& y, const std::vector<float>& r, float tolerance,
                 const std::string& what) {
  ASSERT_EQ(y.size(), r.size()) << what;
  float largest = 0.0F;
  for (const float value : r) largest = std::max(largest, std::fabs(value));
  for (std::size_t i = 0; i < r.size(); ++i) {
    ASSERT_NEAR(y[i], r[i], tolerance * largest) << what << ", element " << i;
  }
}

class CudaTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { setenv("MDPRUNE_CUDA_LIBRARY", MDPRUNE_CUDA_FILE, 1); }

  void SetUp() override {
    try {
      int count = 0;
      check(cuda_library(), cuda_library().device_count(&count), "no device");
    } catch (const Failure& failure) {
      GTEST_SKIP() << failure.what();
    }
    small_bundle().write(path());
  }

  std::string path() const { return directory_.path("bundle"); }

  void expect_equal_to_cpu(const std::string& path, const std::vector<std::vector<float>>& inputs,
                           std::size_t batch) {
    const Model model(path);
    Context reference(model);
    for (const char* precision : {"float32", "float16"}) {
      Context context(model, options_of("cuda", precision));
      for (std::size_t domain = 0; domain < model.domains().size(); ++domain) {
        reference.select(domain);
        context.select(domain);
        const auto r = reference.run(batch, inputs);
        for (int run = 0; run < 2; ++run) {  // the second one replays a graph
          const auto y = context.run(batch, inputs);
          for (std::size_t k = 0; k < r.size(); ++k) {
            expect_near(y[k], r[k], tolerance(precision),
                        std::string(precision) + ", domain " + std::to_string(domain) +
                            ", output " + std::to_string(k));
          }
        }
      }
    }
  }

  TemporaryDirectory directory_;
};

TEST_F(CudaTest, EveryOperatorEqualsTheCpu) { expect_equal_to_cpu(path(), {image(2)}, 2); }

// A scale and a shift that the network computes, not constants.
TEST_F(CudaTest, ScalesMayBeActivations) {
  BundleWriter bundle;
  PlanWriter plan(bundle.weights);
  const std::uint32_t x = plan.input("x", {3, 4});
  const std::uint32_t scale = plan.input("scale", {4});
  const std::uint32_t y = plan.output("y", {3, 4});
  const std::uint32_t doubled = plan.arena({4});
  plan.add(6, "double", {scale, scale, doubled, 0, 0, 0, 0});
  plan.add(4, "affine", {x, y, kNone, doubled, scale, 1, 0, 0});
  bundle.plans.emplace_back("only", plan.finish());
  bundle.write(directory_.path("scales"));
  expect_equal_to_cpu(directory_.path("scales"),
                      {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, {0.5F, -1, 2, 0.25F}}, 1);
}

// Kernels that read 16 bytes at a time meet a tensor that begins between them.
TEST_F(CudaTest, ActivationsMayBeginAnywhere) {
  BundleWriter bundle;
  PlanWriter plan(bundle.weights);
  plan.flags = 1;
  plan.input("x", {1, 35});
  const std::uint32_t y = plan.output("y", {1, 4, 8});
  const auto convolve = [&](std::uint32_t from, std::uint32_t to, float sign) {
    std::vector<float> values(64);
    for (std::size_t i = 0; i < 64; ++i) values[i] = sign * std::cos(float(i));
    plan.add(1, "convolution", {from,  to,
                                kNone, kNone,
                                kNone, kNone,
                                0,     0,
                                0,     kNone,
                                kNone, kNone,
                                0,     0,
                                0,     0,
                                1,     1,
                                1,     1,
                                1,     1,
                                1,     1,
                                1,     0,
                                0,     0,
                                0,     1,
                                0,     8,
                                1,     plan.weight(values, {1, 8, 8}),
                                kNone, kNone,
                                kNone, kNone});
  };
  plan.tensors.push_back({3, 0, {1, 4, 8}, 0, 0});  // the beginning of x
  const auto view = static_cast<std::uint32_t>(plan.tensors.size() - 1);
  const std::uint32_t memory = plan.arena({40});
  plan.tensors.push_back({0, 0, {1, 4, 8}, 0, plan.tensors[memory].offset + 4});
  const auto shifted = static_cast<std::uint32_t>(plan.tensors.size() - 1);
  convolve(view, shifted, 1.0F);
  convolve(shifted, y, -1.0F);
  plan.files.emplace_back("weights.bin", bundle.weights.bytes.size());
  bundle.plans.emplace_back("only", plan.finish());
  bundle.write(directory_.path("shifted"));
  std::vector<float> values(3 * 35);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::sin(float(i));
  expect_equal_to_cpu(directory_.path("shifted"), {values}, 3);
}

TEST_F(CudaTest, SaysWhatRuns) {
  const Model model(path());
  const std::string name = Context(model, options_of("cuda:0", "float16")).isa();
  EXPECT_EQ(name.substr(0, 10), "cuda:0 sm_");
  EXPECT_EQ(name.substr(name.size() - 8), " float16");
}

TEST_F(CudaTest, RefusesWhatIsNotThere) {
  const Model model(path());
  const auto refused = [&](const mdp_context_options& options) {
    char message[256] = "";
    mdp_context* context = nullptr;
    const mdp_status status =
        mdp_context_create(model.handle(), &options, &context, message, sizeof(message));
    EXPECT_EQ(context, nullptr);
    return std::to_string(status) + " " + message;
  };
  EXPECT_EQ(refused(options_of("tpu", nullptr)), "1 there is no device \"tpu\"");
  EXPECT_EQ(refused(options_of("cuda:x", nullptr)).substr(0, 32),
            "1 there is no device \"cuda:x\", o");
  EXPECT_EQ(refused(options_of("cuda:99", nullptr)).substr(0, 28), "7 device cuda:99: there are ");
  EXPECT_EQ(refused(options_of("cuda", "float8")),
            "7 device cuda: there is no precision float8, only float32 and float16");
  EXPECT_EQ(refused(options_of("cpu", "float16")),
            "7 device cpu: there is no precision float16, only float32");
  mdp_context_options options = options_of("cuda", nullptr);
  options.isa = "avx2";
  EXPECT_EQ(refused(options).substr(0, 2), "1 ");
  options = options_of("cpu", nullptr);
  options.tune = 1;
  EXPECT_EQ(refused(options), "1 device cpu: streams, device memory and tuning are cuda's");
}

TEST_F(CudaTest, ProfilesEveryOperator) {
  const Model model(path());
  mdp_context_options options = options_of("cuda", "float16");
  options.profile = 1;
  Context context(model, options);
  Context plain(model, options_of("cuda", "float16"));
  EXPECT_EQ(context.run(2, {image(2)}), plain.run(2, {image(2)}));
  const auto profile = context.profile();
  ASSERT_EQ(profile.size(), 18U);
  for (const mdp_profile_entry& entry : profile) EXPECT_GT(entry.nanoseconds, 0U) << entry.name;
  EXPECT_STREQ(profile[1].kind, "Convolution");
}

TEST_F(CudaTest, TellsWhereTheTimeWent) {
  Context context(Model(path()), options_of("cuda", "float32"));
  context.run(1, {image(1)});
  mdp_device_times times = context.device_times();
  EXPECT_GT(times.to_device_nanoseconds, 0U);
  EXPECT_GT(times.compute_nanoseconds, times.to_host_nanoseconds);
  times = {1, 0, 0, 0};
  EXPECT_EQ(mdp_context_device_times(context.handle(), &times), MDP_INVALID_ARGUMENT);
}

TEST_F(CudaTest, ThreadsHaveContextsOfOneModel) {
  const Model model(path());
  const auto inputs = image(2);
  std::vector<std::vector<std::vector<float>>> expected;
  Context first(model, options_of("cuda", "float32"));
  for (std::size_t domain = 0; domain < 3; ++domain) {
    first.select(domain);
    expected.push_back(first.run(2, {inputs}));
  }
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      Context context(model, options_of("cuda", t == 2 ? "float16" : "float32"));
      for (std::size_t i = 0; i < 6; ++i) {
        context.select((t + i) % 3);
        const auto y = context.run(2, {inputs});
        if (t == 2) continue;
        EXPECT_EQ(y, expected[(t + i) % 3]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Device memory on a stream of the caller's, and a graph that the caller captures.
TEST_F(CudaTest, RunsOnTheCallersStreamAndMemory) {
  const cuda::Library& library = cuda_library();
  const DeviceHandle stream = make_stream(library);
  const Model model(path());
  Context reference(model, options_of("cuda", "float16"));
  mdp_context_options options = options_of("cuda", "float16");
  options.stream = stream.get();
  options.device_memory = 1;
  Context context(model, options);
  for (std::size_t domain = 0; domain < 3; ++domain) {
    reference.select(domain);
    context.select(domain);
    const auto values = image(2, 1.0F);
    const auto expected = reference.run(2, {values});
    const DeviceBytes x(library, values.size() * 4);
    const DeviceBytes scores(library, expected[0].size() * 4), map(library, expected[1].size() * 4);
    const float* inputs[] = {reinterpret_cast<const float*>(x.data())};
    float* outputs[] = {reinterpret_cast<float*>(scores.data()),
                        reinterpret_cast<float*>(map.data())};
    const auto expect_outputs = [&] {
      std::vector<float> y(expected[0].size()), y2(expected[1].size());
      library.to_host(y.data(), scores.data(), y.size() * 4, stream.get());
      library.to_host(y2.data(), map.data(), y2.size() * 4, stream.get());
      EXPECT_EQ(library.wait(stream.get()), 0);
      EXPECT_EQ(y, expected[0]);
      EXPECT_EQ(y2, expected[1]);
    };
    library.to_device(x.data(), values.data(), x.size(), stream.get());
    const float* between[] = {inputs[0] + 1};
    EXPECT_EQ(mdp_context_run(context.handle(), 1, between, outputs), MDP_INVALID_ARGUMENT);
    context.run(2, inputs, outputs);
    expect_outputs();

    ASSERT_EQ(library.begin_graph(stream.get()), 0);
    context.run(2, inputs, outputs);
    void* graph = nullptr;
    ASSERT_EQ(library.end_graph(&graph, stream.get()), 0);
    for (const DeviceBytes* output : {&scores, &map}) {
      library.clear(output->data(), output->size(), stream.get());
    }
    EXPECT_EQ(library.launch_graph(graph, stream.get()), 0);
    expect_outputs();
    EXPECT_EQ(library.destroy_graph(graph), 0);
  }
}

TEST_F(CudaTest, HostMemoryOnTheCallersStream) {
  const DeviceHandle stream = make_stream(cuda_library());
  const Model model(path());
  mdp_context_options options = options_of("cuda", "float32");
  Context own(model, options);
  options.stream = stream.get();
  Context context(model, options);
  EXPECT_EQ(context.run(3, {image(3)}), own.run(3, {image(3)}));
}

TEST_F(CudaTest, WeightsAreThereOncePerPrecision) {
  const Model model(path());
  Context first(model, options_of("cuda", "float32"));
  Context half(model, options_of("cuda", "float16"));
  const mdp_device_memory whole = first.device_memory();
  BundleWriter alone = small_bundle();
  alone.plans.resize(1);
  alone.write(directory_.path("alone"));
  const Context one(Model(directory_.path("alone")), options_of("cuda", "float32"));
  // Two slabs that the three domains share.
  const std::size_t shared = (9 * 4 * 12 + 9 * 2 * 12) * 4;
  EXPECT_GT(whole.weight_bytes, shared);
  EXPECT_LT(whole.weight_bytes, one.device_memory().weight_bytes + 2 * shared);
  EXPECT_LT(half.device_memory().weight_bytes, whole.weight_bytes);
  EXPECT_GT(whole.table_bytes, 0U);
  EXPECT_GT(whole.context_bytes, 0U);
  const Context cpu(model);
  EXPECT_EQ(cpu.device_memory().weight_bytes, 0U);
  mdp_device_memory memory{};
  EXPECT_EQ(mdp_context_device_memory(first.handle(), &memory), MDP_INVALID_ARGUMENT);
}

std::vector<std::filesystem::path> tiling_files(const std::string& bundle) {
  std::vector<std::filesystem::path> found;
  for (const auto& entry : std::filesystem::directory_iterator(bundle + "/native")) {
    if (entry.path().extension() == ".tilings") found.push_back(entry.path());
  }
  return found;
}

class TilingsTest : public CudaTest {
 protected:
  std::vector<std::filesystem::path> files() const { return tiling_files(path()); }
  static std::string text_of(const std::filesystem::path& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  std::vector<std::vector<float>> run(bool tune) const {
    mdp_context_options options = options_of("cuda", "float16");
    options.tune = tune ? 1 : 0;
    return Context(Model(path()), options).run(1, {image(1)});
  }
};

TEST_F(TilingsTest, MeasuredOnceAndKeptInTheBundle) {
  run(false);
  EXPECT_TRUE(files().empty());
  const auto y = run(true);
  ASSERT_EQ(files().size(), 1U);
  const std::string text = text_of(files()[0]);
  EXPECT_EQ(text.substr(0, 8), "mdprune ");
  // Two convolutions; the heads of the three domains differ in their filters.
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1 + 1 + 3);
  EXPECT_EQ(run(false), y);
  EXPECT_EQ(run(true), y);
  EXPECT_EQ(text_of(files()[0]), text);
}

TEST_F(TilingsTest, BrokenFilesAreAsNone) {
  const auto expected = run(false);
  run(true);
  const std::filesystem::path file = files().at(0);
  const std::string text = text_of(file);
  const std::string header = text.substr(0, text.find('\n') + 1);
  const std::string key = text.substr(header.size(), text.find(" | ") - header.size());
  for (const std::string& content :
       {std::string(), std::string("mdprune 9.9 tilings\n") + text.substr(header.size()),
        header + "no bar\n", header + key + " | 1\n", header + key + " | 1 2 3\n",
        header + key + " | 999 1\n", header + key + " | -1 -1\n", header + std::string(3, '\0'),
        header + key + " | 0 1000000\n"}) {
    std::ofstream(file, std::ios::trunc) << content;
    EXPECT_EQ(run(false), expected) << content;
  }
  std::filesystem::remove(file);
  std::filesystem::create_directory(file);
  EXPECT_EQ(run(false), expected);
  run(true);  // what cannot be replaced is left
  EXPECT_TRUE(std::filesystem::is_directory(file));
  EXPECT_EQ(files().size(), 1U);
}

#ifdef MDPRUNE_EMULATED_CUDA

// Bytes and calls of the emulated device.
class EmulatedTest : public CudaTest {
 protected:
  template <typename F>
  static F find(const char* name) {
    void* library = dlopen(MDPRUNE_CUDA_FILE, RTLD_NOW | RTLD_NOLOAD);
    return reinterpret_cast<F>(dlsym(library, name));
  }
  std::size_t used() const { return find<std::size_t (*)()>("emulated_used_bytes")(); }
  std::size_t calls() const { return find<std::size_t (*)()>("emulated_memory_calls")(); }
  void fail(std::size_t call) const {
    find<void (*)(std::size_t)>("emulated_fail_memory_call")(call);
  }
};

TEST_F(EmulatedTest, SelectAndRunAllocateNothingOnTheDevice) {
  const Model model(path());
  for (const char* precision : {"float32", "float16"}) {
    Context context(model, options_of("cuda", precision));
    const std::size_t before = calls();
    for (std::size_t domain = 0; domain < 3; ++domain) {
      context.select(domain);
      context.run(2, {image(2)});
    }
    EXPECT_EQ(calls(), before);
  }
}

TEST_F(EmulatedTest, ContextsShareWeightsAndTheLastFreesThem) {
  const Model model(path());
  EXPECT_EQ(used(), 0U);
  {
    const Context first(model, options_of("cuda", "float32"));
    const std::size_t one = used();
    const mdp_device_memory memory = first.device_memory();
    EXPECT_EQ(one, memory.weight_bytes + memory.table_bytes + memory.context_bytes);
    {
      const Context second(model, options_of("cuda", "float32"));
      EXPECT_EQ(used(), one + memory.context_bytes);
    }
    EXPECT_EQ(used(), one);
  }
  EXPECT_EQ(used(), 0U);
}

TEST_F(EmulatedTest, AFailedAllocationIsAStatusAndLeaksNothing) {
  const Model model(path());
  for (const int tune : {0, 1}) {
    mdp_context_options options = options_of("cuda", "float16");
    options.tune = tune;
    std::size_t failures = 0;
    for (std::size_t n = 1;; ++n) {
      for (const auto& file : tiling_files(path())) std::filesystem::remove(file);
      char message[128] = "";
      mdp_context* context = nullptr;
      const std::size_t before = calls();
      fail(n);
      const mdp_status status =
          mdp_context_create(model.handle(), &options, &context, message, sizeof(message));
      fail(0);
      const bool done = calls() - before < n;
      mdp_context_destroy(context);
      EXPECT_EQ(used(), 0U);
      if (done) break;
      if (status == MDP_OK) continue;  // that call gave memory back
      EXPECT_EQ(status, MDP_NO_MEMORY) << message;
      EXPECT_STREQ(message, "device cuda: memory: cudaErrorMemoryAllocation");
      ++failures;
    }
    EXPECT_EQ(failures, tune == 0 ? 4U : 5U);
  }
}

#endif

}  // namespace
}  // namespace mdprune
