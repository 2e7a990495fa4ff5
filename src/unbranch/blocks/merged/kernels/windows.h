// Windows of any stride and dilation: each sum goes through all taps of each window.

#pragma once

#include "strips.h"

namespace {

// Calls f with the stride along a row as a constant, for 3x3 windows without dilation and of stride 1 or 2; with 0 for all others, which
// are too rare to be compiled three times.
template <int KH, int KW, typename F>
void with_stride(const Geometry& geo, F&& f) {
  if constexpr (KH == 3 && KW == 3) {
    if (geo.dw == 1 && geo.sw == 1) return f.template operator()<1>();
    if (geo.dw == 1 && geo.sw == 2) return f.template operator()<2>();
  }
  f.template operator()<0>();
}

// Where the taps of a row of windows lie in a strip: the first tap of each tap row, and cells from window to window and from tap to tap,
// constants where STRIDE is.
template <typename T, int KH, int STRIDE>
struct Taps {
  using V = typename Lanes<T>::type;
  V* rows[KH];

  Taps(Strip<T>& strip, const Geometry& geo, int64_t output) : step_(geo.sw), gap_(geo.dw) {
    for (int a = 0; a < KH; ++a) rows[a] = strip.row(output * geo.sh + a * geo.dh);
  }
  int64_t step() const { return STRIDE ? STRIDE : step_; }
  int64_t gap() const { return STRIDE ? 1 : gap_; }

 private:
  const int64_t step_, gap_;
};

// Products of tap row a with tap row b over `count` windows, and the sums of tap row a.
template <typename T, int KW>
inline __attribute__((always_inline)) void products(const typename Lanes<T>::type* upper, const typename Lanes<T>::type* lower, int64_t step, int64_t gap, int64_t count,
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
template <typename T, int KH, int KW, int STRIDE>
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
    const Taps<T, KH, STRIDE> taps(strip, geo, oy);
    const int64_t step = taps.step();
    for (int64_t from = 0; from < geo.wo; from += kFlush) {
      const int64_t some = std::min(geo.wo - from, kFlush);
      if (held + some > kFlush) empty();
      products<T, KW>(taps.rows[a] + from * step, taps.rows[b] + from * step, step, taps.gap(), some, sums, pairs);
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
      with_stride<KH, KW>(geo, [&]<int STRIDE>() {
        for (int a = 0; a < KH; ++a)
          for (int b = a; b < KH; ++b) products_of<T, KH, KW, STRIDE>(strip, geo, outputs, a, b, totals, totals + K * L);
      });
    }
  });
  mirror<KH, KW>(geo, out);
  return out;
}

// N windows from `output` on.
template <typename T, int KH, int KW, int N, int STRIDE>
inline void convolve_some(const Taps<T, KH, STRIDE>& taps, int64_t output, const typename Lanes<T>::type* w,
                          typename Lanes<T>::type start, T* to, int64_t step, int64_t lanes) {
  typename Lanes<T>::type sum[N];
  UNBRANCH_UNROLL
  for (int n = 0; n < N; ++n) sum[n] = start;
  UNBRANCH_UNROLL
  for (int a = 0; a < KH; ++a)
    UNBRANCH_UNROLL
    for (int b = 0; b < KW; ++b)
      UNBRANCH_UNROLL
      for (int n = 0; n < N; ++n) sum[n] += w[a * KW + b] * taps.rows[a][(output + n) * taps.step() + b * taps.gap()];
  UNBRANCH_UNROLL
  for (int n = 0; n < N; ++n) {
    next_block(to + n * step);
    store<T>(to + n * step, sum[n], lanes);
  }
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
      with_stride<KH, KW>(geo, [&]<int STRIDE>() {
        for (int64_t oy = 0; oy < outputs; ++oy) {
          const Taps<T, KH, STRIDE> taps(strip, geo, oy);
          T* to = y + (task + oy) * geo.wo * geo.c + c0;
          int64_t ox = 0;
          for (; ox + 4 <= geo.wo; ox += 4, to += 4 * geo.c) convolve_some<T, KH, KW, 4>(taps, ox, w, start, to, geo.c, lanes);
          for (; ox < geo.wo; ++ox, to += geo.c) convolve_some<T, KH, KW, 1>(taps, ox, w, start, to, geo.c, lanes);
        }
      });
    }
  });
}

// Over `count` windows of a row: sums of g with each tap, and of g.
template <typename T, int KH, int KW, int STRIDE>
inline void kernel_grad_row(const Taps<T, KH, STRIDE>& taps, int64_t from, const T* g, int64_t next, int64_t lanes, int64_t count,
                            typename Lanes<T>::type (&sums)[KH * KW + 1]) {
  using V = typename Lanes<T>::type;
  V own[KH * KW + 1] = {};
  const V* rows[KH];
  UNBRANCH_UNROLL
  for (int a = 0; a < KH; ++a) rows[a] = taps.rows[a] + from * taps.step();
  for (int64_t o = 0; o < count; ++o, g += next) {
    __builtin_prefetch(g + kAhead * next);
    next_block(g);
    const V up = load<T>(g, lanes);
    UNBRANCH_UNROLL
    for (int a = 0; a < KH; ++a)
      UNBRANCH_UNROLL
      for (int b = 0; b < KW; ++b) own[a * KW + b] += up * rows[a][o * taps.step() + b * taps.gap()];
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
      with_stride<KH, KW>(geo, [&]<int STRIDE>() {
        for (int64_t oy = 0; oy < outputs; ++oy) {
          const Taps<T, KH, STRIDE> taps(strip, geo, oy);
          for (int64_t from = 0; from < geo.wo; from += kFlush) {
            const int64_t some = std::min(geo.wo - from, kFlush);
            if (held + some > kFlush) empty();
            const T* up = g + ((task + oy) * geo.wo + from) * geo.c + c0;
            if (lanes == L) kernel_grad_row<T, KH, KW>(taps, from, up, geo.c, L, some, sums);
            else kernel_grad_row<T, KH, KW>(taps, from, up, geo.c, lanes, some, sums);
            held += some;
          }
        }
      });
    }
    empty();
  });
}

// Of `count` windows of a row, into the cells that `grads` has for those of `taps`.
template <typename T, int KH, int KW, int STRIDE>
inline void input_grad_row(const Taps<T, KH, STRIDE>& taps, const Taps<T, KH, STRIDE>& grads, const T* g, int64_t next, int64_t lanes,
                           int64_t count, const typename Lanes<T>::type (&w)[KH * KW], const typename Lanes<T>::type (&c)[KH * KW],
                           const typename Lanes<T>::type (&q)[KH * KW][KH * KW]) {
  using V = typename Lanes<T>::type;
  constexpr int K = KH * KW;
  for (int64_t o = 0; o < count; ++o, g += next) {
    __builtin_prefetch(g + kAhead * next);
    next_block(g);
    const V up = load<T>(g, lanes);
    V p[K];
    UNBRANCH_UNROLL
    for (int a = 0; a < KH; ++a)
      UNBRANCH_UNROLL
      for (int b = 0; b < KW; ++b) p[a * KW + b] = taps.rows[a][o * taps.step() + b * taps.gap()];
    UNBRANCH_UNROLL
    for (int a = 0; a < KH; ++a)
      UNBRANCH_UNROLL
      for (int b = 0; b < KW; ++b) {
        const int j = a * KW + b;
        V sum = c[j] + w[j] * up, other = q[j][0] * p[0];
        UNBRANCH_UNROLL
        for (int k = 1; k < K; ++k) (k % 2 ? sum : other) += q[j][k] * p[k];
        grads.rows[a][o * taps.step() + b * taps.gap()] += sum + other;
      }
  }
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
      with_stride<KH, KW>(geo, [&]<int STRIDE>() {
        for (int64_t oy = 0; oy < outputs; ++oy) {
          const Taps<T, KH, STRIDE> taps(strip, geo, oy), grads(grad, geo, oy);
          const T* from = g + (task + oy) * geo.wo * geo.c + c0;
          if (lanes == Lanes<T>::count) input_grad_row<T, KH, KW>(taps, grads, from, geo.c, Lanes<T>::count, geo.wo, w, c, q);
          else input_grad_row<T, KH, KW>(taps, grads, from, geo.c, lanes, geo.wo, w, c, q);
        }
      });
      const int64_t from = first ? std::clamp<int64_t>(top, 0, geo.h) : 0;
      const int64_t until = first + outputs < geo.ho ? std::clamp<int64_t>(top + outputs * geo.sh, 0, geo.h) : geo.h;
      grad.write(dx + picture * geo.h * geo.w * geo.c + c0, from, until, geo.w, geo.c, lanes, top, -geo.left);
    }
  });
}

}  // namespace
