// What a GatherConv node says, docs/tensorrt.md: read from plug-in fields, checked, written back.

#pragma once

#include <NvInferRuntime.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace mdprune::tensorrt {

// The fields as TensorRT hands them over; those of an ONNX node and of a serialised engine are the
// same but for `type`, which a node does not have.
struct Fields {
  std::string files;
  std::vector<std::int32_t> slabs, bits, rows, index, kernel_shape, strides, dilations, pads;
  std::vector<std::int32_t> channels, activation;
  std::vector<float> alpha, beta, scale, shift;
  std::vector<std::int32_t> type;  // of activations: 0 float, 1 half
};

// Names and types of all fields that a node has, without data.
const std::vector<nvinfer1::PluginField>& field_names();
// Throws std::runtime_error for a field of another type.
Fields read_fields(const nvinfer1::PluginFieldCollection& collection);
// They point into `fields`.
std::vector<nvinfer1::PluginField> write_fields(const Fields& fields);

struct WeightFile {
  std::string sha256;
  std::uint64_t begin, end;  // the bytes that nodes read
  std::string name;
};

struct NodeSlab {
  std::size_t file;
  std::uint64_t offset;
  std::size_t rows, filters, used_rows;
  const std::uint32_t* bits;      // null: all filters are used
  const std::uint32_t* row_bits;  // null: all rows are
};

// A node whose fields fit together. It points into the fields, which must stay.
struct Node {
  explicit Node(const Fields& fields);  // throws std::runtime_error

  std::vector<WeightFile> files;
  std::vector<NodeSlab> slabs;
  std::size_t channels, filters, reduction;
  const std::int32_t* index;
  const float* scale;
  const float* shift;
  kinds::Activation activation;
  std::size_t kernel[2], stride[2], dilation[2], pad[4];

  // Height and width of the output, 0 where the window is larger than the input.
  std::size_t output(std::size_t axis, std::size_t input) const;
  kinds::Window window(std::size_t height, std::size_t width) const;
};

}  // namespace mdprune::tensorrt
