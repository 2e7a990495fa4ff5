// Windows side by side, stride and dilation 1, on maps no smaller than they are: the product of two taps depends on the distance between
// them, and on where they lie only through which windows the border leaves out. So 13 products a pixel do for the 45 of a 3x3 window.

#pragma once

#include "strips.h"

namespace {

inline bool is_dense(const Geometry& geo) {
  return geo.sh == 1 && geo.sw == 1 && geo.dh == 1 && geo.dw == 1 && geo.ho >= geo.kh && geo.wo >= geo.kw && geo.wo <= kFlush;
}

// Sums over pixels and over products of a pixel with those `da` below and `db` beside, for pixels of rows that the same tap rows see:
// the columns that all tap columns see are added up once, the others each by itself.
template <typename T, int KH, int KW>
struct Lags {
  using V = typename Lanes<T>::type;
  static constexpr int kEdge = KW - 1, kCells = std::max(kEdge, 1), kLags = KW + (KH - 1) * (2 * KW - 1);
  struct Sum {
    V inner = {}, left[kCells] = {}, right[kCells] = {};

    // Over the columns that tap column b sees.
    V seen(int b) const {
      V value = inner;
      for (int e = b; e < kEdge; ++e) value += left[e];
      for (int e = 0; e < b; ++e) value += right[e];
      return value;
    }
    void add(const Sum& other) {
      inner += other.inner;
      for (int e = 0; e < kEdge; ++e) left[e] += other.left[e], right[e] += other.right[e];
    }
  };
  Sum first, second[kLags];

  static constexpr int from(int da) { return da == 0 ? 0 : 1 - KW; }
  static constexpr int at(int da, int db) { return da == 0 ? db : KW + (da - 1) * (2 * KW - 1) + db + KW - 1; }
  static constexpr bool both(int b, int db) { return b + db >= 0 && b + db < KW; }

  // A row of `wo + KW - 1` pixels, with the DEEP rows below, `width` pixels apart.
  template <int DEEP>
  void read(const V* row, int64_t width, int64_t wo) {
    V sum = {}, sums[kLags] = {};
    for (int64_t c = kEdge; c < wo; ++c) {
      const V pixel = row[c];
      sum += pixel;
      UNBRANCH_UNROLL
      for (int da = 0; da <= DEEP; ++da)
        UNBRANCH_UNROLL
        for (int db = from(da); db < KW; ++db) sums[at(da, db)] += pixel * row[da * width + c + db];
    }
    first.inner += sum;
    UNBRANCH_UNROLL
    for (int i = 0; i <= at(DEEP, KW - 1); ++i) second[i].inner += sums[i];
    UNBRANCH_UNROLL
    for (int e = 0; e < kEdge; ++e) {
      const V left = row[e], right = row[wo + e];
      first.left[e] += left, first.right[e] += right;
      UNBRANCH_UNROLL
      for (int da = 0; da <= DEEP; ++da)
        UNBRANCH_UNROLL
        for (int db = from(da); db < KW; ++db) {
          if (e + db >= 0) second[at(da, db)].left[e] += left * row[da * width + e + db];
          if (e + db < kEdge) second[at(da, db)].right[e] += right * row[da * width + wo + e + db];
        }
    }
  }

  void read(int64_t deep, const V* row, int64_t width, int64_t wo) {
    if (deep == 0) read<0>(row, width, wo);
    else if (deep == 1) read<std::min(1, KH - 1)>(row, width, wo);
    else read<KH - 1>(row, width, wo);
  }

  void add(const Lags& other, int deep) {
    first.add(other.first);
    for (int i = 0; i <= at(deep, KW - 1); ++i) second[i].add(other.second[i]);
  }

  // Into the totals of the taps in row a of the window: (taps, then pairs of taps).
  void empty(int a, double* totals) const {
    constexpr int K = KH * KW;
    constexpr int64_t L = Lanes<T>::count;
    for (int b = 0; b < KW; ++b) {
      const int j = a * KW + b;
      flush<T>(totals + j * L, first.seen(b));
      for (int da = 0; da + a < KH; ++da)
        for (int db = from(da); db < KW; ++db)
          if (both(b, db)) flush<T>(totals + (K + j * K + j + da * KW + db) * L, second[at(da, db)].seen(b));
    }
  }
};

template <typename T, int KH, int KW>
Tensor dense_moments(const Geometry& geo, const T* x, const T* shift) {
  constexpr int K = KH * KW;
  const int64_t all = geo.rows_of(geo.ho), rows = std::min(all, geo.strip(64));
  Tensor out = summed<T>(geo, K + K * K, [&](int64_t begin, int64_t end, int64_t c0, int64_t lanes, double* totals) {
    Strip<T> strip(rows + KH - 1, geo.width());
    // Rows by the first and the last tap row that see them: those at the top, those that all see, those at the bottom.
    std::vector<Lags<T, KH, KW>> kinds(2 * KH - 1);
    int64_t held = 0;
    auto empty = [&] {
      for (int a = 0; a < KH; ++a) {
        Lags<T, KH, KW> own = kinds[KH - 1];
        for (int r = a; r < KH - 1; ++r) own.add(kinds[r], KH - 1 - a);
        for (int r = 0; r < a; ++r) own.add(kinds[KH + r], KH - 1 - a);
        own.empty(a, totals);
      }
      std::fill(kinds.begin(), kinds.end(), Lags<T, KH, KW>());
      held = 0;
    };
    for (int64_t task = begin * all, some; task < end * all; task += some) {
      const int64_t picture = task / all, first = task % all;
      some = std::min(rows, all - first);
      strip.fill(x + picture * geo.h * geo.w * geo.c + c0, geo.h, geo.w, geo.c, lanes, load<T>(shift + c0, lanes),
                 first - geo.top, -geo.left);
      for (int64_t r = first; r < first + some; ++r) {
        const int64_t kind = r < geo.ho ? std::min<int64_t>(r, KH - 1) : KH + r - geo.ho;
        if (held + geo.wo > kFlush) empty();
        kinds[kind].read(std::min<int64_t>(KH - 1, all - 1 - r), strip.row(r - first), strip.width, geo.wo);
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

  void make(int64_t a0, int64_t a1, int64_t b0, int64_t b1, const V* constants, const V* quadratic) {
    constexpr int K = KH * KW;
    for (int64_t a = a0; a <= a1; ++a)
      for (int64_t b = b0; b <= b1; ++b) {
        constant += constants[a * KW + b];
        for (int i = 0; i < KH; ++i)
          for (int j = 0; j < KW; ++j) lag[i - a + KH - 1][j - b + KW - 1] += quadratic[(a * KW + b) * K + i * KW + j];
      }
  }

  // N pixels, beside each other or, where DOWN, below each other, the first with its surroundings at `near` and at `up`.
  template <int N, bool DOWN>
  void apply(const V* near, int64_t width, const V* up, int64_t up_width, const V* weight, T* to, int64_t step, int64_t lanes) const {
    const int64_t ahead = DOWN ? width : 1, up_ahead = DOWN ? up_width : 1;
    // Sums of two parts where the pixels are too few to keep the processor busy while it waits for each product.
    constexpr bool two = N < 4;
    V sum[N], other[N];
    UNBRANCH_UNROLL
    for (int n = 0; n < N; ++n) sum[n] = constant, other[n] = V{};
    for (int da = 0; da < 2 * KH - 1; ++da, near += width)
      UNBRANCH_UNROLL
      for (int db = 0; db < 2 * KW - 1; ++db) {
        const V by = lag[da][db];
        UNBRANCH_UNROLL
        for (int n = 0; n < N; ++n) (two && db % 2 ? other : sum)[n] += by * near[db + n * ahead];
      }
    for (int a = KH - 1; a >= 0; --a, up += up_width)
      UNBRANCH_UNROLL
      for (int b = 0; b < KW; ++b) {
        const V by = weight[a * KW + b];
        UNBRANCH_UNROLL
        for (int n = 0; n < N; ++n) (two ? other : sum)[n] += by * up[KW - 1 - b + n * up_ahead];
      }
    if constexpr (two)
      for (int n = 0; n < N; ++n) sum[n] += other[n];
    UNBRANCH_UNROLL
    for (int n = 0; n < N; ++n) {
      next_block(to + n * step);
      store<T>(to + n * step, sum[n], lanes);
    }
  }

  // A line of pixels, some at once.
  template <bool DOWN>
  void along(int64_t length, const V* near, int64_t width, const V* up, int64_t up_width, const V* weight, T* to, int64_t step,
             int64_t lanes) const {
    const auto some = [&]<int N>() {
      apply<N, DOWN>(near, width, up, up_width, weight, to, step, lanes);
      near += N * (DOWN ? width : 1), up += N * (DOWN ? up_width : 1), to += N * step, length -= N;
    };
    while (length >= 8) some.template operator()<8>();
    if (length >= 6) some.template operator()<6>();
    if (length >= 4) some.template operator()<4>();
    if (length >= 2) some.template operator()<2>();
    if (length > 0) some.template operator()<1>();
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
    std::vector<Stencil<T, KH, KW>> stencils;
    std::vector<int> known((KH + 1) * KH * (KW + 1) * KW, -1);
    Strip<T> near(rows + 2 * KH - 2, geo.w + 2 * KW - 2), up(rows + KH - 1, geo.w + KW - 1);
    for (int64_t task = begin * geo.h; task < end * geo.h;) {
      const int64_t picture = task / geo.h, top = task % geo.h, some = std::min(rows, geo.h - top);
      T* pixels = dx + picture * geo.h * geo.w * geo.c + c0;
      near.fill(x + picture * geo.h * geo.w * geo.c + c0, geo.h, geo.w, geo.c, lanes, minus, top - KH + 1, 1 - KW);
      up.fill(g + picture * geo.ho * geo.wo * geo.c + c0, geo.ho, geo.wo, geo.c, lanes, V{}, top + geo.top - KH + 1, geo.left - KW + 1);
      for (int64_t y = top, below; y < top + some; y = below) {
        const Reach high(y, geo.top, KH, geo.ho, geo.h);
        below = std::min(high.until, top + some);
        for (int64_t u = 0, beside; u < geo.w; u = beside) {
          const Reach wide(u, geo.left, KW, geo.wo, geo.w);
          beside = wide.until;
          int& place = known[((high.first * KH + high.last) * (KW + 1) + wide.first) * KW + wide.last];
          if (place < 0) {
            place = static_cast<int>(stencils.size());
            stencils.emplace_back().make(high.first, high.last, wide.first, wide.last, c, q);
          }
          const Stencil<T, KH, KW>& stencil = stencils[place];
          const auto line = [&]<bool DOWN>(int64_t r, int64_t column, int64_t length) {
            stencil.template along<DOWN>(length, near.row(r) + column, near.width, up.row(r) + column, up.width, w,
                                         pixels + ((top + r) * geo.w + column) * geo.c, (DOWN ? geo.w : 1) * geo.c, lanes);
          };
          // Along the longer side.
          if (beside - u >= below - y)
            for (int64_t r = y; r < below; ++r) line.template operator()<false>(r - top, u, beside - u);
          else
            for (int64_t column = u; column < beside; ++column) line.template operator()<true>(y - top, column, below - y);
        }
      }
      task += some;
    }
  });
}

}  // namespace
