// Windows of any stride and dilation: each sum goes through all taps of each window.

#pragma once

#include "strips.h"

namespace {

// Where the taps of a row of windows lie in a strip: the first tap of each tap row, and cells from window to window and from tap to tap.
template <typename T, int KH>
struct Taps {
  using V = typename Lanes<T>::type;
  V* rows[KH];
  const int64_t step, gap;

  Taps(Strip<T>& strip, const Geometry& geo, int64_t output) : step(geo.sw), gap(geo.dw) {
    for (int a = 0; a < KH; ++a) rows[a] = strip.row(output * geo.sh + a * geo.dh);
  }
};

// Products of tap row a with tap row b over `count` windows, and the sums of tap row a.
template <typename T, int KW>
inline void products(const typename Lanes<T>::type* upper, const typename Lanes<T>::type* lower, int64_t step, int64_t gap, int64_t count,
                     typename Lanes<T>::type (&sums)[KW], typename Lanes<T>::type (&pairs)[KW][KW]) {
  using V = typename Lanes<T>::type;
  V own[KW] = {}, both[KW][KW] = {};
  for (int64_t o = 0; o < count; ++o, upper += step, lower += step) {
    V p[KW];
    UNBRANCH_UNROLL
    for (int i = 0; i < KW; ++i) own[i] += p[i] = upper[i * gap];
    UNBRANCH_UNROLL
    for (int j = 0; j < KW; ++j) {
      const V q = lower[j * gap];
      UNBRANCH_UNROLL
      for (int i = 0; i < KW; ++i) both[i][j] += p[i] * q;
    }
  }
  UNBRANCH_UNROLL
  for (int i = 0; i < KW; ++i) {
    sums[i] += own[i];
    UNBRANCH_UNROLL
    for (int j = 0; j < KW; ++j) pairs[i][j] += both[i][j];
  }
}

// Products of tap row a with tap row b over a strip, into totals of taps (j, k).
template <typename T, int KH, int KW>
void products_of(Strip<T>& strip, const Geometry& geo, int64_t outputs, int a, int b, double* first, double* second) {
  using V = typename Lanes<T>::type;
  constexpr int64_t L = Lanes<T>::count;
  V sums[KW] = {}, pairs[KW][KW] = {};
  int64_t held = 0;
  auto empty = [&] {
    for (int i = 0; i < KW; ++i) {
      if (a == b) flush<T>(first + (a * KW + i) * L, sums[i]);
      for (int j = 0; j < KW; ++j) flush<T>(second + ((a * KW + i) * KH * KW + b * KW + j) * L, pairs[i][j]);
    }
    std::fill_n(sums, KW, V{}), std::fill_n(&pairs[0][0], KW * KW, V{});
    held = 0;
  };
  for (int64_t oy = 0; oy < outputs; ++oy) {
    const Taps<T, KH> taps(strip, geo, oy);
    for (int64_t from = 0; from < geo.wo; from += kFlush) {
      const int64_t some = std::min(geo.wo - from, kFlush);
      if (held + some > kFlush) empty();
      products<T, KW>(taps.rows[a] + from * taps.step, taps.rows[b] + from * taps.step, taps.step, taps.gap, some, sums, pairs);
      held += some;
    }
  }
  empty();
}

template <typename T, int KH, int KW>
Tensor moments_of(const Geometry& geo, const T* x, const T* shift) {
  constexpr int K = KH * KW;
  constexpr int64_t L = Lanes<T>::count;
  const int64_t rows = geo.strip(64);
  Tensor out = summed<T>(geo, K + K * K, [&](int64_t begin, int64_t end, int64_t c0, int64_t lanes, double* totals) {
    Strip<T> strip(geo.rows_of(rows), geo.width());
    for (int64_t task = begin * geo.ho, outputs; task < end * geo.ho; task += outputs) {
      const int64_t first = task % geo.ho;
      outputs = std::min(rows, geo.ho - first);
      under(strip, geo, x, task / geo.ho, c0, lanes, load<T>(shift + c0, lanes), first);
      for (int a = 0; a < KH; ++a)
        for (int b = a; b < KH; ++b) products_of<T, KH, KW>(strip, geo, outputs, a, b, totals, totals + K * L);
    }
  });
  mirror<KH, KW>(geo, out);
  return out;
}

// N windows, `ahead` cells from one to the next.
template <typename T, int KH, int KW, int N>
inline void convolve_some(const Taps<T, KH>& taps, int64_t first, int64_t ahead, int64_t gap, const typename Lanes<T>::type* w,
                          typename Lanes<T>::type start, T* to, int64_t step, int64_t lanes) {
  typename Lanes<T>::type sum[N];
  UNBRANCH_UNROLL
  for (int n = 0; n < N; ++n) sum[n] = start;
  UNBRANCH_UNROLL
  for (int a = 0; a < KH; ++a)
    UNBRANCH_UNROLL
    for (int b = 0; b < KW; ++b)
      UNBRANCH_UNROLL
      for (int n = 0; n < N; ++n) sum[n] += w[a * KW + b] * taps.rows[a][first + n * ahead + b * gap];
  UNBRANCH_UNROLL
  for (int n = 0; n < N; ++n) store<T>(to + n * step, sum[n], lanes);
}

template <typename T, int KH, int KW>
void convolve_to(const Geometry& geo, const T* x, const T* shift, const T* weight, const T* bias, T* y) {
  using V = typename Lanes<T>::type;
  constexpr int K = KH * KW;
  const int64_t rows = geo.strip(64);
  runs<T>(geo, [&](int64_t, int64_t begin, int64_t end, int64_t c0, int64_t lanes) {
    Strip<T> strip(geo.rows_of(rows), geo.width());
    V w[K];
    for (int j = 0; j < K; ++j) w[j] = load<T>(weight + j * geo.c + c0, lanes);
    const V start = load<T>(bias + c0, lanes);
    for (int64_t task = begin * geo.ho, outputs; task < end * geo.ho; task += outputs) {
      const int64_t first = task % geo.ho;
      outputs = std::min(rows, geo.ho - first);
      under(strip, geo, x, task / geo.ho, c0, lanes, load<T>(shift + c0, lanes), first);
      for (int64_t oy = 0; oy < outputs; ++oy) {
        const Taps<T, KH> taps(strip, geo, oy);
        T* to = y + (task + oy) * geo.wo * geo.c + c0;
        int64_t ox = 0;
        for (; ox + 4 <= geo.wo; ox += 4, to += 4 * geo.c)
          convolve_some<T, KH, KW, 4>(taps, ox * taps.step, taps.step, taps.gap, w, start, to, geo.c, lanes);
        for (; ox < geo.wo; ++ox, to += geo.c)
          convolve_some<T, KH, KW, 1>(taps, ox * taps.step, taps.step, taps.gap, w, start, to, geo.c, lanes);
      }
    }
  });
}

// Over `count` windows of a row: sums of g with each tap, and of g.
template <typename T, int KH, int KW>
inline void kernel_grad_row(const Taps<T, KH>& taps, int64_t from, const T* g, int64_t next, int64_t lanes, int64_t count,
                            typename Lanes<T>::type (&sums)[KH * KW + 1]) {
  using V = typename Lanes<T>::type;
  V own[KH * KW + 1] = {};
  const int64_t step = taps.step, gap = taps.gap;
  const V* rows[KH];
  UNBRANCH_UNROLL
  for (int a = 0; a < KH; ++a) rows[a] = taps.rows[a] + from * step;
  for (int64_t o = 0; o < count; ++o, g += next) {
    const V up = load<T>(g, lanes);
    UNBRANCH_UNROLL
    for (int a = 0; a < KH; ++a)
      UNBRANCH_UNROLL
      for (int b = 0; b < KW; ++b) own[a * KW + b] += up * rows[a][o * step + b * gap];
    own[KH * KW] += up;
  }
  UNBRANCH_UNROLL
  for (int j = 0; j <= KH * KW; ++j) sums[j] += own[j];
}

template <typename T, int KH, int KW>
Tensor kernel_grad_of(const Geometry& geo, const T* x, const T* shift, const T* g) {
  using V = typename Lanes<T>::type;
  constexpr int K = KH * KW;
  constexpr int64_t L = Lanes<T>::count;
  const int64_t rows = geo.strip(64);
  return summed<T>(geo, K + 1, [&](int64_t begin, int64_t end, int64_t c0, int64_t lanes, double* totals) {
    Strip<T> strip(geo.rows_of(rows), geo.width());
    V sums[K + 1] = {};
    int64_t held = 0;
    auto empty = [&] {
      for (int j = 0; j <= K; ++j) flush<T>(totals + j * L, sums[j]);
      std::fill_n(sums, K + 1, V{});
      held = 0;
    };
    for (int64_t task = begin * geo.ho, outputs; task < end * geo.ho; task += outputs) {
      const int64_t first = task % geo.ho;
      outputs = std::min(rows, geo.ho - first);
      under(strip, geo, x, task / geo.ho, c0, lanes, load<T>(shift + c0, lanes), first);
      for (int64_t oy = 0; oy < outputs; ++oy) {
        const Taps<T, KH> taps(strip, geo, oy);
        for (int64_t from = 0; from < geo.wo; from += kFlush) {
          const int64_t some = std::min(geo.wo - from, kFlush);
          if (held + some > kFlush) empty();
          kernel_grad_row<T, KH, KW>(taps, from, g + ((task + oy) * geo.wo + from) * geo.c + c0, geo.c, lanes, some, sums);
          held += some;
        }
      }
    }
    empty();
  });
}

// Each pixel is written once: what two strips share is carried from the one to the next.
template <typename T, int KH, int KW>
void input_grad_to(const Geometry& geo, const T* x, const T* shift, const T* g, const T* weight, const T* constant,
                   const T* quadratic, T* dx) {
  using V = typename Lanes<T>::type;
  constexpr int K = KH * KW;
  const int64_t rows = geo.strip(128), shared = std::max<int64_t>(0, geo.span_h() - geo.sh);
  runs<T>(geo, [&](int64_t, int64_t begin, int64_t end, int64_t c0, int64_t lanes) {
    Strip<T> strip(geo.rows_of(rows), geo.width()), grad(geo.rows_of(rows), geo.width());
    V w[K], c[K], q[K][K];
    for (int j = 0; j < K; ++j) {
      w[j] = load<T>(weight + j * geo.c + c0, lanes);
      c[j] = load<T>(constant + j * geo.c + c0, lanes);
      for (int k = 0; k < K; ++k) q[j][k] = load<T>(quadratic + (j * K + k) * geo.c + c0, lanes);
    }
    for (int64_t task = begin * geo.ho, outputs; task < end * geo.ho; task += outputs) {
      const int64_t picture = task / geo.ho, first = task % geo.ho;
      outputs = std::min(rows, geo.ho - first);
      under(strip, geo, x, picture, c0, lanes, load<T>(shift + c0, lanes), first);
      const int64_t top = first * geo.sh - geo.top, begun = first ? shared * grad.width : 0;
      if (begun) std::copy(grad.row(rows * geo.sh), grad.row(rows * geo.sh) + begun, grad.row(0));
      std::fill(grad.cells.begin() + begun, grad.cells.end(), V{});
      for (int64_t oy = 0; oy < outputs; ++oy) {
        const Taps<T, KH> taps(strip, geo, oy), grads(grad, geo, oy);
        const int64_t step = taps.step, gap = taps.gap;
        const T* from = g + (task + oy) * geo.wo * geo.c + c0;
        for (int64_t ox = 0; ox < geo.wo; ++ox, from += geo.c) {
          const V up = load<T>(from, lanes);
          V p[K];
          UNBRANCH_UNROLL
          for (int a = 0; a < KH; ++a)
            UNBRANCH_UNROLL
            for (int b = 0; b < KW; ++b) p[a * KW + b] = taps.rows[a][ox * step + b * gap];
          UNBRANCH_UNROLL
          for (int a = 0; a < KH; ++a)
            UNBRANCH_UNROLL
            for (int b = 0; b < KW; ++b) {
              const int j = a * KW + b;
              V sum = c[j] + w[j] * up, other = q[j][0] * p[0];
              UNBRANCH_UNROLL
              for (int k = 1; k < K; ++k) (k % 2 ? sum : other) += q[j][k] * p[k];
              grads.rows[a][ox * step + b * gap] += sum + other;
            }
        }
      }
      const int64_t from = first ? std::clamp<int64_t>(top, 0, geo.h) : 0;
      const int64_t until = first + outputs < geo.ho ? std::clamp<int64_t>(top + outputs * geo.sh, 0, geo.h) : geo.h;
      grad.write(dx + picture * geo.h * geo.w * geo.c + c0, from, until, geo.w, geo.c, lanes, top, -geo.left);
    }
  });
}

}  // namespace
