// The plug-in as TensorRT sees it: loaded through the registry, created of fields, asked for
// shapes, formats and its serialised form. Numbers are tests/test_tensorrt_plugin.py's, by
// run_node.

#include <NvInferRuntime.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <deque>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace {

using namespace nvinfer1;

IPluginCreatorV3One* creator() {
  static IPluginCreatorV3One* const found = [] {
    EXPECT_NE(getPluginRegistry()->loadLibrary(MDPRUNE_TENSORRT_LIBRARY), nullptr);
    return static_cast<IPluginCreatorV3One*>(
        getPluginRegistry()->getCreator("GatherConv", "1", "mdprune"));
  }();
  return found;
}

// Two slabs of 8 filters: of the first 8 of 12 filters and 2 of 3 rows, of the second all.
struct Case {
  std::string files = std::string(64, '0') + " 0 256 w.bin";
  std::map<std::string, std::vector<std::int32_t>> ints{
      {"slabs", {0, 0, 3, 12, 1, 1, 0, 3, 2, 8, 0, 0}},
      {"bits", {0xff0}},
      {"rows", {0b101}},
      {"channels", {6}},
      {"index", {5, 0, 1, 3}},
      {"activation", {3}},
      {"kernel_shape", {1, 1}},
      {"strides", {2, 1}},
      {"dilations", {1, 1}},
      {"pads", {1, 0, 0, 1}}};
  std::map<std::string, std::vector<float>> floats{{"alpha", {0.25F}},
                                                   {"beta", {0.0F}},
                                                   {"scale", std::vector<float>(8, 1.0F)},
                                                   {"shift", std::vector<float>(8, 0.5F)}};

  std::unique_ptr<IPluginV3> create() const {
    std::vector<PluginField> fields{
        {"plugin_version", "1", PluginFieldType::kCHAR, 1},  // a node's, not a creator's
        {"files", files.data(), PluginFieldType::kCHAR, static_cast<std::int32_t>(files.size())}};
    for (const auto& [name, values] : ints) {
      fields.emplace_back(name.c_str(), values.data(), PluginFieldType::kINT32,
                          static_cast<std::int32_t>(values.size()));
    }
    for (const auto& [name, values] : floats) {
      fields.emplace_back(name.c_str(), values.data(), PluginFieldType::kFLOAT32,
                          static_cast<std::int32_t>(values.size()));
    }
    const PluginFieldCollection given{static_cast<std::int32_t>(fields.size()), fields.data()};
    return std::unique_ptr<IPluginV3>(
        creator()->createPlugin("node", &given, TensorRTPhase::kBUILD));
  }
};

template <typename Interface>
Interface* as(IPluginV3& plugin, PluginCapabilityType type) {
  return static_cast<Interface*>(plugin.getCapabilityInterface(type));
}
IPluginV3OneBuild* build(IPluginV3& plugin) {
  return as<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}
IPluginV3OneRuntime* runtime(IPluginV3& plugin) {
  return as<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

// What a builder does with sizes, here with numbers; -1 is a size that is not known.
class Expression final : public IDimensionExpr {
 public:
  explicit Expression(std::int64_t value) : value_(value) {
    mImpl = &answers_;
    answers_.owner = this;
  }
  ~Expression() noexcept override = default;
  std::int64_t value() const { return value_; }

 private:
  struct Answers final : apiv::VDimensionExpr {
    const Expression* owner = nullptr;
    bool isConstant() const noexcept override { return owner->value_ >= 0; }
    int64_t getConstantValue() const noexcept override { return owner->value_; }
    bool isSizeTensor() const noexcept override { return false; }
  };
  std::int64_t value_;
  Answers answers_;
};

class Builder final : public IExprBuilder {
 public:
  Builder() { mImpl = &answers_; }
  ~Builder() noexcept override = default;
  const IDimensionExpr* make(std::int64_t value) { return answers_.constant(value); }

 private:
  struct Answers final : apiv::VExprBuilder {
    std::deque<Expression> made;
    const IDimensionExpr* constant(int64_t value) noexcept override {
      return &made.emplace_back(value);
    }
    const IDimensionExpr* operation(DimensionOperation op, const IDimensionExpr& first,
                                    const IDimensionExpr& second) noexcept override {
      const std::int64_t a = static_cast<const Expression&>(first).value();
      const std::int64_t b = static_cast<const Expression&>(second).value();
      if (op == DimensionOperation::kSUM) return constant(a + b);
      if (op == DimensionOperation::kSUB) return constant(a - b);
      EXPECT_EQ(op, DimensionOperation::kFLOOR_DIV);
      return constant(a / b);
    }
    const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&,
                                            const IDimensionExpr&) noexcept override {
      return nullptr;
    }
  };
  Answers answers_;
};

std::vector<std::int64_t> output_shape(IPluginV3& plugin, const std::vector<std::int64_t>& x) {
  Builder builder;
  DimsExprs in{}, out{};
  in.nbDims = static_cast<std::int32_t>(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) in.d[i] = builder.make(x[i]);
  if (build(plugin)->getOutputShapes(&in, 1, nullptr, 0, &out, 1, builder) != 0) return {};
  std::vector<std::int64_t> sizes;
  for (std::int32_t i = 0; i < out.nbDims; ++i) {
    sizes.push_back(static_cast<const Expression*>(out.d[i])->value());
  }
  return sizes;
}

TEST(Creator, IsFoundByNameVersionAndNamespace) {
  ASSERT_NE(creator(), nullptr);
  EXPECT_STREQ(creator()->getPluginName(), "GatherConv");
  EXPECT_STREQ(creator()->getPluginVersion(), "1");
  EXPECT_STREQ(creator()->getPluginNamespace(), "mdprune");
  EXPECT_EQ(getPluginRegistry()->getCreator("GatherConv", "1", ""), nullptr);
  const PluginFieldCollection& names = *creator()->getFieldNames();
  EXPECT_EQ(names.nbFields, 15);
  EXPECT_STREQ(names.fields[0].name, "files");
}

TEST(Plugin, TellsWhoItIs) {
  const auto plugin = Case().create();
  ASSERT_NE(plugin, nullptr);
  auto* const core = as<IPluginV3OneCore>(*plugin, PluginCapabilityType::kCORE);
  EXPECT_STREQ(core->getPluginName(), "GatherConv");
  EXPECT_STREQ(core->getPluginNamespace(), "mdprune");
  EXPECT_EQ(build(*plugin)->getNbOutputs(), 1);
  EXPECT_NE(build(*plugin)->getTimingCacheID(), nullptr);
}

TEST(Plugin, GivesTheShapeOfItsOutput) {
  const auto plugin = Case().create();
  EXPECT_EQ(output_shape(*plugin, {2, 6, 5, 4}), (std::vector<std::int64_t>{2, 8, 3, 5}));
  EXPECT_TRUE(output_shape(*plugin, {2, 7, 5, 4}).empty()) << "another number of channels";
  EXPECT_TRUE(output_shape(*plugin, {2, 6, 5}).empty()) << "no image";
  Case dilated;
  dilated.ints["kernel_shape"] = {1, 2};
  dilated.ints["dilations"] = {1, 3};
  dilated.files = std::string(64, '0') + " 0 512 w.bin";
  dilated.ints["slabs"] = {0, 0, 3, 12, 1, 1, 0, 5, 2, 8, 0, 0};
  EXPECT_EQ(output_shape(*dilated.create(), {1, 6, 4, 4}), (std::vector<std::int64_t>{1, 8, 3, 2}));
}

TEST(Plugin, TakesChannelsLastInEitherType) {
  const auto plugin = Case().create();
  for (const DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kINT8}) {
    for (const TensorFormat format :
         {TensorFormat::kLINEAR, TensorFormat::kHWC8, TensorFormat::kHWC, TensorFormat::kCHW4}) {
      DynamicPluginTensorDesc all[2]{};
      for (auto& each : all) each.desc.type = type, each.desc.format = format;
      const bool right = (type == DataType::kFLOAT && format == TensorFormat::kHWC) ||
                         (type == DataType::kHALF && format == TensorFormat::kHWC8);
      EXPECT_EQ(build(*plugin)->supportsFormatCombination(0, all, 1, 1), right);
      EXPECT_EQ(build(*plugin)->supportsFormatCombination(1, all, 1, 1), right);
      all[1].desc.type = DataType::kINT32;
      EXPECT_FALSE(build(*plugin)->supportsFormatCombination(1, all, 1, 1));
    }
  }
  DataType out = DataType::kINT8;
  const DataType half[] = {DataType::kHALF, DataType::kHALF};
  EXPECT_EQ(build(*plugin)->getOutputDataTypes(&out, 1, half, 2), 0);
  EXPECT_EQ(out, DataType::kHALF);
  const DataType mixed[] = {DataType::kHALF, DataType::kFLOAT};
  EXPECT_NE(build(*plugin)->getOutputDataTypes(&out, 1, mixed, 2), 0);
}

TEST(Plugin, IsTheSameFromItsSerializedFields) {
  const auto plugin = Case().create();
  const auto fields_of = [](IPluginV3& each) {
    std::map<std::string, std::string> found;
    const PluginFieldCollection& fields = *runtime(each)->getFieldsToSerialize();
    for (std::int32_t i = 0; i < fields.nbFields; ++i) {
      const PluginField& field = fields.fields[i];
      const std::size_t width = field.type == PluginFieldType::kCHAR ? 1 : 4;
      found[field.name] = std::string(static_cast<const char*>(field.data),
                                      width * static_cast<std::size_t>(field.length));
    }
    return found;
  };
  const auto before = fields_of(*plugin);
  EXPECT_EQ(before.size(), 16U);
  const std::unique_ptr<IPluginV3> again(creator()->createPlugin(
      "node", runtime(*plugin)->getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
  ASSERT_NE(again, nullptr);
  EXPECT_EQ(fields_of(*again), before);
  const std::unique_ptr<IPluginV3> clone(again->clone());
  EXPECT_EQ(fields_of(*clone), before);
  EXPECT_EQ(output_shape(*clone, {2, 6, 5, 4}), (std::vector<std::int64_t>{2, 8, 3, 5}));
}

TEST(Plugin, RefusesFieldsThatContradictEachOther) {
  const std::vector<std::function<void(Case&)>> wrongs{
      [](Case& c) { c.files = "w.bin"; },
      [](Case& c) { c.files = std::string(64, '0') + " 0 256 ../w.bin"; },
      [](Case& c) { c.files = std::string(64, '0') + " 8 256 w.bin"; },
      [](Case& c) { c.files = std::string(64, '0') + " 0 255 w.bin"; },
      [](Case& c) { c.files.clear(); },
      [](Case& c) { c.ints["slabs"].pop_back(); },
      [](Case& c) { c.ints["slabs"].clear(); },
      [](Case& c) { c.ints["slabs"][0] = 1; },
      [](Case& c) { c.ints["slabs"][1] = -1; },
      [](Case& c) { c.ints["slabs"][2] = 0; },
      [](Case& c) { c.ints["slabs"][2] = 0x7fffffff; },
      [](Case& c) { c.ints["slabs"][9] = 9; },
      [](Case& c) {
        c.ints["bits"] = {0xff};
        c.ints["bits"].push_back(1);
      },
      [](Case& c) { c.ints["bits"] = {0x1ff0}; },
      [](Case& c) { c.ints["bits"] = {0x7f0}; },
      [](Case& c) { c.ints["bits"].clear(); },
      [](Case& c) { c.ints["rows"] = {0}; },
      [](Case& c) { c.ints["rows"] = {0b111}; },
      [](Case& c) { c.ints["rows"] = {0b1001}; },
      [](Case& c) { c.ints["index"].pop_back(); },
      [](Case& c) { c.ints["index"][0] = 6; },
      [](Case& c) { c.ints["index"][0] = -1; },
      [](Case& c) { c.ints["channels"] = {0}; },
      [](Case& c) { c.ints["activation"] = {33}; },
      [](Case& c) {
        c.ints["strides"] = {0, 1};
      },
      [](Case& c) {
        c.ints["pads"] = {0, 0, -1, 0};
      },
      [](Case& c) {
        c.ints["pads"] = {0, 0};
      },
      [](Case& c) {
        c.ints["kernel_shape"] = {0x7fffffff, 0x7fffffff};
      },
      [](Case& c) { c.floats["shift"].pop_back(); },
      [](Case& c) { c.floats["scale"].clear(); },
      [](Case& c) { c.floats["beta"].clear(); },
      [](Case& c) { c.ints["type"] = {2}; },
      [](Case& c) { c.ints.erase("alpha"), c.floats.erase("alpha"), c.ints["alpha"] = {1}; },
  };
  ASSERT_NE(Case().create(), nullptr);
  for (std::size_t i = 0; i < wrongs.size(); ++i) {
    Case wrong;
    wrongs[i](wrong);
    EXPECT_EQ(wrong.create(), nullptr) << "case " << i;
  }
}

// With a bundle

bool has_device() {
#ifdef MDPRUNE_TENSORRT_EMULATED
  return true;
#else
  return ::access("/dev/nvidia0", F_OK) == 0 || ::access("/dev/nvhost-gpu", F_OK) == 0;
#endif
}

class WithBundle : public testing::Test {
 protected:
  WithBundle() {
    char name[] = "/tmp/mdprune-plugin-XXXXXX";
    root_ = ::mkdtemp(name);
    ::mkdir((root_ + "/native").c_str(), 0700);
    std::ofstream(root_ + "/native/w.bin", std::ios::binary) << std::string(256, '\0');
    ::setenv("MDPRUNE_BUNDLE", root_.c_str(), 1);
    // Of 256 bytes that are zero.
    case_.files = "5341e6b2646979a70e57653007a1f310169421ec9bdd9f1a5648f75ade005af1 0 256 w.bin";
    case_.ints["type"] = {0};
  }
  ~WithBundle() override {
    ::unsetenv("MDPRUNE_BUNDLE");
    ::remove((root_ + "/native/w.bin").c_str());
    ::remove((root_ + "/native").c_str());
    ::remove(root_.c_str());
  }

  void SetUp() override {
    if (!has_device()) GTEST_SKIP() << "there is no GPU";
  }

  std::string root_;
  Case case_;
};

TEST_F(WithBundle, WeightsAreFoundByTheirHash) {
  const auto plugin = case_.create();
  const std::unique_ptr<IPluginV3> attached(runtime(*plugin)->attachToContext(nullptr));
  EXPECT_NE(attached, nullptr);
  const std::unique_ptr<IPluginV3> second(runtime(*plugin)->attachToContext(nullptr));
  EXPECT_NE(second, nullptr);
}

TEST_F(WithBundle, AnotherFileIsNotTaken) {
  std::ofstream(root_ + "/native/w.bin", std::ios::binary) << std::string(256, '\1');
  const auto plugin = case_.create();
  EXPECT_EQ(runtime(*plugin)->attachToContext(nullptr), nullptr);
}

TEST_F(WithBundle, NoBundleIsSaid) {
  ::unsetenv("MDPRUNE_BUNDLE");
  const auto plugin = case_.create();
  EXPECT_EQ(runtime(*plugin)->attachToContext(nullptr), nullptr);
}

TEST_F(WithBundle, ShapesAreChecked) {
  const auto plugin = case_.create();
  const std::unique_ptr<IPluginV3> attached(runtime(*plugin)->attachToContext(nullptr));
  ASSERT_NE(attached, nullptr);
  PluginTensorDesc in[2]{}, out{};
  for (PluginTensorDesc* each : {&in[0], &in[1], &out}) {
    each->type = DataType::kFLOAT;
    each->format = TensorFormat::kHWC;
    each->dims.nbDims = 4;
  }
  const std::int32_t x[] = {2, 6, 5, 4}, y[] = {2, 8, 3, 5};
  for (int i = 0; i < 4; ++i) in[0].dims.d[i] = x[i], in[1].dims.d[i] = out.dims.d[i] = y[i];
  EXPECT_EQ(runtime(*attached)->onShapeChange(in, 1, &out, 1), 0);
  EXPECT_EQ(runtime(*attached)->onShapeChange(in, 2, &out, 1), 0);
  in[1].dims.d[3] = 4;
  EXPECT_NE(runtime(*attached)->onShapeChange(in, 2, &out, 1), 0);
  out.dims.d[1] = 7;
  EXPECT_NE(runtime(*attached)->onShapeChange(in, 1, &out, 1), 0);
  in[0].dims.d[1] = 5;
  EXPECT_NE(runtime(*attached)->onShapeChange(in, 1, &out, 1), 0);
  EXPECT_NE(runtime(*plugin)->enqueue(in, &out, nullptr, nullptr, nullptr, nullptr), 0)
      << "not attached";
}

}  // namespace
