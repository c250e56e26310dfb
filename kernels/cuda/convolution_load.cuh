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

// To a place in shared memory; zeros, and nothing is read, if not `valid`.
template <int loads>
__device__ __forceinline__ void fetch_chunk(uint4* to, const void* from, bool valid,
                                            Waiting<loads>& waiting, int load) {
  if constexpr (kAsyncCopies) {
    copy_async(to, from, valid ? 16 : 0);
  } else {
    waiting.chunks[load] = valid ? __ldg(static_cast<const uint4*>(from)) : make_uint4(0, 0, 0, 0);
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
    for (; at >= length; at -= length) tap.next(w);
    return true;
  }
};

// Pixels are as far apart as leaves their turn in x_place the same.
template <typename T, class Tile>
class XRuns {
 public:
  __device__ __forceinline__ void begin(const ConvolutionSource& s, const Pixel* pixels, int group,
                                        int step) {
    const int chunk = static_cast<int>(threadIdx.x) % 4;
    const int pixel = static_cast<int>(threadIdx.x) / 4;
    pixels_ = pixels + pixel;
    first_place_ = x_place(pixel, chunk);
    chunks_ = s.reduction / kChunk<T>;
    channels_ = s.channels + group * chunks_;
    place_.begin(s.window, step * 4 + chunk, chunks_);
    find(s);
    channel_ = __ldg(channels_ + place_.at);
  }

  __device__ __forceinline__ void fetch(const ConvolutionSource& s, uint4* stage) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      fetch_chunk(stage + first_place_ + i * kApart * 4, data_[i] + channel_, inside_[i], waiting_,
                  i);
    }
    if (place_.advance(s.window, 4, chunks_)) find(s);
    channel_ = __ldg(channels_ + place_.at);
  }

  __device__ __forceinline__ void store(uint4* stage) {
    if constexpr (!kAsyncCopies) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        stage[first_place_ + i * kApart * 4] = waiting_.chunks[i];
      }
    }
  }

 private:
  static constexpr int kLoads = Tile::kPixels * 4 / Tile::kThreads;
  static constexpr int kApart = Tile::kThreads / 4;
  static_assert(kApart % 8 == 0, "x_place turns every 8 pixels");

  __device__ __forceinline__ void find(const ConvolutionSource& s) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int position = locate(s.window, pixels_[i * kApart], place_.tap);
      inside_[i] = position >= 0;
      data_[i] = static_cast<const T*>(s.x) +
                 (inside_[i] ? static_cast<long long>(position) * s.in_channels : 0);
    }
  }

  const Pixel* pixels_;
  const std::int32_t* channels_;
  int first_place_;
  int chunks_;
  int channel_;
  Place place_;
  const T* data_[kLoads];  // channel 0 of the pixels seen through the tap
  bool inside_[kLoads];
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
class Column {
 public:
  // `entry` of the `entries` that the columns of a slab and group have; chunk 0 stands in for one
  // behind the last.
  __device__ __forceinline__ void begin(const ConvolutionSource& s, int group, int entry,
                                        int entries, int chunk) {
    behind_ = chunk >= s.chunks;
    group_ = group;
    entry_ = behind_ ? 0 : entry;
    entries_ = entries;
    chunk_ = behind_ ? 0 : chunk;
    slab_ = -1;
    there_ = false;
    rows_ = stride_ = 0;
    data_ = static_cast<const T*>(s.x);
  }

  // Says whether there is such a weight, else `from` is not to be read.
  __device__ __forceinline__ bool find(const ConvolutionSource& s, const Row& row, int tap,
                                       const T** from) {
    if (row.slab != slab_ && row.slab >= 0) {
      slab_ = row.slab;
      const Slab found = s.slabs[slab_];
      const int at = slab_ * s.groups + group_;
      const int column = __ldg(s.columns + at * entries_ + entry_);
      rows_ = static_cast<int>(found.rows);
      stride_ = __ldg(s.strides + at * s.chunks + chunk_);
      there_ = column >= 0 && !behind_;
      data_ = static_cast<const T*>(found.data) + (column >= 0 ? column : 0);
    }
    *from = data_ + (tap * rows_ + row.row) * stride_;
    return there_ && row.slab >= 0 && tap < s.window.taps;
  }

 private:
  const T* data_;
  bool there_;
  bool behind_;
  int group_;
  int entry_;
  int entries_;
  int chunk_;
  int slab_;
  int rows_;
  int stride_;
};

// Channels are as far apart as leaves their turn in w_place the same.
template <typename T, class Tile>
class WRuns {
 public:
  __device__ __forceinline__ void begin(const ConvolutionSource& s, int group, int filter,
                                        int step) {
    const int across = static_cast<int>(threadIdx.x) % kChunks;
    const int first = static_cast<int>(threadIdx.x) / kChunks;
    const int chunk = filter / kChunk<T> + across;
    first_place_ = w_place<kChunks>(first, across);
    column_.begin(s, group, chunk, s.chunks, chunk);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int k = step * kDepth<T> + first + i * kApart;
      taps_[i] = k / s.reduction;
      at_[i] = k % s.reduction;
      rows_[i] = s.rows[at_[i]];
    }
  }

  __device__ __forceinline__ void fetch(const ConvolutionSource& s, uint4* stage) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const T* from;
      const bool valid = column_.find(s, rows_[i], taps_[i], &from);
      fetch_chunk(stage + first_place_ + i * Tile::kThreads, from, valid, waiting_, i);
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      for (at_[i] += kDepth<T>; at_[i] >= s.reduction; at_[i] -= s.reduction) ++taps_[i];
      rows_[i] = s.rows[at_[i]];
    }
  }

  __device__ __forceinline__ void store(uint4* stage) {
    if constexpr (!kAsyncCopies) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        stage[first_place_ + i * Tile::kThreads] = waiting_.chunks[i];
      }
    }
  }

 private:
  static constexpr int kChunks = Tile::kFilters / kChunk<T>;
  static constexpr int kLoads = kDepth<T> * kChunks / Tile::kThreads;
  static constexpr int kApart = Tile::kThreads / kChunks;
  static_assert(kLoads == 1 || kApart % 8 == 0, "w_place turns every 8 channels");

  int first_place_;
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
    const int own = filter + static_cast<int>(threadIdx.x) % Tile::kFilters;
    column_.begin(s, group, own, s.chunks * kChunk<T>, own / kChunk<T>);
    const int k = step * kDepth<T> + channel(0);
    tap_ = k / s.reduction;
    at_ = k % s.reduction;
  }

  __device__ __forceinline__ void fetch(const ConvolutionSource& s, uint4*) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const T* from;
      const bool valid = column_.find(s, s.rows[at_], tap_, &from);
      values_[i] = valid ? *from : from_float<T>(0.0F);
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

  int tap_;
  int at_;
  Column<T> column_;
  T values_[kLoads];
};

}  // namespace mdprune::cuda
