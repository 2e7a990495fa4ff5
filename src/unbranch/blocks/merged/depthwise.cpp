// Depthwise windows of at most 3x3 taps, channels last: moments, convolution and gradients, each in one pass over the input.
//
// p_j(o) is tap j of the window at output o, from the picture minus `shift` (one number a channel), its border holding
// minus `shift` too, so that the patch is the zero-padded one minus a constant and every moment is exact.
//
//   moments:        mean_j = sum_o p_j / M,  second_jk = sum_o p_j p_k / M        (float64)
//   convolve:       y(o) = bias + sum_j w_j p_j(o)
//   kernel_grad:    A_j = sum_o g(o) p_j(o),  B = sum_o g(o)                       (float64)
//   input_grad:     d(o's tap j) += w_j g(o) + c_j + sum_k Q_jk p_k(o)
//
// Work is cut by picture and by block of channels, never by the number of threads: results are the same on any number.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

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
constexpr int64_t kTasks = 64;

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

// The rows under output rows [first, first + outputs) of one picture and one block of channels, shifted, border included.
template <typename T>
struct Strip {
  using V = typename Lanes<T>::type;
  const Geometry& geo;
  std::vector<V> cells;

  Strip(const Geometry& g, int64_t outputs) : geo(g), cells(g.rows_of(outputs) * g.width()) {}

  V* row(int64_t r) { return cells.data() + r * geo.width(); }

  void fill(const T* x, int64_t picture, int64_t c0, int64_t lanes, V shift, int64_t first, int64_t outputs) {
    const int64_t width = geo.width(), inner_from = std::min(geo.left, width),
                  inner_to = std::clamp<int64_t>(geo.w + geo.left, inner_from, width);
    for (int64_t r = 0; r < geo.rows_of(outputs); ++r) {
      V* to = row(r);
      const int64_t y = first * geo.sh + r - geo.top;
      if (y < 0 || y >= geo.h) {
        std::fill(to, to + width, -shift);
        continue;
      }
      const T* from = x + ((picture * geo.h + y) * geo.w - geo.left) * geo.c + c0;
      std::fill(to, to + inner_from, -shift);
      for (int64_t u = inner_from; u < inner_to; ++u) to[u] = load<T>(from + u * geo.c, lanes) - shift;
      std::fill(to + inner_to, to + width, -shift);
    }
  }

  // Adds the cells that lie inside the picture to dx.
  void spill(T* dx, int64_t picture, int64_t c0, int64_t lanes, int64_t first, int64_t outputs) {
    const int64_t inner_to = std::min(geo.w + geo.left, geo.width());
    for (int64_t r = 0; r < geo.rows_of(outputs); ++r) {
      const int64_t y = first * geo.sh + r - geo.top;
      if (y < 0 || y >= geo.h) continue;
      T* to = dx + ((picture * geo.h + y) * geo.w - geo.left) * geo.c + c0;
      for (int64_t u = geo.left; u < inner_to; ++u)
        store<T>(to + u * geo.c, load<T>(to + u * geo.c, lanes) + row(r)[u], lanes);
    }
  }
};

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
inline void flush(double* total, typename Lanes<T>::type& part) {
  for (int64_t i = 0; i < Lanes<T>::count; ++i) total[i] += part[i];
  part = typename Lanes<T>::type{};
}

// Sums over pictures: `body(picture, c0, lanes, totals)` adds to `totals`, (values, lanes); the result is (values, C) in float64.
template <typename T, typename Body>
Tensor summed(const Geometry& geo, int64_t values, Body&& body) {
  constexpr int64_t L = Lanes<T>::count;
  const int64_t blocks = (geo.c + L - 1) / L;
  const int64_t chunks = std::min(std::max<int64_t>(geo.n, 1), (kTasks + blocks - 1) / blocks);
  std::vector<double> totals(chunks * blocks * values * L);
  at::parallel_for(0, chunks * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t c0 = task % blocks * L;
      for (int64_t picture = task / blocks; picture < geo.n; picture += chunks)
        body(picture, c0, std::min(L, geo.c - c0), totals.data() + task * values * L);
    }
  });
  Tensor out = at::zeros({values, geo.c}, at::kDouble);
  double* to = out.mutable_data_ptr<double>();
  for (int64_t task = 0; task < chunks * blocks; ++task)
    for (int64_t v = 0; v < values; ++v)
      for (int64_t i = 0, c0 = task % blocks * L; i < std::min(L, geo.c - c0); ++i)
        to[v * geo.c + c0 + i] += totals[(task * values + v) * L + i];
  return out;
}

// Every picture and block of channels once: `body(picture, c0, lanes)`.
template <typename T, typename Body>
void each(const Geometry& geo, Body&& body) {
  constexpr int64_t L = Lanes<T>::count;
  const int64_t blocks = (geo.c + L - 1) / L;
  at::parallel_for(0, geo.n * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t c0 = task % blocks * L;
      body(task / blocks, c0, std::min(L, geo.c - c0));
    }
  });
}

// Products of tap row a with tap row b over a strip, into totals of taps (j, k).
template <typename T, int KH, int KW>
void products(Strip<T>& strip, const Geometry& geo, int64_t outputs, int a, int b, double* first, double* second) {
  using V = typename Lanes<T>::type;
  constexpr int64_t L = Lanes<T>::count;
  V sums[KW] = {}, pairs[KW][KW] = {};
  int64_t held = 0;
  auto empty = [&] {
    for (int i = 0; i < KW; ++i) {
      if (a == b) flush<T>(first + (a * KW + i) * L, sums[i]);
      for (int j = 0; j < KW; ++j) flush<T>(second + ((a * KW + i) * KH * KW + b * KW + j) * L, pairs[i][j]);
    }
    held = 0;
  };
  for (int64_t oy = 0; oy < outputs; ++oy) {
    const V* upper = strip.row(oy * geo.sh + a * geo.dh);
    const V* lower = strip.row(oy * geo.sh + b * geo.dh);
    for (int64_t from = 0; from < geo.wo; from += kFlush) {
      const int64_t to = std::min(geo.wo, from + kFlush);
      if (held + to - from > kFlush) empty();
      for (int64_t ox = from; ox < to; ++ox) {
        V p[KW], q[KW];
        for (int i = 0; i < KW; ++i) p[i] = upper[ox * geo.sw + i * geo.dw];
        for (int j = 0; j < KW; ++j) q[j] = lower[ox * geo.sw + j * geo.dw];
        for (int i = 0; i < KW; ++i) sums[i] += p[i];
        for (int i = 0; i < KW; ++i)
          for (int j = 0; j < KW; ++j) pairs[i][j] += p[i] * q[j];
      }
      held += to - from;
    }
  }
  empty();
}

template <typename T, int KH, int KW>
Tensor moments_of(const Geometry& geo, const T* x, const T* shift) {
  constexpr int K = KH * KW;
  constexpr int64_t L = Lanes<T>::count;
  const int64_t rows = geo.strip(64);
  Tensor out = summed<T>(geo, K + K * K, [&](int64_t picture, int64_t c0, int64_t lanes, double* totals) {
    Strip<T> strip(geo, rows);
    for (int64_t first = 0; first < geo.ho; first += rows) {
      const int64_t outputs = std::min(rows, geo.ho - first);
      strip.fill(x, picture, c0, lanes, load<T>(shift + c0, lanes), first, outputs);
      for (int a = 0; a < KH; ++a)
        for (int b = a; b < KH; ++b) products<T, KH, KW>(strip, geo, outputs, a, b, totals, totals + K * L);
    }
  });
  // Tap rows below the diagonal are those above it.
  double* second = out.mutable_data_ptr<double>() + K * geo.c;
  for (int j = 0; j < K; ++j)
    for (int k = 0; k < K; ++k)
      if (j / KW > k / KW) std::copy_n(second + (k * K + j) * geo.c, geo.c, second + (j * K + k) * geo.c);
  return out;
}

template <typename T, int KH, int KW>
void convolve_to(const Geometry& geo, const T* x, const T* shift, const T* weight, const T* bias, T* y) {
  using V = typename Lanes<T>::type;
  constexpr int K = KH * KW;
  const int64_t rows = geo.strip(64);
  each<T>(geo, [&](int64_t picture, int64_t c0, int64_t lanes) {
    Strip<T> strip(geo, rows);
    V w[K];
    for (int j = 0; j < K; ++j) w[j] = load<T>(weight + j * geo.c + c0, lanes);
    const V start = load<T>(bias + c0, lanes);
    for (int64_t first = 0; first < geo.ho; first += rows) {
      const int64_t outputs = std::min(rows, geo.ho - first);
      strip.fill(x, picture, c0, lanes, load<T>(shift + c0, lanes), first, outputs);
      for (int64_t oy = 0; oy < outputs; ++oy)
        for (int64_t ox = 0; ox < geo.wo; ++ox) {
          V sum = start;
          for (int a = 0; a < KH; ++a)
            for (int b = 0; b < KW; ++b)
              sum += w[a * KW + b] * strip.row(oy * geo.sh + a * geo.dh)[ox * geo.sw + b * geo.dw];
          store<T>(y + ((picture * geo.ho + first + oy) * geo.wo + ox) * geo.c + c0, sum, lanes);
        }
    }
  });
}

template <typename T, int KH, int KW>
Tensor kernel_grad_of(const Geometry& geo, const T* x, const T* shift, const T* g) {
  using V = typename Lanes<T>::type;
  constexpr int K = KH * KW;
  constexpr int64_t L = Lanes<T>::count;
  const int64_t rows = geo.strip(64);
  return summed<T>(geo, K + 1, [&](int64_t picture, int64_t c0, int64_t lanes, double* totals) {
    Strip<T> strip(geo, rows);
    V sums[K + 1] = {};
    int64_t held = 0;
    auto empty = [&] {
      for (int j = 0; j <= K; ++j) flush<T>(totals + j * L, sums[j]);
      held = 0;
    };
    for (int64_t first = 0; first < geo.ho; first += rows) {
      const int64_t outputs = std::min(rows, geo.ho - first);
      strip.fill(x, picture, c0, lanes, load<T>(shift + c0, lanes), first, outputs);
      for (int64_t oy = 0; oy < outputs; ++oy)
        for (int64_t from = 0; from < geo.wo; from += kFlush) {
          const int64_t to = std::min(geo.wo, from + kFlush);
          if (held + to - from > kFlush) empty();
          for (int64_t ox = from; ox < to; ++ox) {
            const V up = load<T>(g + ((picture * geo.ho + first + oy) * geo.wo + ox) * geo.c + c0, lanes);
            for (int a = 0; a < KH; ++a)
              for (int b = 0; b < KW; ++b)
                sums[a * KW + b] += up * strip.row(oy * geo.sh + a * geo.dh)[ox * geo.sw + b * geo.dw];
            sums[K] += up;
          }
          held += to - from;
        }
    }
    empty();
  });
}

template <typename T, int KH, int KW>
void input_grad_to(const Geometry& geo, const T* x, const T* shift, const T* g, const T* weight, const T* constant,
                   const T* quadratic, T* dx) {
  using V = typename Lanes<T>::type;
  constexpr int K = KH * KW;
  const int64_t rows = geo.strip(128);
  each<T>(geo, [&](int64_t picture, int64_t c0, int64_t lanes) {
    Strip<T> strip(geo, rows), grad(geo, rows);
    V w[K], c[K], q[K][K];
    for (int j = 0; j < K; ++j) {
      w[j] = load<T>(weight + j * geo.c + c0, lanes);
      c[j] = load<T>(constant + j * geo.c + c0, lanes);
      for (int k = 0; k < K; ++k) q[j][k] = load<T>(quadratic + (j * K + k) * geo.c + c0, lanes);
    }
    for (int64_t first = 0; first < geo.ho; first += rows) {
      const int64_t outputs = std::min(rows, geo.ho - first);
      strip.fill(x, picture, c0, lanes, load<T>(shift + c0, lanes), first, outputs);
      std::fill(grad.cells.begin(), grad.cells.end(), V{});
      for (int64_t oy = 0; oy < outputs; ++oy)
        for (int64_t ox = 0; ox < geo.wo; ++ox) {
          const V up = load<T>(g + ((picture * geo.ho + first + oy) * geo.wo + ox) * geo.c + c0, lanes);
          V p[K];
          for (int a = 0; a < KH; ++a)
            for (int b = 0; b < KW; ++b) p[a * KW + b] = strip.row(oy * geo.sh + a * geo.dh)[ox * geo.sw + b * geo.dw];
          for (int a = 0; a < KH; ++a)
            for (int b = 0; b < KW; ++b) {
              const int j = a * KW + b;
              V sum = c[j] + w[j] * up;
              for (int k = 0; k < K; ++k) sum += q[j][k] * p[k];
              grad.row(oy * geo.sh + a * geo.dh)[ox * geo.sw + b * geo.dw] += sum;
            }
        }
      grad.spill(dx, picture, c0, lanes, first, outputs);
    }
  });
}

template <typename F>
void with_type(const Tensor& x, F&& f) {
  if (x.scalar_type() == at::kFloat) f.template operator()<float>();
  else if (x.scalar_type() == at::kDouble) f.template operator()<double>();
  else TORCH_CHECK(false, "float32 or float64 is wanted, got ", x.scalar_type());
}

// (taps + taps^2, C): the mean of each tap, then of each product of two.
Tensor moments(const Tensor& x, const Tensor& shift, at::IntArrayRef kernel, at::IntArrayRef stride,
               at::IntArrayRef dilation, at::IntArrayRef before, at::IntArrayRef out) {
  const Geometry geo = geometry(x, kernel, stride, dilation, before, out);
  Tensor sums;
  with_type(x, [&]<typename T>() {
    with_kernel(geo, [&]<int KH, int KW>() {
      sums = moments_of<T, KH, KW>(geo, x.const_data_ptr<T>(), shift.const_data_ptr<T>());
    });
  });
  return sums.div_(static_cast<double>(geo.n * geo.ho * geo.wo));
}

// Into y, (N, Ho, Wo, C) in any shape, of weight (taps, C) and bias (C).
void convolve(const Tensor& x, const Tensor& shift, const Tensor& weight, const Tensor& bias, Tensor& y,
              at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef dilation, at::IntArrayRef before,
              at::IntArrayRef out) {
  const Geometry geo = geometry(x, kernel, stride, dilation, before, out);
  check_outputs(geo, x, y);
  with_type(x, [&]<typename T>() {
    with_kernel(geo, [&]<int KH, int KW>() {
      convolve_to<T, KH, KW>(geo, x.const_data_ptr<T>(), shift.const_data_ptr<T>(), weight.const_data_ptr<T>(),
                             bias.const_data_ptr<T>(), y.mutable_data_ptr<T>());
    });
  });
}

// (taps + 1, C): the gradient of each tap's weight, then of the bias.
Tensor kernel_grad(const Tensor& x, const Tensor& shift, const Tensor& g, at::IntArrayRef kernel, at::IntArrayRef stride,
                   at::IntArrayRef dilation, at::IntArrayRef before, at::IntArrayRef out) {
  const Geometry geo = geometry(x, kernel, stride, dilation, before, out);
  check_outputs(geo, x, g);
  Tensor sums;
  with_type(x, [&]<typename T>() {
    with_kernel(geo, [&]<int KH, int KW>() {
      sums = kernel_grad_of<T, KH, KW>(geo, x.const_data_ptr<T>(), shift.const_data_ptr<T>(), g.const_data_ptr<T>());
    });
  });
  return sums;
}

// dx, (N, H, W, C), of weight and constant (taps, C) and quadratic (taps^2, C).
Tensor input_grad(const Tensor& x, const Tensor& shift, const Tensor& g, const Tensor& weight, const Tensor& constant,
                  const Tensor& quadratic, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef dilation,
                  at::IntArrayRef before, at::IntArrayRef out) {
  const Geometry geo = geometry(x, kernel, stride, dilation, before, out);
  check_outputs(geo, x, g);
  Tensor dx = at::zeros({geo.n, geo.h, geo.w, geo.c}, x.options());
  with_type(x, [&]<typename T>() {
    with_kernel(geo, [&]<int KH, int KW>() {
      input_grad_to<T, KH, KW>(geo, x.const_data_ptr<T>(), shift.const_data_ptr<T>(), g.const_data_ptr<T>(),
                               weight.const_data_ptr<T>(), constant.const_data_ptr<T>(), quadratic.const_data_ptr<T>(),
                               dx.mutable_data_ptr<T>());
    });
  });
  return dx;
}

}  // namespace

TORCH_LIBRARY(unbranch, library) {
  const std::string window = "int[] kernel, int[] stride, int[] dilation, int[] before, int[] out) -> ";
  library.def(("moments(Tensor x, Tensor shift, " + window + "Tensor").c_str());
  library.def(("convolve(Tensor x, Tensor shift, Tensor weight, Tensor bias, Tensor(a!) y, " + window + "()").c_str());
  library.def(("kernel_grad(Tensor x, Tensor shift, Tensor g, " + window + "Tensor").c_str());
  library.def(("input_grad(Tensor x, Tensor shift, Tensor g, Tensor weight, Tensor constant, Tensor quadratic, " + window + "Tensor").c_str());
}

TORCH_LIBRARY_IMPL(unbranch, CPU, library) {
  library.impl("moments", &moments);
  library.impl("convolve", &convolve);
  library.impl("kernel_grad", &kernel_grad);
  library.impl("input_grad", &input_grad);
}
