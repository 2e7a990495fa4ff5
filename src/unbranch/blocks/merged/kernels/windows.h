// Windows of any stride and dilation: each sum goes through all taps of each window.

#pragma once

#include "strips.h"

namespace {

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
  Tensor out = summed<T>(geo, K + K * K, [&](int64_t begin, int64_t end, int64_t c0, int64_t lanes, double* totals) {
    Strip<T> strip(geo.rows_of(rows), geo.width());
    for (int64_t task = begin * geo.ho, outputs; task < end * geo.ho; task += outputs) {
      const int64_t first = task % geo.ho;
      outputs = std::min(rows, geo.ho - first);
      under(strip, geo, x, task / geo.ho, c0, lanes, load<T>(shift + c0, lanes), first);
      for (int a = 0; a < KH; ++a)
        for (int b = a; b < KH; ++b) products<T, KH, KW>(strip, geo, outputs, a, b, totals, totals + K * L);
    }
  });
  mirror<KH, KW>(geo, out);
  return out;
}

template <typename T, int KH, int KW>
void convolve_to(const Geometry& geo, const T* x, const T* shift, const T* weight, const T* bias, T* y) {
  using V = typename Lanes<T>::type;
  constexpr int K = KH * KW;
  const int64_t rows = geo.strip(64);
  each<T>(geo, [&](int64_t picture, int64_t c0, int64_t lanes) {
    Strip<T> strip(geo.rows_of(rows), geo.width());
    V w[K];
    for (int j = 0; j < K; ++j) w[j] = load<T>(weight + j * geo.c + c0, lanes);
    const V start = load<T>(bias + c0, lanes);
    for (int64_t first = 0; first < geo.ho; first += rows) {
      const int64_t outputs = std::min(rows, geo.ho - first);
      under(strip, geo, x, picture, c0, lanes, load<T>(shift + c0, lanes), first);
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
  return summed<T>(geo, K + 1, [&](int64_t begin, int64_t end, int64_t c0, int64_t lanes, double* totals) {
    Strip<T> strip(geo.rows_of(rows), geo.width());
    V sums[K + 1] = {};
    int64_t held = 0;
    auto empty = [&] {
      for (int j = 0; j <= K; ++j) flush<T>(totals + j * L, sums[j]);
      held = 0;
    };
    for (int64_t task = begin * geo.ho, outputs; task < end * geo.ho; task += outputs) {
      const int64_t picture = task / geo.ho, first = task % geo.ho;
      outputs = std::min(rows, geo.ho - first);
      under(strip, geo, x, picture, c0, lanes, load<T>(shift + c0, lanes), first);
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
    Strip<T> strip(geo.rows_of(rows), geo.width()), grad(geo.rows_of(rows), geo.width());
    V w[K], c[K], q[K][K];
    for (int j = 0; j < K; ++j) {
      w[j] = load<T>(weight + j * geo.c + c0, lanes);
      c[j] = load<T>(constant + j * geo.c + c0, lanes);
      for (int k = 0; k < K; ++k) q[j][k] = load<T>(quadratic + (j * K + k) * geo.c + c0, lanes);
    }
    for (int64_t first = 0; first < geo.ho; first += rows) {
      const int64_t outputs = std::min(rows, geo.ho - first);
      under(strip, geo, x, picture, c0, lanes, load<T>(shift + c0, lanes), first);
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
      grad.spill(dx + picture * geo.h * geo.w * geo.c + c0, geo.h, geo.w, geo.c, lanes, first * geo.sh - geo.top, -geo.left);
    }
  });
}

}  // namespace
