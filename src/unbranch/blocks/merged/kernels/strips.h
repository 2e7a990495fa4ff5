// Strips of pictures in vectors of channels, and how work on them is cut: by picture and by block of channels, never by the number of
// threads, so that results are the same on any number.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <vector>

// In front of a loop over taps: without it, sums that should be registers stay an array in memory.
#ifdef __clang__
#define UNBRANCH_UNROLL _Pragma("unroll")
#else
#define UNBRANCH_UNROLL _Pragma("GCC unroll 16")
#endif

namespace {

using at::Tensor;

template <typename T>
struct Lanes {
  typedef T type __attribute__((vector_size(64)));
  static constexpr int64_t count = 64 / sizeof(T);
};

// Partial sums are kept in the working type for this many outputs, then added up in float64.
constexpr int64_t kFlush = 256;
// A strip of rows with its border should stay in a core's own cache.
constexpr int64_t kStripBytes = 96 * 1024;
constexpr int64_t kTasks = 32;
// Pixels lie so far apart that the processor does not see by itself which comes next: it is asked for this many pixels before it is read.
constexpr int64_t kAhead = 16;

struct Geometry {
  int64_t n, h, w, c, kh, kw, sh, sw, dh, dw, top, left, ho, wo;

  int64_t taps() const { return kh * kw; }
  int64_t span_h() const { return (kh - 1) * dh + 1; }
  int64_t width() const { return (wo - 1) * sw + (kw - 1) * dw + 1; }
  int64_t rows_of(int64_t outputs) const { return (outputs - 1) * sh + span_h(); }
  // How many output rows make a strip.
  int64_t strip(int64_t row_bytes) const {
    int64_t rows = kStripBytes / std::max<int64_t>(1, row_bytes * width());
    return std::clamp<int64_t>((rows - span_h()) / sh + 1, 1, ho);
  }
};

Geometry geometry(const Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef dilation,
                  at::IntArrayRef before, at::IntArrayRef out) {
  TORCH_CHECK(x.dim() == 4 && x.is_contiguous(), "a contiguous (N, H, W, C) tensor is wanted");
  TORCH_CHECK(kernel.size() == 2 && stride.size() == 2 && dilation.size() == 2 && before.size() == 2 && out.size() == 2,
              "two axes are wanted");
  for (int axis = 0; axis < 2; ++axis)
    TORCH_CHECK(stride[axis] >= 1 && dilation[axis] >= 1 && before[axis] >= 0 && out[axis] >= 1, "no window: stride ", stride,
                ", dilation ", dilation, ", ", before, " pixels before, ", out, " outputs");
  TORCH_CHECK(kernel[0] >= 1 && kernel[0] <= 3 && kernel[1] >= 1 && kernel[1] <= 3, "1 to 3 taps an axis, got ", kernel);
  return {x.size(0), x.size(1), x.size(2), x.size(3), kernel[0], kernel[1], stride[0], stride[1],
          dilation[0], dilation[1], before[0], before[1], out[0], out[1]};
}

void check_outputs(const Geometry& geo, const Tensor& x, const Tensor& y) {
  TORCH_CHECK(y.is_contiguous() && y.scalar_type() == x.scalar_type() && y.numel() == geo.n * geo.ho * geo.wo * geo.c,
              "one contiguous value of the input's type for each output and channel is wanted");
}

// One vector of channels from memory, zeros behind the last.
template <typename T>
inline typename Lanes<T>::type load(const T* from, int64_t lanes) {
  typename Lanes<T>::type v = {};
  if (lanes == Lanes<T>::count) std::memcpy(&v, from, sizeof(v));
  else std::memcpy(&v, from, lanes * sizeof(T));
  return v;
}

template <typename T>
inline void store(T* to, typename Lanes<T>::type v, int64_t lanes) {
  if (lanes == Lanes<T>::count) std::memcpy(to, &v, sizeof(v));
  else std::memcpy(to, &v, lanes * sizeof(T));
}

// While a block of channels is worked on, the block that comes next is asked for, pixel by pixel: it lies beside this one.
template <typename T>
inline void next_block(const T* pixel) { __builtin_prefetch(pixel + Lanes<T>::count, 0, 2); }
template <typename T>
inline void next_block(T* pixel) { __builtin_prefetch(pixel + Lanes<T>::count, 1, 2); }

// A part of a picture, or of its surroundings, for one block of channels: cell (0, 0) is pixel (top, left).
template <typename T>
struct Strip {
  using V = typename Lanes<T>::type;
  const int64_t rows, width;
  std::vector<V> cells;

  Strip(int64_t r, int64_t w) : rows(r), width(w), cells(r * w) {}

  V* row(int64_t r) { return cells.data() + r * width; }

  // Of a picture (h, w, c) at `from`, less `minus`; outside it, minus `minus`. All fills of a strip have one size and one `minus`.
  void fill(const T* from, int64_t h, int64_t w, int64_t c, int64_t lanes, V minus, int64_t top, int64_t left) {
    const int64_t begin = std::clamp<int64_t>(-left, 0, width), end = std::clamp<int64_t>(w - left, begin, width);
    const bool fresh = !filled_ || top != top_ || left != left_;
    filled_ = true, top_ = top, left_ = left;
    for (int64_t r = 0; r < rows; ++r) {
      V* to = row(r);
      const int64_t y = top + r;
      if (y < 0 || y >= h) {
        if (fresh) std::fill(to, to + width, -minus);
        continue;
      }
      if (fresh) std::fill(to, to + begin, -minus), std::fill(to + end, to + width, -minus);
      const T* pixel = from + (y * w + left + begin) * c;
      const auto each = [&](int64_t some) {
        for (int64_t u = begin; u < end; ++u, pixel += c) {
          __builtin_prefetch(pixel + kAhead * c);
          next_block(pixel);
          to[u] = load<T>(pixel, some) - minus;
        }
      };
      if (lanes == Lanes<T>::count) each(Lanes<T>::count);
      else each(lanes);
    }
  }

  // Into rows [begin, end) of a picture of rows (w, c): the cells that lie there, else zeros.
  void write(T* to, int64_t begin, int64_t end, int64_t w, int64_t c, int64_t lanes, int64_t top, int64_t left) {
    for (int64_t y = begin; y < end; ++y) {
      const bool held = y >= top && y < top + rows;
      const int64_t first = held ? std::clamp<int64_t>(left, 0, w) : w, last = held ? std::clamp<int64_t>(left + width, first, w) : w;
      T* pixel = to + y * w * c;
      for (int64_t u = 0; u < first; ++u, pixel += c) store<T>(pixel, V{}, lanes);
      for (int64_t u = first; u < last; ++u, pixel += c) store<T>(pixel, row(y - top)[u - left], lanes);
      for (int64_t u = last; u < w; ++u, pixel += c) store<T>(pixel, V{}, lanes);
    }
  }

 private:
  // Where the last fill began: what it wrote outside the picture stands there still.
  bool filled_ = false;
  int64_t top_ = 0, left_ = 0;
};

// The rows under output rows [first, first + outputs) of a picture, less `shift`, border included.
template <typename T>
void under(Strip<T>& strip, const Geometry& geo, const T* x, int64_t picture, int64_t c0, int64_t lanes,
           typename Lanes<T>::type shift, int64_t first) {
  strip.fill(x + picture * geo.h * geo.w * geo.c + c0, geo.h, geo.w, geo.c, lanes, shift, first * geo.sh - geo.top, -geo.left);
}

// Calls f with the kernel's sizes as constants, so that the loops over taps unroll.
template <int KH, typename F>
void with_width(int64_t kw, F&& f) {
  if (kw == 1) f.template operator()<KH, 1>();
  else if (kw == 2) f.template operator()<KH, 2>();
  else f.template operator()<KH, 3>();
}

template <typename F>
void with_kernel(const Geometry& geo, F&& f) {
  if (geo.kh == 1) with_width<1>(geo.kw, f);
  else if (geo.kh == 2) with_width<2>(geo.kw, f);
  else with_width<3>(geo.kw, f);
}

template <typename T>
inline void flush(double* total, const typename Lanes<T>::type& part) {
  for (int64_t i = 0; i < Lanes<T>::count; ++i) total[i] += part[i];
}

// How many parts the pictures are cut into for each block of channels.
inline int64_t parts(const Geometry& geo, int64_t blocks) {
  return std::min(std::max<int64_t>(geo.n, 1), (kTasks + blocks - 1) / blocks);
}

// Pictures `begin` to `end` of a block of channels: `body(task, begin, end, c0, lanes)`.
template <typename T, typename Body>
void runs(const Geometry& geo, Body&& body) {
  constexpr int64_t L = Lanes<T>::count;
  const int64_t blocks = (geo.c + L - 1) / L, cut = parts(geo, blocks);
  at::parallel_for(0, cut * blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t c0 = task % blocks * L, part = task / blocks;
      body(task, part * geo.n / cut, (part + 1) * geo.n / cut, c0, std::min(L, geo.c - c0));
    }
  });
}

// Sums over pictures: `body(begin, end, c0, lanes, totals)` adds to `totals`, (values, lanes); the result is (values, C) in float64.
template <typename T, typename Body>
Tensor summed(const Geometry& geo, int64_t values, Body&& body) {
  constexpr int64_t L = Lanes<T>::count;
  const int64_t blocks = (geo.c + L - 1) / L, tasks = parts(geo, blocks) * blocks;
  std::vector<double> totals(tasks * values * L);
  runs<T>(geo, [&](int64_t task, int64_t begin, int64_t end, int64_t c0, int64_t lanes) {
    body(begin, end, c0, lanes, totals.data() + task * values * L);
  });
  Tensor out = at::zeros({values, geo.c}, at::kDouble);
  double* to = out.mutable_data_ptr<double>();
  for (int64_t task = 0; task < tasks; ++task)
    for (int64_t v = 0; v < values; ++v)
      for (int64_t i = 0, c0 = task % blocks * L; i < std::min(L, geo.c - c0); ++i)
        to[v * geo.c + c0 + i] += totals[(task * values + v) * L + i];
  return out;
}

// Of moments (taps + taps^2, C), the products of two taps that were not taken are those the other way round.
template <int KH, int KW>
void mirror(const Geometry& geo, Tensor& moments) {
  constexpr int K = KH * KW;
  double* second = moments.mutable_data_ptr<double>() + K * geo.c;
  for (int j = 0; j < K; ++j)
    for (int k = 0; k < j; ++k) std::copy_n(second + (k * K + j) * geo.c, geo.c, second + (j * K + k) * geo.c);
}

}  // namespace
