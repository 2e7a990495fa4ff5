// Windows of one pixel, rows of a matrix (M, G * D): a matrix product for each sum. windows.py says what is asked of windows.

#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include <utility>

#include "fold.h"

namespace {

// Of so few values, sums over M are taken in parts of so many rows, and the parts added up in float64.
constexpr int64_t kFew = 32, kPart = 256;

template <typename T>
class Rows {
 public:
  const int64_t groups, count;
  const Tensor mean;  // (G, D)

  // `known` is the mean where it was found before.
  Rows(const Tensor& x, int64_t g, const std::optional<Tensor>& known)
      : groups(g), count(x.size(0)), mean(known.has_value() ? *known : x.mean(0).view({g, -1})), x_(x.contiguous()),
        centred_(known.has_value() ? x - mean.view(-1) : Tensor()) {}

  Tensor covariance() const {
    const int64_t depth = mean.size(1), all = groups * depth;
    const T *rows = x_.template const_data_ptr<T>(), *shift = mean.template const_data_ptr<T>();
    return symmetric<T>(rows, Tall{groups, count, depth, all, depth}, shift, nullptr, x_.options()).div_(count);
  }

  void convolve(const Tensor& weight, const Tensor& offset, Tensor& y) const {
    const Tensor start = at::baddbmm(offset.unsqueeze(1), mean.unsqueeze(1), weight.mT(), 1, -1);
    if (groups == 1) at::addmm_out(y, start.view(-1), x_, weight[0].t());
    else by_group(y).copy_(at::baddbmm(start, by_group(x_), weight.mT()));
  }

  std::pair<Tensor, Tensor> kernel_grad(const Tensor& g) const {
    const Tensor total = g.sum(0).view({groups, -1});
    if (mean.size(1) > kFew) {
      if (groups == 1) return {g.t().mm(centred_).unsqueeze(0), total};
      return {at::bmm(by_group(g).mT(), by_group(centred_)), total};
    }
    const int64_t parts = count / kPart;
    const Tensor ours = by_group(g), theirs = by_group(centred_);
    const auto cut = [&](const Tensor& rows) { return rows.narrow(1, 0, parts * kPart).unflatten(1, {parts, kPart}); };
    const auto rest = [&](const Tensor& rows) { return rows.narrow(1, parts * kPart, count - parts * kPart); };
    const Tensor sum = cut(ours).mT().matmul(cut(theirs)).sum(1, false, at::kDouble);
    return {(sum + at::bmm(rest(ours).mT(), rest(theirs))).to(g.scalar_type()), total};
  }

  Tensor input_grad(const Tensor& g, const Tensor& weight, const Tensor& constant, const Tensor& quadratic) const {
    if (groups == 1) return at::addmm(constant.view(-1), centred_, quadratic[0]).addmm_(g, weight[0]);
    Tensor made = at::baddbmm(constant.unsqueeze(1), by_group(centred_), quadratic).baddbmm_(by_group(g), weight);
    return made.transpose(0, 1).reshape({count, -1});
  }

 private:
  const Tensor x_, centred_;  // the second for the way back only

  Tensor by_group(const Tensor& rows) const { return rows.view({count, groups, -1}).transpose(0, 1); }
};

}  // namespace
