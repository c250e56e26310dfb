// How a step of the reduction comes into shared memory: x as [pixel][channel], weights as
// [channel][filter], in chunks of 16 bytes whose places in a row are exchanged so that neither the
// loads of matrices nor the copies meet in a bank. Channels count tap by tap.
//
// What is a run of neighbours is copied by chunks, asynchronously where the device can; anything
// else is read element by element, neighbouring threads at neighbouring elements. What is not
// asynchronous waits in registers while the step before it is multiplied.

#pragma once

#include "mma.cuh"
#include "types.cuh"
#include "window.cuh"

namespace mdprune::cuda {

struct ConvolutionSource {
  WindowArguments window;
  int pixels;  // of all images
  int in_channels;
  int groups;
  int reduction;
  int chunks;  // of filters per group
  const std::int32_t* channels;
  const Row* rows;
  const std::int32_t* columns;
  const std::int32_t* strides;
  const Slab* slabs;
  const void* x;
};

template <typename T>
constexpr int kChunk = 16 / static_cast<int>(sizeof(T));

// 64 bytes of channels of every pixel.
template <typename T>
constexpr int kDepth = 4 * kChunk<T>;

__device__ __forceinline__ int x_place(int pixel, int chunk) {
  return pixel * 4 + (chunk ^ (pixel >> 1 & 3));
}

template <int row_chunks>
__device__ __forceinline__ int w_place(int channel, int chunk) {
  static_assert(row_chunks >= 4, "rows of at least 64 bytes");
  const int turn = row_chunks == 4 ? channel >> 1 & 3 : channel & 7;
  return channel * row_chunks + (chunk ^ turn);
}

template <int loads>
struct Waiting {
  uint4 chunks[loads];
};

// `to` is a place in shared memory, null reads zeros.
template <int loads>
__device__ __forceinline__ void fetch_chunk(uint4* to, const void* from, const void* anything,
                                            Waiting<loads>& waiting, int load) {
  if constexpr (kAsyncCopies) {
    copy_async(to, from != nullptr ? from : anything, from != nullptr ? 16 : 0);
  } else {
    waiting.chunks[load] =
        from != nullptr ? __ldg(static_cast<const uint4*>(from)) : make_uint4(0, 0, 0, 0);
  }
}

// A place in the reduction that goes on by whole steps.
struct Place {
  Tap tap;
  int at;  // channel, or chunk, of the tap

  __device__ __forceinline__ void begin(const WindowArguments& w, int index, int length) {
    tap.begin(w, index / length);
    at = index % length;
  }
  // Says whether it came to another tap.
  __device__ __forceinline__ bool advance(const WindowArguments& w, int by, int length) {
    at += by;
    if (at < length) return false;
    for (; at >= length && tap.z < w.kernel[0]; at -= length) tap.next(w);
    return true;
  }
};

template <typename T, class Tile>
class XRuns {
 public:
  __device__ __forceinline__ void begin(const ConvolutionSource& s, const Pixel* pixels, int group,
                                        int step) {
    pixels_ = pixels;
    chunks_ = s.reduction / kChunk<T>;
    channels_ = s.channels + group * chunks_;
    place_.begin(s.window, step * 4 + static_cast<int>(threadIdx.x) % 4, chunks_);
    find(s);
  }

  __device__ __forceinline__ void fetch(const ConvolutionSource& s, uint4* stage) {
    const T* const x = static_cast<const T*>(s.x);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const T* from = nullptr;
      if (positions_[i] >= 0) {
        from = x + static_cast<long long>(positions_[i]) * s.in_channels + channel_;
      }
      fetch_chunk(stage + x_place(pixel(i), static_cast<int>(threadIdx.x) % 4), from, s.x, waiting_,
                  i);
    }
    if (place_.advance(s.window, 4, chunks_)) {
      find(s);
    } else {
      channel_ = __ldg(channels_ + place_.at);
    }
  }

  __device__ __forceinline__ void store(uint4* stage) {
    if constexpr (!kAsyncCopies) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        stage[x_place(pixel(i), static_cast<int>(threadIdx.x) % 4)] = waiting_.chunks[i];
      }
    }
  }

 private:
  static constexpr int kLoads = Tile::kPixels * 4 / Tile::kThreads;

  __device__ __forceinline__ static int pixel(int load) {
    return static_cast<int>(threadIdx.x) / 4 + load * (Tile::kThreads / 4);
  }
  __device__ __forceinline__ void find(const ConvolutionSource& s) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i)
      positions_[i] = locate(s.window, pixels_[pixel(i)], place_.tap);
    channel_ = place_.at < chunks_ ? __ldg(channels_ + place_.at) : 0;
  }

  const Pixel* pixels_;
  const std::int32_t* channels_;
  int chunks_;
  int channel_;
  Place place_;
  int positions_[kLoads];
  Waiting<kLoads> waiting_;
};

template <typename T, class Tile>
class XElements {
 public:
  __device__ __forceinline__ void begin(const ConvolutionSource& s, const Pixel* pixels, int group,
                                        int step) {
    pixels_ = pixels;
    channels_ = s.channels + group * s.reduction;
    place_.begin(s.window, step * kDepth<T> + channel(), s.reduction);
  }

  __device__ __forceinline__ void fetch(const ConvolutionSource& s, uint4*) {
    const bool inside = place_.tap.z < s.window.kernel[0];
    const int at = inside ? __ldg(channels_ + place_.at) : -1;
    const T* const x = static_cast<const T*>(s.x) + at;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int position = at >= 0 ? locate(s.window, pixels_[pixel(i)], place_.tap) : -1;
      values_[i] =
          position >= 0 ? x[static_cast<long long>(position) * s.in_channels] : from_float<T>(0.0F);
    }
    place_.advance(s.window, kDepth<T>, s.reduction);
  }

  __device__ __forceinline__ void store(uint4* stage) {
    T* const elements = reinterpret_cast<T*>(stage);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int place = x_place(pixel(i), channel() / kChunk<T>);
      elements[place * kChunk<T> + channel() % kChunk<T>] = values_[i];
    }
  }

 private:
  static constexpr int kLoads = Tile::kPixels * kDepth<T> / Tile::kThreads;

  __device__ __forceinline__ static int channel() {
    return static_cast<int>(threadIdx.x) % kDepth<T>;
  }
  __device__ __forceinline__ static int pixel(int load) {
    return static_cast<int>(threadIdx.x) / kDepth<T> + load * (Tile::kThreads / kDepth<T>);
  }

  const Pixel* pixels_;
  const std::int32_t* channels_;
  Place place_;
  T values_[kLoads];
};

// The slab of the row that was read last, seen from one chunk of filters or one filter.
template <typename T>
struct Column {
  const T* data = nullptr;  // null: not there
  int slab = -1;
  int rows = 0;
  int stride = 0;

  __device__ __forceinline__ const T* row(const ConvolutionSource& s, const Row& row, int tap,
                                          int group, int entry, int entries, int chunk) {
    if (row.slab < 0 || chunk >= s.chunks) return nullptr;
    if (row.slab != slab) {
      slab = row.slab;
      const Slab found = s.slabs[slab];
      const int at = slab * s.groups + group;
      const int column = __ldg(s.columns + at * entries + entry);
      rows = static_cast<int>(found.rows);
      stride = __ldg(s.strides + at * s.chunks + chunk);
      data = column >= 0 ? static_cast<const T*>(found.data) + column : nullptr;
    }
    return data != nullptr ? data + (tap * rows + row.row) * stride : nullptr;
  }
};

template <typename T, class Tile>
class WRuns {
 public:
  __device__ __forceinline__ void begin(const ConvolutionSource& s, int group, int filter,
                                        int step) {
    group_ = group;
    chunk_ = filter / kChunk<T> + static_cast<int>(threadIdx.x) % kChunks;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int k = step * kDepth<T> + channel(i);
      taps_[i] = k / s.reduction;
      at_[i] = k % s.reduction;
      rows_[i] = next_row(s, i);
    }
  }

  __device__ __forceinline__ void fetch(const ConvolutionSource& s, uint4* stage) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const T* const from = column_.row(s, rows_[i], taps_[i], group_, chunk_, s.chunks, chunk_);
      fetch_chunk(stage + place(i), from, s.x, waiting_, i);
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      for (at_[i] += kDepth<T>; at_[i] >= s.reduction; at_[i] -= s.reduction) ++taps_[i];
      rows_[i] = next_row(s, i);
    }
  }

  __device__ __forceinline__ void store(uint4* stage) {
    if constexpr (!kAsyncCopies) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) stage[place(i)] = waiting_.chunks[i];
    }
  }

 private:
  static constexpr int kChunks = Tile::kFilters / kChunk<T>;
  static constexpr int kLoads = kDepth<T> * kChunks / Tile::kThreads;

  __device__ __forceinline__ static int channel(int load) {
    return static_cast<int>(threadIdx.x) / kChunks + load * (Tile::kThreads / kChunks);
  }
  __device__ __forceinline__ static int place(int load) {
    return w_place<kChunks>(channel(load), static_cast<int>(threadIdx.x) % kChunks);
  }
  __device__ __forceinline__ Row next_row(const ConvolutionSource& s, int load) const {
    return taps_[load] < s.window.taps ? s.rows[at_[load]] : Row{-1, 0};
  }

  int group_;
  int chunk_;
  int taps_[kLoads];
  int at_[kLoads];
  Row rows_[kLoads];
  Column<T> column_;
  Waiting<kLoads> waiting_;
};

template <typename T, class Tile>
class WElements {
 public:
  __device__ __forceinline__ void begin(const ConvolutionSource& s, int group, int filter,
                                        int step) {
    group_ = group;
    filter_ = filter + static_cast<int>(threadIdx.x) % Tile::kFilters;
    const int k = step * kDepth<T> + channel(0);
    tap_ = k / s.reduction;
    at_ = k % s.reduction;
  }

  __device__ __forceinline__ void fetch(const ConvolutionSource& s, uint4*) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const T* from = nullptr;
      if (tap_ < s.window.taps) {
        from = column_.row(s, s.rows[at_], tap_, group_, filter_, s.chunks * kChunk<T>,
                           filter_ / kChunk<T>);
      }
      values_[i] = from != nullptr ? *from : from_float<T>(0.0F);
      for (at_ += kStride; at_ >= s.reduction; at_ -= s.reduction) ++tap_;
    }
  }

  __device__ __forceinline__ void store(uint4* stage) {
    T* const elements = reinterpret_cast<T*>(stage);
    const int filter = static_cast<int>(threadIdx.x) % Tile::kFilters;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int place = w_place<kChunks>(channel(i), filter / kChunk<T>);
      elements[place * kChunk<T> + filter % kChunk<T>] = values_[i];
    }
  }

 private:
  static constexpr int kChunks = Tile::kFilters / kChunk<T>;
  static constexpr int kStride = Tile::kThreads / Tile::kFilters;
  static constexpr int kLoads = kDepth<T> / kStride;

  __device__ __forceinline__ static int channel(int load) {
    return static_cast<int>(threadIdx.x) / Tile::kFilters + load * kStride;
  }

  int group_;
  int filter_;
  int tap_;
  int at_;
  Column<T> column_;
  T values_[kLoads];
};

}  // namespace mdprune::cuda
