// One case for every reason to refuse a plan or an index, and hostile copies of a good bundle: a
// status every time, never a crash.

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <random>

#include "bundle_writer.h"
#include "mdprune.h"
#include "mutate.h"

namespace mdprune {
namespace {

// x (1, 4, 4, 8) -> y (1, 4, 4, 8), and tensors to break it with.
struct Broken {
  WeightWriter weights;
  PlanWriter plan{weights};
  std::uint32_t x, y, hidden, vector, index, slab, packed, bits;

  Broken() {
    x = plan.input("x", {1, 4, 4, 8});
    y = plan.output("y", {1, 4, 4, 8});
    hidden = plan.arena({1, 4, 4, 8});
    vector = plan.data(std::vector<float>(8, 1.0F), {8});
    index = plan.integers({0, 1, 2, 3, 4, 5, 6, 7}, {8});
    slab = plan.weight(std::vector<float>(9 * 8 * 12), {9, 8, 12});
    packed = plan.data(std::vector<float>(9 * 8 * 16), {1, 1, 9, 8, 16});
    bits = plan.integers({0xFF}, {1});
    plan.files.emplace_back("weights.bin", weights.bytes.size());
    plan.add(5, "last", {x, y, 1, 0, 0});
  }
  // clang-format off
  Words convolution() const {
    return {x, y, kNone, kNone, kNone, kNone, 0, 0, 0, kNone, kNone, kNone, 0, 0, 0,
            2, 1, 3, 3, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 1, 0, 8, 1, slab, bits, kNone, kNone, kNone};
  }
  // clang-format on
  // The convolution of several readings of the slab: stored filters, the output's, and rows.
  void join(const std::vector<std::vector<std::int32_t>>& readings) {
    Words words = convolution();
    words.resize(32);
    words.push_back(static_cast<std::uint32_t>(readings.size()));
    for (const auto& sets : readings) {
      words.push_back(slab);
      words.push_back(plan.integers({sets[0]}, {1}));
      words.push_back(sets.size() > 2 ? plan.integers({sets[2]}, {1}) : kNone);
      words.push_back(sets[1] != 0 ? plan.integers({sets[1]}, {1}) : kNone);
    }
    words.push_back(kNone);
    plan.add(1, "convolution", words);
  }
  // The convolution with some of its words replaced.
  void convolve(std::initializer_list<std::pair<std::size_t, std::uint32_t>> replaced) {
    Words words = convolution();
    for (const auto& [at, word] : replaced) words[at] = word;
    plan.add(1, "convolution", words);
  }
};

struct Refusal {
  const char* message;  // a part of it
  std::function<void(Broken&)> breaks;
};

const Refusal kRefusals[] = {
    {"unknown flags", [](Broken& b) { b.plan.flags = 2; }},
    {"the arena is too large", [](Broken& b) { b.plan.arena_bytes = std::uint64_t{1} << 41; }},
    {"the batch is free, but",
     [](Broken& b) {
       b.plan.flags = 1;
       b.plan.tensors[b.x].sizes = {2, 4, 4, 4};
     }},
    {"a tensor's place is unknown", [](Broken& b) { b.plan.tensors[b.vector].place = 5; }},
    {"a tensor's type is unknown", [](Broken& b) { b.plan.tensors[b.vector].type = 2; }},
    {"a tensor's rank is too high", [](Broken& b) { b.plan.tensors[b.vector].sizes.assign(9, 1); }},
    {"a size is wrong", [](Broken& b) { b.plan.tensors[b.vector].sizes = {0}; }},
    {"a size is wrong", [](Broken& b) { b.plan.tensors[b.vector].sizes.assign(4, 0xFFFFFFFF); }},
    {"a tensor is outside of its place", [](Broken& b) { b.plan.tensors[b.hidden].offset = 4; }},
    {"a tensor is outside of its place",
     [](Broken& b) { b.plan.tensors[b.vector].offset = ~std::uint64_t{3}; }},
    {"a tensor is not aligned",
     [](Broken& b) {
       b.plan.tensors[b.slab].offset = 4;
       b.plan.tensors[b.slab].sizes = {8};
     }},
    {"a tensor names no file", [](Broken& b) { b.plan.tensors[b.slab].file = 1; }},
    {"a tensor names no input or output", [](Broken& b) { b.plan.tensors[b.x].offset = 1; }},
    {"an input or output names no tensor", [](Broken& b) { b.plan.inputs[0].tensor = 99; }},
    {"names the tensor of another", [](Broken& b) { b.plan.inputs[0].tensor = b.hidden; }},
    {"a view is larger",
     [](Broken& b) {
       b.plan.tensors.push_back({3, 0, {129}, 0, 0});
     }},
    {"a file's name is not a plain name", [](Broken& b) { b.plan.files[0].first = "../secret"; }},
    {"a file's name is not a plain name", [](Broken& b) { b.plan.files[0].first = ""; }},
    {"a text is not UTF-8", [](Broken& b) { b.plan.labels.emplace_back("\xC0\x80"); }},
    {"a text is not UTF-8", [](Broken& b) { b.plan.labels.emplace_back("a\0b", 3); }},
    {"weights.bin has", [](Broken& b) { b.plan.files[0].second += 64; }},
    {"no operator writes an output", [](Broken& b) { b.plan.operators.clear(); }},
    {"unknown operator", [](Broken& b) { b.plan.add(16, "new", {}); }},
    {"a word is missing",
     [](Broken& b) {
       b.plan.add(5, "u", {b.x, b.y, 1, 0});
     }},
    {"words are left",
     [](Broken& b) {
       b.plan.add(5, "u", {b.x, b.y, 1, 0, 0, 0});
     }},
    {"a code is unknown",
     [](Broken& b) {
       b.plan.add(5, "u", {b.x, b.y, 33, 0, 0});
     }},
    {"there is no such tensor",
     [](Broken& b) {
       b.plan.add(5, "u", {99, b.y, 1, 0, 0});
     }},
    {"integers stands where floats",
     [](Broken& b) {
       b.plan.add(5, "u", {b.index, b.y, 1, 0, 0});
     }},
    {"writes what is read-only",
     [](Broken& b) {
       b.plan.add(5, "u", {b.y, b.x, 1, 0, 0});
     }},
    {"the sizes do not match",
     [](Broken& b) {
       b.plan.add(5, "u", {b.vector, b.y, 1, 0, 0});
     }},
    {"an output overlaps an input",
     [](Broken& b) {
       b.plan.tensors.push_back({0, 0, {64}, 0, 4});
       b.plan.add(5, "u", {b.hidden, b.hidden, 1, 0, 0});
       b.plan.tensors.push_back({0, 0, {64}, 0, 8});
       b.plan.add(5, "u", {b.bits + 1, b.bits + 2, 1, 0, 0});
     }},
    {"an output overlaps an input",
     [](Broken& b) {
       b.plan.add(12, "m", {b.y, b.y, 1, 0, 0, 2, 1, 1});
     }},

    {"the rank is not that of the window",
     [](Broken& b) {
       b.convolve({{15, 1}});
     }},
    {"a size is 0",
     [](Broken& b) {
       b.convolve({{19, 0}});
     }},
    {"an axis that is not there has a window",
     [](Broken& b) {
       b.convolve({{16, 2}});
     }},
    {"a window is too large",
     [](Broken& b) {
       b.convolve({{20, 0xFFFFFFFF}});
     }},
    {"a window is too large",
     [](Broken& b) {
       b.convolve({{23, 0x7FFFFFFF}});
     }},
    {"a window is too large",
     [](Broken& b) {
       b.convolve({{27, 0x80000000}});
     }},
    {"a slab is not (taps, rows, filters)",
     [](Broken& b) {
       b.convolve({{17, 2}});
     }},
    {"weights are not in the bundle",
     [](Broken& b) {
       b.convolve({{33, b.hidden}});
     }},
    {"an index list is not one of the bundle",
     [](Broken& b) {
       b.convolve({{5, b.vector}});
     }},
    {"a convolution of slabs has groups",
     [](Broken& b) {
       b.convolve({{29, 2}});
     }},
    {"the filters do not divide",
     [](Broken& b) {
       b.convolve({{29, 3}});
     }},
    {"a convolution has no weight",
     [](Broken& b) {
       b.convolve({{32, 0}});
     }},
    {"the weights' filters are not the output's",
     [](Broken& b) {
       b.convolve({{31, 9}});
     }},
    {"the weights' filters are not the output's",
     [](Broken& b) {
       b.convolve({{31, 0}});
     }},
    {"a slab's used filters are not those of the output",
     [](Broken& b) {
       b.convolve({{31, 7}});
     }},
    {"a slab's used filters are not those of the output",
     [](Broken& b) {
       b.convolve({{34, kNone}});
     }},
    {"a slab's used filters are not those of the output",
     [](Broken& b) {
       b.convolve({{34, b.plan.integers({0x7F}, {1})}});
     }},
    {"goes past its end",
     [](Broken& b) {
       b.convolve({{34, b.plan.integers({0x1FE0}, {1})}});
     }},
    {"bit set has the wrong length",
     [](Broken& b) {
       b.convolve({{34, b.plan.integers({0xFF, 0}, {2})}});
     }},
    {"no row of a slab is used",
     [](Broken& b) {
       b.convolve({{35, b.plan.integers({0}, {1})}});
     }},
    {"goes past its end",
     [](Broken& b) {
       b.convolve({{35, b.plan.integers({0x100}, {1})}});
     }},
    {"bit set has the wrong length",
     [](Broken& b) {
       b.convolve({{35, b.plan.integers({0xFF, 0}, {2})}});
     }},
    {"channels are not those of the input",
     [](Broken& b) {
       b.convolve({{35, b.plan.integers({0x7F}, {1})}});
     }},
    {"a packed weight is not",
     [](Broken& b) {
       b.convolve({{30, 1}, {33, b.slab}, {34, kNone}});
     }},
    {"a packed convolution has a bit set",
     [](Broken& b) {
       b.convolve({{30, 1}, {33, b.packed}});
     }},
    {"a packed convolution has a bit set",
     [](Broken& b) {
       b.convolve({{30, 1}, {33, b.packed}, {34, kNone}, {35, b.bits}});
     }},
    {"a packed convolution has a bit set",
     [](Broken& b) {
       b.convolve({{30, 1}, {33, b.packed}, {34, kNone}, {36, b.bits}});
     }},
    {"a slab's used filters are not those of the output",
     [](Broken& b) {
       b.convolve({{36, b.plan.integers({0x7F}, {1})}});
     }},
    {"a slab lacks filters that no other one has",
     [](Broken& b) {
       b.join({{0x0F, 0x0F}});
     }},
    {"a slab lacks filters that no other one has",
     [](Broken& b) {
       b.join({{0x0F, 0x0F}, {0xFF, 0}});
     }},
    {"slabs that complete each other overlap",
     [](Broken& b) {
       b.join({{0x0F, 0x0F}, {0x0F, 0x1E}});
     }},
    {"slabs that complete each other have other rows",
     [](Broken& b) {
       b.join({{0x0F, 0x0F}, {0x0F, 0xF0, 0x7F}});
     }},
    {"a packed convolution has one weight",
     [](Broken& b) {
       b.convolve({{30, 1}, {32, 2}});
     }},
    {"an index is outside of its axis",
     [](Broken& b) {
       b.convolve({{5, b.plan.integers({0, 1, 2, 3, 4, 5, 6, 8}, {8})}});
     }},
    {"an index is outside of its axis",
     [](Broken& b) {
       b.convolve({{5, b.plan.integers({0, 1, 2, 3, 4, 5, 6, -1}, {8})}});
     }},
    {"an index list's length is wrong",
     [](Broken& b) {
       b.convolve({{5, b.bits}});
     }},
    {"a tensor's number of elements",
     [](Broken& b) {
       b.convolve({{2, b.slab}});
     }},
    {"the second output has another size",
     [](Broken& b) {
       b.convolve({{9, b.plan.arena({1, 4, 4, 4})}});
     }},
    {"is there without it",
     [](Broken& b) {
       b.convolve({{10, b.vector}});
     }},
    {"an output overlaps an input",
     [](Broken& b) {
       b.convolve({{9, b.y}});
     }},
    {"an output overlaps an input",
     [](Broken& b) {
       b.convolve({{4, b.hidden}, {9, b.hidden}});
     }},

    {"the residual has other positions",
     [](Broken& b) {
       b.convolve({{4, b.plan.arena({15, 8})}});
     }},
    {"the residual has other channels",
     [](Broken& b) {
       b.convolve({{4, b.plan.arena({16, 9})}});
     }},
    {"an index is outside of its axis",
     [](Broken& b) {
       b.convolve({{4, b.plan.arena({16, 7})}, {37, b.index}});
     }},
    {"and there is none",
     [](Broken& b) {
       b.convolve({{37, b.index}});
     }},

    {"a pool changes the channels",
     [](Broken& b) {
       b.plan.add(3, "p",
                  {b.x, b.plan.arena({1, 4, 4, 7}), 0, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0});
     }},
    {"no multiple of the input's channels",
     [](Broken& b) {
       b.plan.add(2, "d",
                  {b.x,
                   b.plan.arena({1, 4, 4, 4}),
                   kNone,
                   kNone,
                   kNone,
                   0,
                   0,
                   0,
                   b.plan.arena({4}),
                   2,
                   1,
                   1,
                   1,
                   1,
                   1,
                   1,
                   1,
                   1,
                   1,
                   0,
                   0,
                   0});
     }},
    {"the channels do not match",
     [](Broken& b) {
       b.plan.add(4, "a", {b.x, b.plan.arena({16, 7}), kNone, kNone, kNone, 0, 0, 0});
     }},
    {"the shapes do not broadcast",
     [](Broken& b) {
       b.plan.add(6, "b", {b.x, b.plan.arena({7}), b.y, 0, 0, 0, 0});
     }},
    {"the output has not the shape",
     [](Broken& b) {
       b.plan.add(6, "b", {b.x, b.vector, b.plan.arena({4, 4, 8}), 0, 0, 0, 0});
     }},
    {"the three axes do not make up",
     [](Broken& b) {
       b.plan.add(9, "s", {b.x, b.y, 0, 2, 8, 7});
     }},
    {"the output's size is wrong",
     [](Broken& b) {
       b.plan.add(8, "r", {b.x, b.y, 0, 1, 16, 8});
     }},
    {"the matrices do not fit",
     [](Broken& b) {
       b.plan.add(11, "m", {b.x, b.plan.arena({4, 8}), b.y});
     }},
    {"a move leaves its tensor",
     [](Broken& b) {
       b.plan.add(12, "m", {b.x, b.y, 1, 1, 0, 128, 1, 1});
     }},
    {"a move leaves its tensor",
     [](Broken& b) {
       b.plan.add(12, "m", {b.x, b.y, 1, 126, 0, 128, 0xFFFFFFFF, 1});
     }},
    {"a move is too long",
     [](Broken& b) {
       b.plan.add(12, "m", {b.x, b.y, 1, 0, 0, 0xFFFFFFFF, 0, 0});
     }},
    {"may write an element twice",
     [](Broken& b) {
       b.plan.add(12, "m", {b.x, b.y, 2, 0, 0, 3, 3, 3, 1, 2, 1});
     }},
    {"a move has too many axes",
     [](Broken& b) {
       b.plan.add(12, "m", {b.x, b.y, 17, 0, 0});
     }},
    {"an index is outside of its axis",
     [](Broken& b) {
       b.plan.add(13, "g", {b.x, b.plan.arena({32, 8}), b.index, 32, 4, 1});
     }},
    {"is not (positions, taps)",
     [](Broken& b) {
       b.plan.add(15, "i", {b.x, b.plan.arena({16, 8}), b.index, b.vector, 3, 16, 8, 1});
     }},
};

mdp_status open_plan(const Bytes& plan, const WeightWriter& weights, std::string* message) {
  const TemporaryDirectory directory;
  BundleWriter bundle;
  bundle.weights = weights;
  bundle.plans.emplace_back("only", plan);
  bundle.write(directory.path("bundle"));
  char text[512] = "";
  mdp_model* model = nullptr;
  const mdp_status status =
      mdp_model_open(directory.path("bundle").c_str(), &model, text, sizeof(text));
  mdp_model_close(model);
  *message = text;
  return status;
}

TEST(PlanTest, RefusesWhatBreaksTheSpecification) {
  std::string message;
  const Broken good;
  ASSERT_EQ(open_plan(good.plan.finish(), good.weights, &message), MDP_OK) << message;
  Broken convolution;
  convolution.convolve({});
  ASSERT_EQ(open_plan(convolution.plan.finish(), good.weights, &message), MDP_OK) << message;
  for (const Refusal& refusal : kRefusals) {
    Broken broken;
    refusal.breaks(broken);
    EXPECT_EQ(open_plan(broken.plan.finish(), broken.weights, &message), MDP_CORRUPT);
    EXPECT_NE(message.find(refusal.message), std::string::npos)
        << "\"" << message << "\" instead of \"" << refusal.message << "\"";
  }
}

TEST(PlanTest, NamesTheFileAndTheOperator) {
  std::string message;
  Broken broken;
  broken.plan.add(5, "conv1/relu", {broken.x, broken.y, 40, 0, 0});
  open_plan(broken.plan.finish(), broken.weights, &message);
  EXPECT_EQ(message, "0.plan: operator 1 (conv1/relu): a code is unknown");
}

TEST(PlanTest, RefusesOtherVersions) {
  std::string message;
  Broken broken;
  broken.plan.version = 2;
  EXPECT_EQ(open_plan(broken.plan.finish(), broken.weights, &message), MDP_VERSION);
  EXPECT_EQ(message, "0.plan: version 2; this library reads 1");
}

TEST(IndexTest, RefusesWhatBreaksTheSpecification) {
  const TemporaryDirectory directory;
  const BundleWriter good = small_bundle();
  good.write(directory.path("bundle"));
  const auto open = [&](const Bytes& index) {
    write_file(directory.path("bundle/native/index.bin"), index);
    char text[256] = "";
    mdp_model* model = nullptr;
    const mdp_status status =
        mdp_model_open(directory.path("bundle").c_str(), &model, text, sizeof(text));
    mdp_model_close(model);
    return std::make_pair(status, std::string(text));
  };
  using Result = std::pair<mdp_status, std::string>;
  const Bytes index = good.index();
  EXPECT_EQ(open(index).first, MDP_OK);
  Bytes longer = index;
  longer.push_back(0);
  EXPECT_EQ(open(longer), Result(MDP_CORRUPT, "index.bin: bytes follow the last domain"));
  EXPECT_EQ(open({}), Result(MDP_CORRUPT, "index.bin: the file ends too early"));
  Bytes version = index;
  version[8] = 9;
  EXPECT_EQ(open(version), Result(MDP_VERSION, "index.bin: version 9; this library reads 1"));
  Bytes none(index.begin(), index.begin() + 16);
  none[12] = 0;
  EXPECT_EQ(open(none), Result(MDP_CORRUPT, "index.bin: the number of domains is wrong"));
  BundleWriter twice = good;
  twice.plans[1].first = twice.plans[0].first;
  EXPECT_EQ(open(twice.index()), Result(MDP_CORRUPT, "index.bin: two domains have one name"));
  BundleWriter nameless = good;
  nameless.plans[1].first = "";
  EXPECT_EQ(open(nameless.index()), Result(MDP_CORRUPT, "index.bin: a domain has no name"));
}

// MDPRUNE_BUNDLE may name a bundle that the compiler wrote.
TEST(HostileTest, TenThousandBrokenCopiesGiveAStatus) {
  Mutator mutator(std::getenv("MDPRUNE_BUNDLE"));
  std::mt19937_64 random(1);
  std::size_t opened = 0;
  std::size_t refused = 0;
  for (int i = 0; i < 10000; ++i) {
    const bool ok = mutator.try_one(random());
    (ok ? opened : refused) += 1;
  }
  // Both happen, or the mutations say nothing.
  EXPECT_GT(opened, 100U);
  EXPECT_GT(refused, 3000U);
}

}  // namespace
}  // namespace mdprune
