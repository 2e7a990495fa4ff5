// Batch norms of several kernels folded into one by a batch's moments, and the way back: fold.py says the maths.
//
// Rows are (G, terms, O, D), a term's kernel on the window for each output of a group; terms that are the input itself on a window of one
// pixel come last and have no row. Products of large matrices are ATen's, whatever else there is goes over the rows once.

#pragma once

#include <ATen/core/List.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>

#include <cmath>
#include <optional>
#include <vector>

#include "gram.h"

namespace {

using Parameters = c10::List<std::optional<Tensor>>;
// Up to so many values in a patch, products are written out here.
constexpr int64_t kSmall = 32;

// The terms of a sum: kernel, gamma and beta of each in `tensors`, undefined where there is none; `places`, for each term in turn the
// taps of the window that its own taps are.
struct Terms {
  std::vector<Tensor> tensors, given;  // side by side in memory, and as they came
  std::vector<at::IntArrayRef> places;
  int64_t groups, outputs, depth, taps, bare;

  Terms(const Parameters& parameters, at::IntArrayRef all, at::IntArrayRef counts, int64_t g, int64_t o, int64_t d, int64_t window, int64_t lone)
      : groups(g), outputs(o), depth(d), taps(window), bare(lone) {
    for (const std::optional<Tensor>& one : parameters) {
      given.push_back(one.value_or(Tensor()));
      tensors.push_back(one.has_value() ? one->contiguous() : Tensor());
    }
    for (const int64_t count : counts) places.push_back(all.slice(0, count)), all = all.slice(count);
    check();
  }

  // What the loops below rely on: whatever the caller gave, they stay inside of it.
  void check() const {
    TORCH_CHECK(tensors.size() == 3 * places.size() && taps > 0 && depth % taps == 0 && bare >= 0 && bare <= all() &&
                    (bare == 0 || depth == outputs), "the terms do not fit the window");
    for (int64_t t = 0; t < all(); ++t) {
      const int64_t own = static_cast<int64_t>(places[t].size());
      TORCH_CHECK(std::all_of(places[t].begin(), places[t].end(), [&](int64_t place) { return place >= 0 && place < taps; }),
                  "term ", t, ": taps ", places[t], " of a window of ", taps);
      if (tensors[3 * t].defined()) fits(t, 0, "kernel", groups * outputs * inner() * own);
      else TORCH_CHECK(t >= written() || (own == 1 && outputs == inner()), "term ", t, " has no kernel and is no identity");
      fits(t, 1, "gamma", groups * outputs);
      fits(t, 2, "beta", groups * outputs);
    }
  }

  void fits(int64_t term, int which, const char* name, int64_t wanted) const {
    const Tensor& one = tensors[3 * term + which];
    TORCH_CHECK(!one.defined() || one.numel() == wanted, "term ", term, ": ", wanted, " values of ", name, " are wanted, got ", one.sizes());
  }

  int64_t all() const { return static_cast<int64_t>(places.size()); }
  int64_t written() const { return all() - bare; }
  int64_t inner() const { return depth / taps; }
  bool whole(int64_t term) const { return static_cast<int64_t>(places[term].size()) == taps; }

  template <typename P>
  const P* data(int64_t term, int which) const {
    const Tensor& one = tensors[3 * term + which];
    return one.defined() ? one.const_data_ptr<P>() : nullptr;
  }

  // (G, written, O, D).
  template <typename T, typename P>
  Tensor rows(const Tensor& like) const {
    Tensor made = at::empty({groups, written(), outputs, depth}, like.options());
    T* to = made.mutable_data_ptr<T>();
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t t = 0; t < written(); ++t) {
        const int64_t own = inner() * static_cast<int64_t>(places[t].size());
        const P* kernel = data<P>(t, 0);
        for (int64_t o = 0; o < outputs; ++o, to += depth) {
          const P* from = kernel + (g * outputs + o) * own;
          if (kernel && whole(t)) {
            std::copy_n(from, depth, to);
            continue;
          }
          std::fill_n(to, depth, T(0));
          if (!kernel) to[o * taps + places[t][0]] = 1;
          else for (int64_t i = 0; i < inner(); ++i)
            for (const int64_t place : places[t]) to[i * taps + place] = static_cast<T>(*from++);
        }
      }
    return made;
  }

  // Whether a kernel's taps lie one after the other, channels innermost.
  bool channels_last(int64_t term) const {
    const Tensor& one = given[3 * term];
    return one.defined() && one.dim() > 2 && !one.is_contiguous() && one.movedim(1, -1).is_contiguous();
  }

  // For the gradient of a parameter: laid out as it is, which is what others take over as it stands.
  Tensor like(int64_t number, const at::TensorOptions& options) const {
    const Tensor& one = given[number];
    if (one.is_contiguous() || (number % 3 == 0 && channels_last(number / 3))) return at::empty_strided(one.sizes(), one.strides(), options);
    return at::empty(one.sizes(), options);
  }

  // A term's part of a row of the window, as the term's own kernel has it; `last` is what `channels_last` says.
  template <typename P, typename F>
  void own(int64_t term, P* to, bool last, F&& value) const {
    if (last)
      for (const int64_t place : places[term])
        for (int64_t i = 0; i < inner(); ++i) *to++ = static_cast<P>(value(i * taps + place));
    else if (whole(term)) for (int64_t d = 0; d < depth; ++d) to[d] = static_cast<P>(value(d));
    else for (int64_t i = 0; i < inner(); ++i)
      for (const int64_t place : places[term]) *to++ = static_cast<P>(value(i * taps + place));
  }
};

template <typename T>
inline T dot(const T* a, const T* b, int64_t n) {
  constexpr int64_t L = Lanes<T>::count;
  typename Lanes<T>::type sums[2] = {};
  int64_t i = 0;
  for (; i + 2 * L <= n; i += 2 * L)
    for (int j = 0; j < 2; ++j) sums[j] += load<T>(a + i + j * L, L) * load<T>(b + i + j * L, L);
  double sum = 0;
  sums[0] += sums[1];
  for (int64_t j = 0; j < L; ++j) sum += sums[0][j];
  for (; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  return static_cast<T>(sum);
}

// Each group's rows times its symmetric matrix: (G, R, D), (G, D, D) -> (G, R, D).
template <typename T>
Tensor through(const Tensor& rows, const Tensor& matrix) {
  const int64_t groups = rows.size(0), depth = rows.size(-1), some = rows.numel() / std::max<int64_t>(1, groups * depth);
  if (depth > kSmall) return at::bmm(rows.view({groups, some, depth}), matrix).view(rows.sizes());
  Tensor made = at::empty_like(rows);
  const T *from = rows.const_data_ptr<T>(), *all = matrix.const_data_ptr<T>();
  T* to = made.mutable_data_ptr<T>();
  for (int64_t r = 0; r < groups * some; ++r, from += depth, to += depth) {
    const T* by = all + r / some * depth * depth;
    T sums[kSmall] = {};
    for (int64_t j = 0; j < depth; ++j)
      for (int64_t k = 0; k < depth; ++k) sums[k] += from[j] * by[j * depth + k];
    std::copy_n(sums, depth, to);
  }
  return made;
}

// rows^T diag(weights) rows of each group: (G, R, D), G * R weights -> (G, D, D).
template <typename T>
Tensor gram(const Tensor& rows, const std::vector<T>& weights) {
  const int64_t groups = rows.size(0), some = rows.size(1), depth = rows.size(2);
  const T* row = rows.const_data_ptr<T>();
  if (depth > kSmall) return symmetric<T>(row, Tall{groups, some, depth, depth, some * depth}, nullptr, weights.data(), rows.options());
  Tensor made = at::zeros({groups, depth, depth}, rows.options());
  for (int64_t r = 0; r < groups * some; ++r, row += depth) {
    T* to = made.mutable_data_ptr<T>() + r / some * depth * depth;
    for (int64_t j = 0; j < depth; ++j)
      for (int64_t k = 0; k < depth; ++k) to[j * depth + k] += row[j] * (weights[r] * row[k]);
  }
  return made;
}

inline void expect(const Tensor& one, int64_t wanted, const char* name) {
  TORCH_CHECK(one.is_contiguous() && one.numel() == wanted, wanted, " contiguous values of ", name, " are wanted, got ", one.sizes());
}

struct Folded {
  Tensor weight, offset, seen, inverse, mean, variance;
};

// The kernel and what it adds, S w, r, and the means and variances that the norms see: (G, O, D), (G, O), rows, (G, terms, O), (terms, C).
template <typename T, typename P>
Folded fold_of(const Terms& terms, const Tensor& mean, const Tensor& covariance, at::ArrayRef<double> eps) {
  const int64_t G = terms.groups, O = terms.outputs, D = terms.depth, all = terms.all(), written = terms.written();
  expect(mean, G * D, "means"), expect(covariance, G * D * D, "covariance");
  TORCH_CHECK(static_cast<int64_t>(eps.size()) == all, all, " eps are wanted, got ", eps.size());
  const Tensor rows = terms.rows<T, P>(mean);
  Folded made{at::zeros({G, O, D}, mean.options()), at::empty({G, O}, mean.options()), through<T>(rows, covariance),
              at::empty({G, all, O}, mean.options()), at::empty({all, G * O}, mean.options()), at::empty({all, G * O}, mean.options())};
  const T *row = rows.const_data_ptr<T>(), *seen = made.seen.const_data_ptr<T>(), *means = mean.const_data_ptr<T>(),
          *cov = covariance.const_data_ptr<T>();
  T *weight = made.weight.mutable_data_ptr<T>(), *offset = made.offset.mutable_data_ptr<T>(), *inverse = made.inverse.mutable_data_ptr<T>(),
    *average = made.mean.mutable_data_ptr<T>(), *variance = made.variance.mutable_data_ptr<T>();
  at::parallel_for(0, G * O, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t g = i / O, o = i % O;
      T sum = 0;
      for (int64_t t = 0; t < all; ++t) {
        const int64_t at = ((g * written + t) * O + o) * D;
        const bool has = t < written;
        const T seen_mean = has ? dot(row + at, means + g * D, D) : means[g * D + o];
        const T spread = has ? dot(row + at, seen + at, D) : cov[(g * D + o) * D + o];
        const T r = 1 / std::sqrt(spread + static_cast<T>(eps[t]));
        const P *gamma = terms.data<P>(t, 1), *beta = terms.data<P>(t, 2);
        const T a = gamma ? r * static_cast<T>(gamma[i]) : r;
        if (beta) sum += static_cast<T>(beta[i]);
        if (has) for (int64_t d = 0; d < D; ++d) weight[i * D + d] += a * row[at + d];
        else weight[i * D + o] += a;
        inverse[(g * all + t) * O + o] = r;
        average[t * G * O + i] = seen_mean;
        variance[t * G * O + i] = spread;
      }
      offset[i] = sum;
    }
  });
  return made;
}

// -w^T B of each group: (G, O), (G, O, D) -> (G, D). Many small groups are no work for a product of matrices each.
template <typename T>
Tensor mean_grad(const Tensor& total, const Tensor& weight) {
  const int64_t G = weight.size(0), O = weight.size(1), D = weight.size(2);
  if (D > kSmall) return at::bmm(total.view({G, 1, O}), weight).squeeze(1).neg_();
  Tensor made = at::zeros({G, D}, weight.options());
  const T *by = total.const_data_ptr<T>(), *from = weight.const_data_ptr<T>();
  for (int64_t i = 0; i < G * O; ++i) {
    T* to = made.mutable_data_ptr<T>() + i / O * D;
    for (int64_t d = 0; d < D; ++d) to[d] -= by[i] * from[i * D + d];
  }
  return made;
}

struct Unfolded {
  std::vector<Tensor> found;  // of the parameters that are needed, in turn
  Tensor covariance, mean, weight;
};

// Gradients, of A = `product` (G, O, D) and B = `total` (G, O); those of the moments where `deep`. Kept is S w, or S.
template <typename T, typename P>
Unfolded unfold_of(const Terms& terms, const Tensor& kept, bool is_covariance, const Tensor& inverse, const Tensor& product,
                   const Tensor& total, at::IntArrayRef needed, bool deep) {
  const int64_t G = terms.groups, O = terms.outputs, D = terms.depth, all = terms.all(), written = terms.written();
  expect(product, G * O * D, "products"), expect(total, G * O, "sums"), expect(inverse, G * all * O, "deviations");
  expect(kept, is_covariance ? G * D * D : G * written * O * D, "what is kept");
  TORCH_CHECK(static_cast<int64_t>(needed.size()) == 3 * all, 3 * all, " needs are wanted, got ", needed.size());
  const Tensor rows = terms.rows<T, P>(product), seen = is_covariance ? through<T>(rows, kept) : kept;
  Unfolded made;
  std::vector<P*> to(3 * all, nullptr);
  std::vector<char> last(all);
  for (int64_t t = 0; t < all; ++t) last[t] = terms.channels_last(t);
  const auto own = product.options().dtype(c10::CppTypeToScalarType<P>::value);
  for (int64_t j = 0; j < 3 * all; ++j)
    if (needed[j]) to[j] = made.found.emplace_back(terms.like(j, own)).template mutable_data_ptr<P>();
  made.weight = at::zeros({G, O, D}, product.options());
  std::vector<T> lone(G * O), dvariances(G * written * O);
  const T *row = rows.const_data_ptr<T>(), *passed = seen.const_data_ptr<T>(), *inv = inverse.const_data_ptr<T>(),
          *A = product.const_data_ptr<T>(), *B = total.const_data_ptr<T>();
  T *weight = made.weight.mutable_data_ptr<T>();
  at::parallel_for(0, G * O, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t g = i / O, o = i % O;
      const T* drawn_by = A + i * D;
      for (int64_t t = 0; t < all; ++t) {
        const int64_t at = ((g * written + t) * O + o) * D;
        const bool has = t < written;
        const T r = inv[(g * all + t) * O + o];
        const P* gamma = terms.data<P>(t, 1);
        const T a = gamma ? r * static_cast<T>(gamma[i]) : r;
        const T drawn = has ? dot(drawn_by, row + at, D) : drawn_by[o];
        const T dvariance = a * r * r * drawn * T(-0.5);
        if (to[3 * t + 1]) to[3 * t + 1][i] = static_cast<P>(r * drawn);
        if (to[3 * t + 2]) to[3 * t + 2][i] = static_cast<P>(B[i]);
        if (!has) {
          weight[i * D + o] += a;
          lone[i] += dvariance;
          continue;
        }
        const int64_t size = terms.inner() * static_cast<int64_t>(terms.places[t].size());
        if (to[3 * t]) terms.own(t, to[3 * t] + i * size, last[t], [&](int64_t d) { return a * drawn_by[d] + 2 * dvariance * passed[at + d]; });
        for (int64_t d = 0; d < D; ++d) weight[i * D + d] += a * row[at + d];
        dvariances[(g * written + t) * O + o] = dvariance;
      }
    }
  });
  if (!deep) return made;
  made.covariance = gram<T>(rows.view({G, written * O, D}), dvariances);
  if (terms.bare)
    for (int64_t i = 0; i < G * O; ++i) made.covariance.mutable_data_ptr<T>()[(i / O * D + i % O) * D + i % O] += lone[i];
  made.mean = mean_grad<T>(total, made.weight);
  return made;
}

}  // namespace
