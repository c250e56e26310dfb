#include "plan.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "operators/words.h"
#include "reader.h"

namespace mdprune {

const char* Texts::add(std::uint32_t start, std::uint32_t length) {
  // Entries may name the same bytes; hostile ones must not multiply a small file into much memory.
  constexpr std::size_t kMostCopied = std::size_t{64} << 20;
  require(start <= all_.size() && length <= all_.size() - start,
          "a text is outside of the strings");
  require(length < kMostCopied - copied_, "the texts are too long");
  const std::string_view text = checked_text(all_.substr(start, length));
  copied_ += text.size() + 1;
  std::unique_ptr<char[]> copy(new char[text.size() + 1]());
  std::copy(text.begin(), text.end(), copy.get());
  copies_.push_back(std::move(copy));
  return copies_.back().get();
}

namespace {

struct Header {
  bool free_batch;
  std::uint64_t arena;
  std::uint32_t files, tensors, inputs, outputs, labels, operators, words;
  std::uint64_t tables;  // where they end
  std::uint64_t strings;
  std::uint64_t data;
};

constexpr std::uint64_t kHeaderBytes = 96;
constexpr std::uint64_t kMostArena = std::uint64_t{1} << 40;

Header read_header(const MappedFile& file, Reader& reader) {
  require(std::memcmp(reader.bytes(8), "MDPPLAN", 8) == 0, "this is no plan");
  const std::uint32_t version = reader.u32();
  if (version != 1) {
    throw Failure(MDP_VERSION, "version " + std::to_string(version) + "; this library reads 1");
  }
  const std::uint32_t flags = reader.u32();
  require((flags & ~1U) == 0, "unknown flags");
  require(reader.u64() == file.size(), "the size in the header is not the file's");
  Header header{};
  header.free_batch = (flags & 1U) != 0;
  header.arena = reader.u64();
  require(header.arena <= kMostArena, "the arena is too large");
  for (std::uint32_t* count : {&header.files, &header.tensors, &header.inputs, &header.outputs,
                               &header.labels, &header.operators, &header.words}) {
    *count = reader.u32();
  }
  require(reader.u32() == 0, "a reserved field is not 0");
  header.strings = reader.u64();
  header.data = reader.u64();
  const std::uint64_t data_bytes = reader.u64();
  require(reader.u64() == 0, "a reserved field is not 0");
  header.tables = kHeaderBytes + 24ULL * header.files + 48ULL * header.tensors +
                  16ULL * (std::uint64_t{header.inputs} + header.outputs) + 8ULL * header.labels +
                  24ULL * header.operators + 4ULL * header.words;
  require(header.tables <= file.size() && header.strings <= file.size() - header.tables,
          "the tables are longer than the file");
  const std::uint64_t end = header.tables + header.strings;
  require(header.data == (end + 63) / 64 * 64, "the data are not behind the strings");
  require(header.data <= file.size() && data_bytes == file.size() - header.data,
          "the data are not the rest of the file");
  require(std::all_of(file.data() + end, file.data() + header.data,
                      [](std::uint8_t byte) { return byte == 0; }),
          "the padding is not zero");
  return header;
}

struct Bytes {
  const std::uint8_t* data;
  std::uint64_t size;
};

// The bytes that an offset counts in; the arena has none yet.
Bytes place_of(const Tensor& tensor, std::uint32_t file, const Header& header, const Plan& plan,
               const std::vector<const MappedFile*>& files) {
  switch (tensor.place) {
    case Place::kArena: return {nullptr, header.arena};
    case Place::kData: return {plan.file.data() + header.data, plan.file.size() - header.data};
    default:
      require(file < files.size(), "a tensor names no file");
      return {files[file]->data(), files[file]->size()};
  }
}

Tensor read_tensor(Reader& reader, const Header& header, const Plan& plan,
                   const std::vector<const MappedFile*>& files) {
  Tensor tensor{};
  const std::uint8_t place = reader.u8();
  require(place <= static_cast<std::uint8_t>(Place::kOutput), "a tensor's place is unknown");
  tensor.place = static_cast<Place>(place);
  const std::uint8_t type = reader.u8();
  require(type <= 1, "a tensor's type is unknown");
  tensor.integer = type == 1;
  tensor.rank = reader.u8();
  require(tensor.rank <= MDP_MAX_RANK, "a tensor's rank is too high");
  require(reader.u8() == 0, "a reserved field is not 0");
  const std::uint32_t file = reader.u32();
  const std::uint64_t offset = reader.u64();
  tensor.elements = 1;
  for (std::size_t axis = 0; axis < MDP_MAX_RANK; ++axis) {
    const std::uint32_t size = reader.u32();
    require(axis < tensor.rank || size == 0, "a size past the rank is not 0");
    tensor.sizes[axis] = size;
    if (axis < tensor.rank) tensor.elements = product({tensor.elements, size});
  }
  if (tensor.place == Place::kInput || tensor.place == Place::kOutput) {
    require(offset < (tensor.place == Place::kInput ? header.inputs : header.outputs),
            "a tensor names no input or output");
    tensor.offset = static_cast<std::size_t>(offset);
    return tensor;
  }
  const Bytes bytes = place_of(tensor, file, header, plan, files);
  const std::uint64_t length = std::uint64_t{tensor.elements} * 4;
  require(offset <= bytes.size && length <= bytes.size - offset,
          "a tensor is outside of its place");
  require(offset % (tensor.place == Place::kFile ? 64 : 4) == 0, "a tensor is not aligned");
  tensor.offset = static_cast<std::size_t>(offset);
  if (tensor.is_constant()) tensor.constant = bytes.data + offset;
  return tensor;
}

std::vector<mdp_tensor> read_ports(Reader& reader, std::size_t count, Place place, Plan& plan,
                                   const std::vector<Tensor>& tensors) {
  std::vector<mdp_tensor> ports;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t number = reader.u32();
    require(number < tensors.size(), "an input or output names no tensor");
    const Tensor& tensor = tensors[number];
    require(tensor.place == place && tensor.offset == i && !tensor.integer,
            "an input or output names the tensor of another");
    require(!plan.free_batch || (tensor.rank >= 1 && tensor.sizes[0] == 1),
            "the batch is free, but an input or output holds several images");
    mdp_tensor port{};
    const std::uint32_t start = reader.u32();
    port.name = plan.texts.add(start, reader.u32());
    require(reader.u32() == 0, "a reserved field is not 0");
    port.rank = tensor.rank;
    std::copy_n(tensor.sizes, tensor.rank, port.dims);
    port.elements = tensor.elements;
    port.batched = plan.free_batch ? 1 : 0;
    ports.push_back(port);
  }
  return ports;
}

void read_steps(Reader& reader, const Header& header, Plan& plan,
                const std::vector<Tensor>& tensors) {
  const std::uint8_t* entries = reader.bytes(24ULL * header.operators);
  const auto* words = reinterpret_cast<const std::uint32_t*>(reader.bytes(4ULL * header.words));
  Reader table(entries, 24U * std::size_t{header.operators});
  std::vector<bool> written(header.outputs);
  for (std::uint32_t i = 0; i < header.operators; ++i) {
    const std::uint32_t code = table.u32();
    const std::uint32_t first = table.u32();
    const std::uint32_t count = table.u32();
    const std::uint32_t start = table.u32();
    const char* name = plan.texts.add(start, table.u32());
    require(table.u32() == 0, "a reserved field is not 0");
    require(first <= header.words && count <= header.words - first,
            "an operator's words are outside of the table");
    try {
      Words operands(words + first, count, tensors, written);
      plan.steps.push_back({name, operator_kind(code), read_operator(code, operands), nullptr});
    } catch (const Failure& failure) {
      throw Failure(failure.status(),
                    "operator " + std::to_string(i) + " (" + name + "): " + failure.what());
    }
  }
  require(std::all_of(written.begin(), written.end(), [](bool done) { return done; }),
          "no operator writes an output");
  const cpu::Convolution* next = nullptr;
  for (auto step = plan.steps.rbegin(); step != plan.steps.rend(); ++step) {
    step->next = next;
    if (const cpu::Convolution* convolution = step->operation->convolution()) next = convolution;
  }
}

}  // namespace

Plan read_plan(MappedFile file, const WeightFiles& weight_files) {
  Plan plan;
  plan.file = std::move(file);
  Reader reader(plan.file.data(), plan.file.size());
  const Header header = read_header(plan.file, reader);
  plan.free_batch = header.free_batch;
  plan.arena_bytes = static_cast<std::size_t>(header.arena);
  plan.texts = Texts({reinterpret_cast<const char*>(plan.file.data() + header.tables),
                      static_cast<std::size_t>(header.strings)});

  std::vector<const MappedFile*> files;
  for (std::uint32_t i = 0; i < header.files; ++i) {
    const std::uint32_t start = reader.u32();
    const std::string name = checked_file_name(plan.texts.add(start, reader.u32()));
    const std::uint64_t size = reader.u64();
    require(reader.u64() == 0, "a reserved field is not 0");
    files.push_back(&weight_files(name, size));
  }
  std::vector<Tensor> tensors;
  tensors.reserve(header.tensors);
  for (std::uint32_t i = 0; i < header.tensors; ++i) {
    tensors.push_back(read_tensor(reader, header, plan, files));
  }
  plan.inputs = read_ports(reader, header.inputs, Place::kInput, plan, tensors);
  plan.outputs = read_ports(reader, header.outputs, Place::kOutput, plan, tensors);
  for (Tensor& tensor : tensors) {
    if (tensor.place != Place::kInput && tensor.place != Place::kOutput) continue;
    const auto& ports = tensor.place == Place::kInput ? plan.inputs : plan.outputs;
    tensor.elements_of_port = ports[tensor.offset].elements;
    require(tensor.elements <= tensor.elements_of_port,
            "a view is larger than its input or output");
  }
  for (std::uint32_t i = 0; i < header.labels; ++i) {
    const std::uint32_t start = reader.u32();
    plan.labels.push_back(plan.texts.add(start, reader.u32()));
  }
  read_steps(reader, header, plan, tensors);
  return plan;
}

}  // namespace mdprune
