// Batch norms of several values (N, C, ...) in channels-last, added up: statistics in one pass over each value, the sum in another, and as
// many on the way back.
//
//   y = t + sum_i a_i (u_i - m_i) + beta_i,  a_i = gamma_i r_i,  r_i = 1 / sqrt(var(u_i) + eps_i), or max(0, y)
//   B = sum g,  A_i = sum g (u_i - m_i),  dbeta_i = B,  dgamma_i = r_i A_i,  du_i = a_i (g - B / M - (u_i - m_i) r_i^2 A_i / M)
//
// Each u comes less a value of its own channel, so that small variances beside large means keep their digits.

#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <array>
#include <cmath>
#include <limits>

#include "fold.h"

namespace {

// Rows that a shift is the median of, and rows that are summed before a sum is written: memory is read in the order in which it lies.
constexpr int64_t kShift = 5, kTogether = 4;
// Memory is asked for so many bytes before it is read or written.
constexpr int64_t kEarly = 4096;

// The gradient of a sum, or of max(0, sum) where y is what that was: none passes where it was 0.
template <typename T>
struct Upstream {
  const T *g, *y;

  typename Lanes<T>::type at(int64_t place, int64_t lanes) const {
    const auto own = load<T>(g + place, lanes);
    if (!y) return own;
    return load<T>(y + place, lanes) <= 0 ? typename Lanes<T>::type{} : own;
  }
};

// Values (M, C).
struct Matrix {
  int64_t rows, columns;
};

// Of values (N, C, ...), whose channels lie side by side.
inline Matrix rows_of(const Tensor& values) { return {values.numel() / values.size(1), values.size(1)}; }
inline bool is_rows(const Tensor& values) { return values.dim() > 1 && values.numel() > 0 && values.movedim(1, -1).is_contiguous(); }

// Sums over the rows, (VALUES, C): `add(place, vector, lanes, sums)` adds some channels of one row.
template <typename T, int VALUES, typename Add>
std::vector<double> column_sums(const Matrix& size, Add&& add) {
  using V = typename Lanes<T>::type;
  constexpr int64_t L = Lanes<T>::count;
  const int64_t vectors = (size.columns + L - 1) / L, all = vectors * VALUES * L;
  const int64_t cut = std::clamp<int64_t>(size.rows / kFlush, 1, kTasks);
  std::vector<double> parts(cut * all);
  at::parallel_for(0, cut, 1, [&](int64_t first, int64_t last) {
    std::vector<V> sums(vectors * VALUES);
    for (int64_t part = first; part < last; ++part) {
      const int64_t end = (part + 1) * size.rows / cut;
      for (int64_t from = part * size.rows / cut; from < end; from += kFlush) {
        std::fill(sums.begin(), sums.end(), V{});
        const int64_t until = std::min(end, from + kFlush);
        for (int64_t row = from; row < until; row += kTogether) {
          const int64_t stop = std::min(until, row + kTogether);
          for (int64_t v = 0; v < vectors; ++v) {
            V own[VALUES];
            std::copy_n(&sums[v * VALUES], VALUES, own);
            const int64_t lanes = std::min(L, size.columns - v * L);
            const auto some = [&](int64_t width) { for (int64_t r = row; r < stop; ++r) add(r * size.columns + v * L, v, width, own); };
            if (lanes == L) some(L);
            else some(lanes);
            std::copy_n(own, VALUES, &sums[v * VALUES]);
          }
        }
        for (int64_t i = 0; i < vectors * VALUES; ++i) flush<T>(parts.data() + part * all + i * L, sums[i]);
      }
    }
  });
  std::vector<double> out(VALUES * size.columns);
  for (int64_t part = 0; part < cut; ++part)
    for (int64_t c = 0; c < size.columns; ++c)
      for (int v = 0; v < VALUES; ++v) out[v * size.columns + c] += parts[part * all + (c / L * VALUES + v) * L + c % L];
  return out;
}

// Numbers for each channel, those of a vector of channels side by side: `VALUES` times (C,).
template <typename T, int VALUES>
struct Numbers {
  using V = typename Lanes<T>::type;
  std::vector<V> all;

  explicit Numbers(int64_t columns) : all((columns + Lanes<T>::count - 1) / Lanes<T>::count * VALUES) {}
  void set(int64_t column, int value, double number) {
    all[column / Lanes<T>::count * VALUES + value][column % Lanes<T>::count] = static_cast<T>(number);
  }
  const V* at(int64_t vector) const { return all.data() + vector * VALUES; }
};

// All values in the order in which they lie: `f(numbers, place, lanes)` with the numbers of some channels of a row.
template <typename T, int VALUES, typename F>
void each_vector(const Matrix& size, const Numbers<T, VALUES>& numbers, F&& f) {
  constexpr int64_t L = Lanes<T>::count;
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, size.columns)), whole = size.columns / L;
  at::parallel_for(0, size.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin, at = begin * size.columns; row < end; ++row, at += size.columns) {
      for (int64_t v = 0; v < whole; ++v) f(numbers.at(v), at + v * L, L);
      if (whole * L < size.columns) f(numbers.at(whole), at + whole * L, size.columns - whole * L);
    }
  });
}

// Norms three at a time, then what is left: `f` of their number, as a constant, and of the first.
template <typename F>
void by_three(int64_t count, F&& f) {
  for (int64_t first = 0; first < count; first += 3) {
    if (count - first >= 3) f.template operator()<3>(first);
    else if (count - first == 2) f.template operator()<2>(first);
    else f.template operator()<1>(first);
  }
}

// One of the norms: its value, its parameters, and what was seen of its value, (C,) each.
template <typename T>
struct Norm {
  const T *u, *gamma, *beta;
  double *mean, *inverse;
  std::vector<T> shift;
  std::array<Tensor, 2> held;  // what gamma and beta point to

  double factor(int64_t c) const { return gamma ? gamma[c] * inverse[c] : inverse[c]; }
  // What the shift leaves of the mean.
  double rest(int64_t c) const { return mean[c] - shift[c]; }
};

// The median of some values of a channel, so that those that stick out are not what the others are counted from.
template <typename T>
T middle(const T* channel, const Matrix& size) {
  T some[kShift];
  for (int64_t i = 0; i < kShift; ++i) {
    T value = channel[((2 * i + 1) * size.rows / (2 * kShift) + i) % size.rows * size.columns];
    int64_t at = i;
    for (; at > 0 && some[at - 1] > value; --at) some[at] = some[at - 1];
    some[at] = value;
  }
  return std::isfinite(some[kShift / 2]) ? some[kShift / 2] : T(0);
}

// Mean, variance over M, and r.
template <typename T>
void look(Norm<T>& norm, const Matrix& size, double eps, double* variance) {
  const int64_t columns = size.columns;
  for (int64_t c = 0; c < columns; ++c) norm.shift[c] = middle(norm.u + c, size);
  Numbers<T, 1> shift(columns);
  for (int64_t c = 0; c < columns; ++c) shift.set(c, 0, norm.shift[c]);
  const auto sums = column_sums<T, 2>(size, [&](int64_t at, int64_t v, int64_t lanes, auto& sums) {
    const auto u = load<T>(norm.u + at, lanes) - *shift.at(v);
    sums[0] += u, sums[1] += u * u;
  });
  for (int64_t c = 0; c < columns; ++c) {
    const double rest = sums[c] / size.rows;
    norm.mean[c] = norm.shift[c] + rest;
    const double spread = sums[columns + c] / size.rows - rest * rest;
    variance[c] = spread < 0 ? 0 : spread;  // what is no number stays so
    norm.inverse[c] = 1 / std::sqrt(variance[c] + eps);
  }
}

// Norm i of a sum: value i, its parameters, `each` for a norm, gamma first; its own rows of (norms, C) in `seen` and `inverse`.
template <typename T>
std::vector<Norm<T>> norms_of(at::TensorList values, const Parameters& parameters, int each, Tensor& seen, Tensor& inverse) {
  const int64_t columns = values[0].size(1);
  std::vector<Norm<T>> made;
  for (size_t i = 0; i < values.size(); ++i) {
    const Tensor& u = values[i];
    TORCH_CHECK(u.sizes() == values[0].sizes() && is_rows(u), "value ", i, ": ", values[0].sizes(), " with channels last is wanted, got ",
                u.sizes());
    std::array<Tensor, 2> held;
    const auto parameter = [&](int which) -> const T* {
      if (which >= each) return nullptr;
      const std::optional<Tensor> one = parameters.get(each * i + which);
      if (!one.has_value()) return nullptr;
      TORCH_CHECK(one->numel() == columns && one->scalar_type() == u.scalar_type(), "norm ", i, ": ", columns, " values of ", u.scalar_type(),
                  " are wanted as parameters");
      held[which] = one->contiguous();
      return held[which].const_data_ptr<T>();
    };
    double *means = seen.mutable_data_ptr<double>(), *inverses = inverse.mutable_data_ptr<double>();
    const T *gamma = parameter(0), *beta = parameter(1);
    made.push_back({u.const_data_ptr<T>(), gamma, beta, means + i * columns, inverses + i * columns, std::vector<T>(columns), held});
  }
  return made;
}

// N norms from `first` on, added to what stands in y where it `adds`.
template <typename T, int N>
void add_up(const std::vector<Norm<T>>& norms, int64_t first, const Matrix& size, bool adds, bool rectifies, T* y) {
  using V = typename Lanes<T>::type;
  // What is no number stays so.
  const V floor = V{} - (rectifies ? T(0) : std::numeric_limits<T>::infinity());
  Numbers<T, 1 + 2 * N> by(size.columns);
  std::array<const T*, N> values;
  for (int n = 0; n < N; ++n) values[n] = norms[first + n].u;
  for (int64_t c = 0; c < size.columns; ++c) {
    double constant = 0;
    for (int n = 0; n < N; ++n) {
      const Norm<T>& norm = norms[first + n];
      const double slope = norm.factor(c);
      constant += (norm.beta ? norm.beta[c] : 0) - slope * norm.rest(c);
      by.set(c, 1 + 2 * n, slope), by.set(c, 2 + 2 * n, norm.shift[c]);
    }
    by.set(c, 0, constant);
  }
  each_vector(size, by, [&, values](const auto& own, int64_t at, int64_t lanes) {
    __builtin_prefetch(y + at + kEarly / sizeof(T), 1);
    auto sum = adds ? own[0] + load<T>(y + at, lanes) : own[0];
    UNBRANCH_UNROLL
    for (int n = 0; n < N; ++n) sum += own[1 + 2 * n] * (load<T>(values[n] + at, lanes) - own[2 + 2 * n]);
    store<T>(y + at, sum < floor ? floor : sum, lanes);
  });
}

// Into y, or added to what stands there. Returns mean, r and variance over M, (norms, C) each, in float64.
template <typename T>
std::vector<Tensor> norms_forward_of(at::TensorList values, Tensor& y, bool adds, bool rectifies, const Parameters& parameters,
                                     at::ArrayRef<double> eps) {
  const Matrix size = rows_of(y);
  const int64_t count = static_cast<int64_t>(values.size());
  Tensor seen = at::empty({count, size.columns}, at::kDouble), inverse = at::empty_like(seen), variance = at::empty_like(seen);
  std::vector<Norm<T>> norms = norms_of<T>(values, parameters, 2, seen, inverse);
  for (int64_t i = 0; i < count; ++i) look(norms[i], size, eps[i], variance.mutable_data_ptr<double>() + i * size.columns);
  by_three(count, [&]<int N>(int64_t first) {
    add_up<T, N>(norms, first, size, adds || first, rectifies && first + N == count, y.mutable_data_ptr<T>());
  });
  return {seen, inverse, variance};
}

// A of N norms from `first` on, then B.
template <typename T, int N>
std::vector<double> products_with(const std::vector<Norm<T>>& norms, int64_t first, const Matrix& size, const Upstream<T>& g) {
  Numbers<T, N> shifts(size.columns);
  std::array<const T*, N> values;
  for (int n = 0; n < N; ++n) values[n] = norms[first + n].u;
  for (int64_t c = 0; c < size.columns; ++c)
    for (int n = 0; n < N; ++n) shifts.set(c, n, norms[first + n].shift[c]);
  return column_sums<T, N + 1>(size, [&, values](int64_t at, int64_t v, int64_t lanes, auto& sums) {
    const auto up = g.at(at, lanes);
    UNBRANCH_UNROLL
    for (int n = 0; n < N; ++n) sums[n] += up * (load<T>(values[n] + at, lanes) - shifts.at(v)[n]);
    sums[N] += up;
  });
}

// du of N norms, into those of `to` that are there: slope_g g + slope_u (u - shift) + constant.
template <typename T, int N>
void input_grads(const std::vector<Norm<T>>& norms, int64_t first, const Matrix& size, const Upstream<T>& g, const double* products,
                 const double* total, const std::array<T*, N>& to) {
  Numbers<T, 4 * N> by(size.columns);
  std::array<const T*, N> values;
  const double rows = size.rows;
  for (int n = 0; n < N; ++n) {
    const Norm<T>& norm = norms[first + n];
    values[n] = norm.u;
    for (int64_t c = 0; c < size.columns; ++c) {
      const double a = norm.factor(c), r = norm.inverse[c], slope = -a * r * r * products[n * size.columns + c] / rows;
      by.set(c, 4 * n, -a * total[c] / rows - slope * norm.rest(c)), by.set(c, 4 * n + 1, a);
      by.set(c, 4 * n + 2, slope), by.set(c, 4 * n + 3, norm.shift[c]);
    }
  }
  each_vector(size, by, [&, values, to](const auto& own, int64_t at, int64_t lanes) {
    const auto up = g.at(at, lanes);
    UNBRANCH_UNROLL
    for (int n = 0; n < N; ++n) {
      if (!to[n]) continue;
      __builtin_prefetch(to[n] + at + kEarly / sizeof(T), 1);
      const auto* by = &own[4 * n];
      store<T>(to[n] + at, by[0] + by[1] * up + by[2] * (load<T>(values[n] + at, lanes) - by[3]), lanes);
    }
  });
}

// The gradients that are needed, of the values and then of gamma and beta in turn.
template <typename T>
std::vector<Tensor> norms_backward_of(at::TensorList values, const Tensor& g, const std::optional<Tensor>& y, Tensor seen, Tensor inverse,
                                      const Parameters& gammas, at::IntArrayRef needed) {
  const Matrix size = rows_of(g);
  const int64_t count = static_cast<int64_t>(values.size()), columns = size.columns;
  std::vector<Norm<T>> norms = norms_of<T>(values, gammas, 1, seen, inverse);
  for (Norm<T>& norm : norms) std::copy_n(norm.mean, columns, norm.shift.begin());
  const Upstream<T> up{g.const_data_ptr<T>(), y.has_value() ? y->const_data_ptr<T>() : nullptr};
  std::vector<Tensor> made, rest;
  by_three(count, [&]<int N>(int64_t first) {
    std::vector<double> products = products_with<T, N>(norms, first, size, up);
    const double* total = products.data() + N * columns;
    std::array<T*, N> to = {};
    for (int n = 0; n < N; ++n) {
      const int64_t i = first + n;
      double* own = products.data() + n * columns;
      for (int64_t c = 0; c < columns; ++c) own[c] -= norms[i].rest(c) * total[c];
      if (needed[i]) to[n] = made.emplace_back(at::empty_like(values[i])).template mutable_data_ptr<T>();
      if (needed[count + 2 * i]) {
        T* gamma = rest.emplace_back(at::empty({columns}, g.options())).template mutable_data_ptr<T>();
        for (int64_t c = 0; c < columns; ++c) gamma[c] = static_cast<T>(norms[i].inverse[c] * own[c]);
      }
      if (needed[count + 2 * i + 1]) {
        T* beta = rest.emplace_back(at::empty({columns}, g.options())).template mutable_data_ptr<T>();
        std::copy_n(total, columns, beta);
      }
    }
    if (std::any_of(to.begin(), to.end(), [](T* grad) { return grad != nullptr; }))
      input_grads<T, N>(norms, first, size, up, products.data(), total, to);
  });
  made.insert(made.end(), rest.begin(), rest.end());
  return made;
}

}  // namespace
