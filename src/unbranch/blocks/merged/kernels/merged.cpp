// What training with merged branches runs: the fold of their kernels (fold.h), and depthwise windows of at most 3x3 taps, channels last:
// moments, convolution and gradients, each in one pass over the input.
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

#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "dense.h"
#include "fold.h"
#include "windows.h"

namespace {

// Calls f with the type of moments and of parameters.
template <typename F>
void with_types(const Tensor& moments, const Parameters& parameters, F&& f) {
  at::ScalarType own = moments.scalar_type();
  for (const std::optional<Tensor>& one : parameters)
    if (one.has_value()) own = one->scalar_type();
  if (moments.scalar_type() == at::kFloat && own == at::kFloat) f.template operator()<float, float>();
  else if (moments.scalar_type() == at::kDouble && own == at::kFloat) f.template operator()<double, float>();
  else if (moments.scalar_type() == at::kDouble && own == at::kDouble) f.template operator()<double, double>();
  else TORCH_CHECK(false, "no fold of ", own, " parameters by ", moments.scalar_type(), " moments");
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> fold(
    const Tensor& mean, const Tensor& covariance, const Parameters& parameters, at::IntArrayRef places, at::IntArrayRef counts,
    int64_t taps, int64_t bare, int64_t outputs, at::ArrayRef<double> eps) {
  const Tensor means = mean.contiguous();
  const Terms terms(parameters, places, counts, means.size(0), outputs, means.size(1), taps, bare);
  Folded made;
  with_types(mean, parameters, [&]<typename T, typename P>() { made = fold_of<T, P>(terms, means, covariance.contiguous(), eps); });
  return {made.weight, made.offset, made.seen, made.inverse, made.mean, made.variance};
}

// Gradients of the parameters that are needed, in turn; where `deep`, of the moments, (G, D, D) and (G, D); then the kernel once more.
std::vector<Tensor> unfold(const Tensor& kept, bool is_covariance, const Tensor& inverse, const Tensor& product, const Tensor& total,
                           const Parameters& parameters, at::IntArrayRef places, at::IntArrayRef counts, int64_t taps, int64_t bare,
                           at::IntArrayRef needed, bool deep) {
  const Tensor by = product.contiguous();
  const Terms terms(parameters, places, counts, by.size(0), by.size(1), by.size(2), taps, bare);
  Unfolded made;
  with_types(by, parameters, [&]<typename T, typename P>() {
    made = unfold_of<T, P>(terms, kept.contiguous(), is_covariance, inverse, by, total.contiguous(), needed, deep);
  });
  if (deep) made.found.insert(made.found.end(), {made.covariance, made.mean, made.weight});
  return made.found;
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
      auto of = is_dense(geo) ? dense_moments<T, KH, KW> : moments_of<T, KH, KW>;
      sums = of(geo, x.const_data_ptr<T>(), shift.const_data_ptr<T>());
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
  Tensor dx = is_dense(geo) ? at::empty_like(x) : at::zeros_like(x);
  with_type(x, [&]<typename T>() {
    with_kernel(geo, [&]<int KH, int KW>() {
      auto to = is_dense(geo) ? dense_input_grad<T, KH, KW> : input_grad_to<T, KH, KW>;
      to(geo, x.const_data_ptr<T>(), shift.const_data_ptr<T>(), g.const_data_ptr<T>(),
                               weight.const_data_ptr<T>(), constant.const_data_ptr<T>(), quadratic.const_data_ptr<T>(),
                               dx.mutable_data_ptr<T>());
    });
  });
  return dx;
}

}  // namespace

TORCH_LIBRARY(unbranch, library) {
  const std::string terms = "Tensor?[] parameters, int[] places, int[] counts, int taps, int bare, ";
  library.def(("fold(Tensor mean, Tensor covariance, " + terms + "int outputs, float[] eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)").c_str());
  library.def(("unfold(Tensor kept, bool is_covariance, Tensor inverse, Tensor product, Tensor total, " + terms + "int[] needed, bool deep) -> Tensor[]").c_str());
  const std::string window = "int[] kernel, int[] stride, int[] dilation, int[] before, int[] out) -> ";
  library.def(("moments(Tensor x, Tensor shift, " + window + "Tensor").c_str());
  library.def(("convolve(Tensor x, Tensor shift, Tensor weight, Tensor bias, Tensor(a!) y, " + window + "()").c_str());
  library.def(("kernel_grad(Tensor x, Tensor shift, Tensor g, " + window + "Tensor").c_str());
  library.def(("input_grad(Tensor x, Tensor shift, Tensor g, Tensor weight, Tensor constant, Tensor quadratic, " + window + "Tensor").c_str());
}

TORCH_LIBRARY_IMPL(unbranch, CPU, library) {
  library.impl("fold", &fold);
  library.impl("unfold", &unfold);
  library.impl("moments", &moments);
  library.impl("convolve", &convolve);
  library.impl("kernel_grad", &kernel_grad);
  library.impl("input_grad", &input_grad);
}
