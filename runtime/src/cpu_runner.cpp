#include "cpu_runner.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>

#include "failure.h"
#include "operators/operators.h"

namespace mdprune {
namespace {

constexpr std::size_t kMostWorkers = 1024;

const cpu::Kernels& kernels_of(const char* isa) {
  const cpu::Kernels* kernels = cpu::find_kernels(isa);
  if (kernels == nullptr) {
    throw Failure(MDP_UNSUPPORTED, std::string(isa != nullptr ? isa : "MDPRUNE_ISA") +
                                       ": these instructions are not there");
  }
  return *kernels;
}

std::size_t workers_of(const mdp_context_options& options) {
  const std::size_t workers = options.parallel_for != nullptr
                                  ? options.parallel_workers
                                  : std::max<std::size_t>(1, options.threads);
  if (workers < 1 || workers > kMostWorkers) {
    throw Failure(MDP_INVALID_ARGUMENT, "the number of workers must be 1 to 1024");
  }
  return workers;
}

// The products of a MatMul, any of which a worker may take.
struct Products {
  const MatMul& operation;
  const cpu::Kernels& kernels;
  const float* a;
  const float* b;
  float* y;

  void run(std::size_t i, const cpu::Parallel& parallel) const {
    const MatMul& o = operation;
    std::size_t a_offset = 0;
    std::size_t b_offset = 0;
    std::size_t rest = i;
    for (std::size_t axis = o.batch.size(); axis-- > 0; rest /= o.batch[axis]) {
      a_offset += rest % o.batch[axis] * o.a_stride[axis];
      b_offset += rest % o.batch[axis] * o.b_stride[axis];
    }
    kernels.matmul(o.m, o.k, o.n, a + a_offset, b + b_offset, y + i * o.m * o.n, parallel);
  }

  static void run_one(void* products, std::size_t index, std::size_t) {
    const cpu::Parallel alone{nullptr, nullptr, 1, nullptr};
    static_cast<const Products*>(products)->run(index, alone);
  }
};

// Runs one operator after the other on one image.
class Run final : public Visitor {
 public:
  Run(const Memory& memory, const cpu::Kernels& kernels, cpu::Parallel& parallel)
      : memory_(memory), kernels_(kernels), parallel_(parallel) {}

  void visit(const Convolution& o) override {
    cpu::Convolution now = o.constant;
    now.x = o.x.read(memory_);
    now.y = o.y.write(memory_);
    now.scale = o.scale.read(memory_);
    now.shift = o.shift.read(memory_);
    now.residual = o.residual.read(memory_);
    now.y2 = o.y2.write(memory_);
    now.scale2 = o.scale2.read(memory_);
    now.shift2 = o.shift2.read(memory_);
    kernels_.convolution(now, parallel_);
  }

  void visit(const Depthwise& o) override {
    cpu::Depthwise now = o.constant;
    now.x = o.x.read(memory_);
    now.y = o.y.write(memory_);
    now.weight = o.weight.read(memory_);
    now.scale = o.scale.read(memory_);
    now.shift = o.shift.read(memory_);
    now.residual = o.residual.read(memory_);
    kernels_.depthwise(now, parallel_);
  }

  void visit(const Pool& o) override {
    cpu::Pool now = o.constant;
    now.x = o.x.read(memory_);
    now.y = o.y.write(memory_);
    kernels_.pool(now, parallel_);
  }

  void visit(const Affine& o) override {
    kernels_.affine(o.rows, o.channels_in, o.channels, o.x.read(memory_), o.y.write(memory_),
                    o.index, o.scale.read(memory_), o.shift.read(memory_), o.activation, parallel_);
  }

  void visit(const Unary& o) override {
    kernels_.unary(o.elements, o.x.read(memory_), o.y.write(memory_), o.activation, parallel_);
  }

  void visit(const Binary& o) override {
    kernels_.binary(o.kind, o.size.size(), o.size.data(), o.a_stride.data(), o.b_stride.data(),
                    o.a.read(memory_), o.b.read(memory_), o.y.write(memory_), o.activation,
                    parallel_);
  }

  void visit(const Select& o) override {
    kernels_.select(o.size.size(), o.size.data(), o.c_stride.data(), o.a_stride.data(),
                    o.b_stride.data(), o.c.read(memory_), o.a.read(memory_), o.b.read(memory_),
                    o.y.write(memory_), parallel_);
  }

  void visit(const Reduce& o) override {
    kernels_.reduce(o.kind, o.axes.outer, o.axes.n, o.axes.inner, o.x.read(memory_),
                    o.y.write(memory_), parallel_);
  }

  void visit(const Softmax& o) override {
    kernels_.softmax(o.log, o.axes.outer, o.axes.n, o.axes.inner, o.x.read(memory_),
                     o.y.write(memory_), parallel_);
  }

  void visit(const Normalize& o) override {
    kernels_.normalize(o.epsilon, o.axes.outer, o.axes.n, o.axes.inner, o.x.read(memory_),
                       o.y.write(memory_), parallel_);
  }

  void visit(const MatMul& o) override {
    constexpr std::size_t kSmall = 4096;
    const Products products{o, kernels_, o.a.read(memory_), o.b.read(memory_), o.y.write(memory_)};
    std::size_t count = 1;
    for (const std::size_t size : o.batch) count *= size;
    // Many matrices: one worker takes a whole one.
    if (count >= parallel_.workers && count > 1 && o.m * o.n * o.k > kSmall) {
      parallel_.run(parallel_.self, count, Products::run_one, const_cast<Products*>(&products));
      return;
    }
    for (std::size_t i = 0; i < count; ++i) products.run(i, parallel_);
  }

  void visit(const Move& o) override {
    kernels_.move(o.size.size(), o.size.data(), o.x_stride.data(), o.y_stride.data(),
                  o.x.read(memory_) + o.x_offset, o.y.write(memory_) + o.y_offset, parallel_);
  }

  void visit(const Gather& o) override {
    kernels_.gather(o.outer, o.n, o.inner, o.count, o.index, o.x.read(memory_), o.y.write(memory_),
                    parallel_);
  }

  void visit(const Fill& o) override { std::fill_n(o.y.write(memory_), o.elements, o.value); }

  void visit(const Interpolate& o) override {
    kernels_.interpolate(o.outer, o.n, o.inner, o.count, o.taps, o.index, o.weight.read(memory_),
                         o.x.read(memory_), o.y.write(memory_), parallel_);
  }

 private:
  const Memory& memory_;
  const cpu::Kernels& kernels_;
  const cpu::Parallel& parallel_;
};

}  // namespace

CpuRunner::CpuRunner(const Model& model, const mdp_context_options& options)
    : model_(model),
      kernels_(kernels_of(options.isa)),
      workers_(workers_of(options)),
      callers_loop_(options.parallel_for),
      callers_argument_(options.parallel_user),
      arena_(model.memory().arena_bytes),
      scratch_(workers_ * cpu::kScratchBytes) {
  if (callers_loop_ == nullptr && workers_ > 1) pool_ = std::make_unique<ThreadPool>(workers_);
}

void CpuRunner::run_alone(void*, std::size_t count, cpu::Parallel::Body body, void* argument) {
  for (std::size_t i = 0; i < count; ++i) body(argument, i, 0);
}

void CpuRunner::run_pool(void* self, std::size_t count, cpu::Parallel::Body body, void* argument) {
  static_cast<CpuRunner*>(self)->pool_->run(count, body, argument);
}

// Stands between a kernel and the caller's parallel_for, which is not trusted with memory.
struct CpuRunner::CallersLoop {
  cpu::Parallel::Body body;
  void* argument;
  std::size_t count;
  std::size_t workers;
  std::atomic<std::size_t> done;
  std::atomic<bool> broken;

  static void one(void* self, std::size_t index, std::size_t worker) {
    auto& loop = *static_cast<CallersLoop*>(self);
    if (index >= loop.count || worker >= loop.workers) {
      loop.broken = true;
      return;
    }
    loop.body(loop.argument, index, worker);
    loop.done.fetch_add(1);
  }
};

void CpuRunner::run_callers(void* self, std::size_t count, cpu::Parallel::Body body,
                            void* argument) {
  CpuRunner& runner = *static_cast<CpuRunner*>(self);
  CallersLoop loop{body, argument, count, runner.workers_, {0}, {false}};
  runner.callers_loop_(runner.callers_argument_, count, CallersLoop::one, &loop);
  if (loop.broken || loop.done != count) runner.loop_is_broken_ = true;
}

void CpuRunner::run(std::size_t domain, std::size_t batch, const float* const* inputs,
                    float* const* outputs, mdp_profile_entry* profile) {
  const Plan& plan = model_.domains[domain].plan;
  const auto loop = callers_loop_ != nullptr ? run_callers
                    : pool_ != nullptr       ? run_pool
                                             : run_alone;
  cpu::Parallel parallel{loop, this, workers_, scratch_.data(), nullptr};
  Memory memory{arena_.data(), inputs, outputs, 0};
  Run run(memory, kernels_, parallel);
  for (; memory.image < batch; ++memory.image) {
    for (std::size_t i = 0; i < plan.steps.size(); ++i) {
      using Clock = std::chrono::steady_clock;
      const auto start = profile != nullptr ? Clock::now() : Clock::time_point{};
      parallel.next = plan.steps[i].next;
      plan.steps[i].operation->accept(run);
      if (profile != nullptr) {
        const auto passed = std::chrono::nanoseconds(Clock::now() - start).count();
        profile[i].nanoseconds += static_cast<std::uint64_t>(passed);
      }
      if (loop_is_broken_) {
        loop_is_broken_ = false;
        throw Failure(MDP_INVALID_ARGUMENT,
                      "the caller's parallel_for did not run every index once, each on a worker "
                      "below the number of workers");
      }
    }
  }
}

}  // namespace mdprune
