// Windows side by side, stride and dilation 1, on maps no smaller than they are: the product of two taps depends on the distance between
// them, and on where they lie only through which windows the border leaves out. So 13 products a pixel do for the 45 of a 3x3 window.

#pragma once

#include <optional>

#include "strips.h"

namespace {

inline bool is_dense(const Geometry& geo) {
  return geo.sh == 1 && geo.sw == 1 && geo.dh == 1 && geo.dw == 1 && geo.ho >= geo.kh && geo.wo >= geo.kw && geo.wo <= kFlush;
}

// For one row of pixels, or the sum over several: of a pixel and of its products with those `da` below and `db` beside, summed over the
// columns that tap column b sees.
template <typename T, int KH, int KW>
struct Lags {
  using V = typename Lanes<T>::type;
  V first[KW] = {}, second[KH][2 * KW - 1][KW] = {};

  static constexpr int from(int da) { return da == 0 ? 0 : 1 - KW; }
  static constexpr bool both(int b, int db) { return b + db >= 0 && b + db < KW; }

  // All of a row, with the `deep` rows below.
  void read(Strip<T>& strip, int64_t r, int deep, int64_t wo) {
    const V* row = strip.row(r);
    V sum = {};
    for (int64_t c = KW - 1; c < wo; ++c) sum += row[c];
    for (int b = 0; b < KW; ++b) {
      first[b] = sum;
      for (int64_t c = b; c < KW - 1; ++c) first[b] += row[c];
      for (int64_t c = wo; c < wo + b; ++c) first[b] += row[c];
    }
    for (int da = 0; da <= deep; ++da) {
      const V* below = strip.row(r + da);
      V sums[2 * KW - 1] = {};
      for (int64_t c = KW - 1; c < wo; ++c)
        for (int db = from(da); db < KW; ++db) sums[db + KW - 1] += row[c] * below[c + db];
      for (int db = from(da); db < KW; ++db)
        for (int b = 0; b < KW; ++b) {
          if (!both(b, db)) continue;
          V value = sums[db + KW - 1];
          for (int64_t c = b; c < KW - 1; ++c) value += row[c] * below[c + db];
          for (int64_t c = wo; c < wo + b; ++c) value += row[c] * below[c + db];
          second[da][db + KW - 1][b] = value;
        }
    }
  }

  void add(const Lags& other, int deep) {
    for (int b = 0; b < KW; ++b) first[b] += other.first[b];
    for (int da = 0; da <= deep; ++da)
      for (int db = from(da); db < KW; ++db)
        for (int b = 0; b < KW; ++b)
          if (both(b, db)) second[da][db + KW - 1][b] += other.second[da][db + KW - 1][b];
  }

  // Into the totals of the taps in row a of the window: (taps, then pairs of taps).
  void empty(int a, double* totals) {
    constexpr int K = KH * KW;
    constexpr int64_t L = Lanes<T>::count;
    for (int b = 0; b < KW; ++b) {
      const int j = a * KW + b;
      flush<T>(totals + j * L, first[b]);
      for (int da = 0; da + a < KH; ++da)
        for (int db = from(da); db < KW; ++db)
          if (both(b, db)) flush<T>(totals + (K + j * K + j + da * KW + db) * L, second[da][db + KW - 1][b]);
    }
  }
};

template <typename T, int KH, int KW>
Tensor dense_moments(const Geometry& geo, const T* x, const T* shift) {
  constexpr int K = KH * KW;
  const int64_t all = geo.rows_of(geo.ho), rows = std::min(all, geo.strip(64));
  Tensor out = summed<T>(geo, K + K * K, [&](int64_t begin, int64_t end, int64_t c0, int64_t lanes, double* totals) {
    Strip<T> strip(rows + KH - 1, geo.width());
    // The rows that every tap row sees are added up once, the others for each that sees them.
    Lags<T, KH, KW> row, inner, own[KH];
    int64_t held = 0;
    auto empty = [&] {
      for (int a = 0; a < KH; ++a) {
        own[a].add(inner, KH - 1 - a);
        own[a].empty(a, totals);
      }
      inner = {};
      held = 0;
    };
    for (int64_t task = begin * all, some; task < end * all; task += some) {
      const int64_t picture = task / all, first = task % all;
      some = std::min(rows, all - first);
      strip.fill(x + picture * geo.h * geo.w * geo.c + c0, geo.h, geo.w, geo.c, lanes, load<T>(shift + c0, lanes),
                 first - geo.top, -geo.left);
      for (int64_t r = first; r < first + some; ++r) {
        const int64_t least = std::max<int64_t>(0, r - geo.ho + 1), most = std::min<int64_t>(KH - 1, r);
        if (held + geo.wo > kFlush) empty();
        row.read(strip, r - first, KH - 1 - least, geo.wo);
        if (least == 0 && most == KH - 1) inner.add(row, KH - 1);
        else for (int64_t a = least; a <= most; ++a) own[a].add(row, KH - 1 - a);
        held += geo.wo;
      }
    }
    empty();
  });
  mirror<KH, KW>(geo, out);
  return out;
}

// What a pixel's gradient is made of where tap rows a0 to a1 and tap columns b0 to b1 have a window on it.
template <typename T, int KH, int KW>
struct Stencil {
  using V = typename Lanes<T>::type;
  V constant = {}, lag[2 * KH - 1][2 * KW - 1] = {};

  void make(int a0, int a1, int b0, int b1, const V* constants, const V* quadratic) {
    constexpr int K = KH * KW;
    for (int a = a0; a <= a1; ++a)
      for (int b = b0; b <= b1; ++b) {
        constant += constants[a * KW + b];
        for (int i = 0; i < KH; ++i)
          for (int j = 0; j < KW; ++j) lag[i - a + KH - 1][j - b + KW - 1] += quadratic[(a * KW + b) * K + i * KW + j];
      }
  }

  // N pixels beside each other, the first with its surroundings at (r, c) of both strips.
  template <int N>
  void apply(Strip<T>& near, Strip<T>& up, int64_t r, int64_t c, const V* weight, T* to, int64_t step, int64_t lanes) const {
    V sum[N];
    for (int n = 0; n < N; ++n) sum[n] = constant;
    for (int da = 0; da < 2 * KH - 1; ++da) {
      const V* row = near.row(r + da) + c;
      for (int db = 0; db < 2 * KW - 1; ++db)
        for (int n = 0; n < N; ++n) sum[n] += lag[da][db] * row[db + n];
    }
    for (int a = 0; a < KH; ++a) {
      const V* row = up.row(r + KH - 1 - a) + c;
      for (int b = 0; b < KW; ++b)
        for (int n = 0; n < N; ++n) sum[n] += weight[a * KW + b] * row[KW - 1 - b + n];
    }
    for (int n = 0; n < N; ++n) store<T>(to + n * step, sum[n], lanes);
  }
};

// The first and the last of k taps under which one of `out` windows has pixel y, the first window starting `before` pixels before pixel 0;
// pixels before `until` are like it.
struct Reach {
  int64_t first, last, until;

  Reach(int64_t y, int64_t before, int64_t k, int64_t out, int64_t size)
      : first(std::clamp<int64_t>(y + before - out + 1, 0, k)), last(std::min(k - 1, y + before)), until(y + 1) {
    if (first == 0 && last == k - 1) until = std::clamp<int64_t>(out - before, y + 1, size);
  }
};

template <typename T, int KH, int KW>
void dense_input_grad(const Geometry& geo, const T* x, const T* shift, const T* g, const T* weight, const T* constant,
                      const T* quadratic, T* dx) {
  using V = typename Lanes<T>::type;
  constexpr int K = KH * KW;
  const int64_t rows = std::min(geo.h, geo.strip(128));
  runs<T>(geo, [&](int64_t, int64_t begin, int64_t end, int64_t c0, int64_t lanes) {
    V w[K], c[K], q[K * K];
    for (int j = 0; j < K; ++j) w[j] = load<T>(weight + j * geo.c + c0, lanes), c[j] = load<T>(constant + j * geo.c + c0, lanes);
    for (int j = 0; j < K * K; ++j) q[j] = load<T>(quadratic + j * geo.c + c0, lanes);
    const V minus = load<T>(shift + c0, lanes);
    std::vector<std::optional<Stencil<T, KH, KW>>> stencils((KH + 1) * KH * (KW + 1) * KW);
    Strip<T> near(rows + 2 * KH - 2, geo.w + 2 * KW - 2), up(rows + KH - 1, geo.w + KW - 1);
    for (int64_t task = begin * geo.h; task < end * geo.h;) {
      const int64_t picture = task / geo.h, top = task % geo.h, some = std::min(rows, geo.h - top);
      const int64_t pixels = picture * geo.h * geo.w * geo.c + c0;
      near.fill(x + pixels, geo.h, geo.w, geo.c, lanes, minus, top - KH + 1, 1 - KW);
      up.fill(g + picture * geo.ho * geo.wo * geo.c + c0, geo.ho, geo.wo, geo.c, lanes, V{}, top + geo.top - KH + 1, geo.left - KW + 1);
      for (int64_t y = top; y < top + some; ++y) {
        const Reach high(y, geo.top, KH, geo.ho, geo.h);
        for (int64_t u = 0; u < geo.w;) {
          const Reach wide(u, geo.left, KW, geo.wo, geo.w);
          auto& stencil = stencils[((high.first * KH + high.last) * (KW + 1) + wide.first) * KW + wide.last];
          if (!stencil) stencil.emplace().make(high.first, high.last, wide.first, wide.last, c, q);
          T* to = dx + pixels + (y * geo.w + u) * geo.c;
          for (; u + 4 <= wide.until; u += 4, to += 4 * geo.c) stencil->template apply<4>(near, up, y - top, u, w, to, geo.c, lanes);
          for (; u < wide.until; ++u, to += geo.c) stencil->template apply<1>(near, up, y - top, u, w, to, geo.c, lanes);
        }
      }
      task += some;
    }
  });
}

}  // namespace
