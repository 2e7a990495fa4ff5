// What training with merged branches runs: the fold of their kernels (fold.h), and the merged convolution, forward and backward in one call
// each, on rows of a matrix (rows.h) and on depthwise windows (pictures.h); the norms of other branches (norms.h); what norms remember (track.h).
//
// Work is cut by picture and by block of channels, never by the number of threads: results are the same on any number.

#include <torch/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "fold.h"
#include "norms.h"
#include "pictures.h"
#include "rows.h"
#include "track.h"

namespace {

// What inputs and parameters are: a library for each type is compiled when it is asked for.
using Scalar = UNBRANCH_SCALAR;
constexpr at::ScalarType kScalar = c10::CppTypeToScalarType<Scalar>::value;

// Calls f with the type of moments and of parameters.
template <typename F>
void with_types(const Tensor& moments, const Parameters& parameters, F&& f) {
  for (const std::optional<Tensor>& one : parameters)
    TORCH_CHECK(!one.has_value() || one->scalar_type() == kScalar, kScalar, " parameters are wanted, got ", one->scalar_type());
  if (moments.scalar_type() == kScalar) f.template operator()<Scalar, Scalar>();
  else if (moments.scalar_type() == at::kDouble) f.template operator()<double, Scalar>();
  else TORCH_CHECK(false, "no fold of ", kScalar, " parameters by ", moments.scalar_type(), " moments");
}

void check_type(const Tensor& x) { TORCH_CHECK(x.scalar_type() == kScalar, kScalar, " is wanted, got ", x.scalar_type()); }

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

// Into y, (M, C_out). Returns the mean; S w, or S, from which it follows, where it would be more to keep than y is; r; and the means and
// the variances that the norms see.
template <typename W>
std::vector<Tensor> forward(const W& windows, Tensor& y, const Parameters& parameters, at::IntArrayRef places, at::IntArrayRef counts,
                            int64_t taps, int64_t bare, at::ArrayRef<double> eps) {
  const Tensor covariance = windows.covariance().contiguous();
  const Terms terms(parameters, places, counts, windows.groups, y.size(-1) / windows.groups, windows.mean.size(1), taps, bare);
  Folded made;
  with_types(windows.mean, parameters, [&]<typename T, typename P>() { made = fold_of<T, P>(terms, windows.mean, covariance, eps); });
  windows.convolve(made.weight, made.offset, y);
  const bool keeps_covariance = covariance.numel() < made.seen.numel() && made.seen.numel() > y.numel();
  return {windows.mean, keeps_covariance ? covariance : made.seen, made.inverse, made.mean, made.variance};
}

// What `forward` returned, and g like y: the gradients that are needed, the parameters' in turn, then the input's.
template <typename W>
std::vector<Tensor> backward(const W& windows, const Tensor& g, const Tensor& kept, const Tensor& inverse, const Parameters& parameters,
                             at::IntArrayRef places, at::IntArrayRef counts, int64_t taps, int64_t bare, at::IntArrayRef needed, bool deep) {
  const auto [product, total] = windows.kernel_grad(g);
  const Terms terms(parameters, places, counts, windows.groups, product.size(1), product.size(2), taps, bare);
  Unfolded made;
  with_types(windows.mean, parameters, [&]<typename T, typename P>() {
    made = unfold_of<T, P>(terms, kept, kept.dim() == 3, inverse, product, total.contiguous(), needed, deep);
  });
  if (deep) {
    const double count = static_cast<double>(windows.count);
    made.found.push_back(windows.input_grad(g, made.weight, made.mean.div_(count), made.covariance.mul_(2 / count)));
  }
  return made.found;
}

std::vector<Tensor> rows_forward(const Tensor& x, Tensor& y, int64_t groups, const Parameters& parameters, at::IntArrayRef places,
                                 at::IntArrayRef counts, int64_t taps, int64_t bare, at::ArrayRef<double> eps) {
  check_type(x);
  return forward(Rows<Scalar>(x, groups, std::nullopt), y, parameters, places, counts, taps, bare, eps);
}

std::vector<Tensor> rows_backward(const Tensor& x, const Tensor& g, const Tensor& mean, const Tensor& kept, const Tensor& inverse,
                                  const Parameters& parameters, at::IntArrayRef places, at::IntArrayRef counts, int64_t taps,
                                  int64_t bare, at::IntArrayRef needed, bool deep) {
  check_type(x);
  return backward(Rows<Scalar>(x, mean.size(0), mean), g, kept, inverse, parameters, places, counts, taps, bare, needed, deep);
}

std::vector<Tensor> pictures_forward(const Tensor& x, Tensor& y, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef dilation,
                                     at::IntArrayRef before, at::IntArrayRef out, const Parameters& parameters, at::IntArrayRef places,
                                     at::IntArrayRef counts, int64_t taps, int64_t bare, at::ArrayRef<double> eps) {
  check_type(x);
  const Geometry geo = geometry(x, kernel, stride, dilation, before, out);
  check_outputs(geo, x, y);
  return forward(Pictures<Scalar>(x, geo, std::nullopt), y, parameters, places, counts, taps, bare, eps);
}

std::vector<Tensor> pictures_backward(const Tensor& x, const Tensor& g, const Tensor& mean, const Tensor& kept, const Tensor& inverse,
                                      at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef dilation, at::IntArrayRef before,
                                      at::IntArrayRef out, const Parameters& parameters, at::IntArrayRef places, at::IntArrayRef counts,
                                      int64_t taps, int64_t bare, at::IntArrayRef needed, bool deep) {
  check_type(x);
  const Geometry geo = geometry(x, kernel, stride, dilation, before, out);
  const Tensor up = g.contiguous();
  check_outputs(geo, x, up);
  return backward(Pictures<Scalar>(x, geo, mean), up, kept, inverse, parameters, places, counts, taps, bare, needed, deep);
}

std::vector<Tensor> norms_forward(at::TensorList values, Tensor& y, bool adds, bool rectifies, const Parameters& parameters,
                                  at::ArrayRef<double> eps) {
  for (const Tensor& value : values) check_type(value);
  TORCH_CHECK(!values.empty() && is_rows(y) && y.sizes() == values[0].sizes() && parameters.size() == 2 * values.size() &&
                  eps.size() == values.size(), "a norm for each value, and their sum of the same size, are wanted");
  check_type(y);
  return norms_forward_of<Scalar>(values, y, adds, rectifies, parameters, eps);
}

std::vector<Tensor> norms_backward(at::TensorList values, const Tensor& g, const std::optional<Tensor>& y, const Tensor& mean,
                                   const Tensor& inverse, const Parameters& gammas, at::IntArrayRef needed) {
  for (const Tensor& value : values) check_type(value);
  const Tensor up = g.movedim(1, -1).contiguous().movedim(-1, 1);
  check_type(up);
  TORCH_CHECK(!values.empty() && up.sizes() == values[0].sizes() && gammas.size() == values.size() &&
                  needed.size() == 3 * values.size(), "a norm for each value, and a gradient of the same size, are wanted");
  for (const Tensor& seen : {mean, inverse})
    expect(seen, static_cast<int64_t>(values.size()) * up.size(1), "statistics");
  if (y.has_value()) TORCH_CHECK(is_rows(*y) && y->sizes() == up.sizes() && y->scalar_type() == kScalar, "what the sum was is wanted");
  return norms_backward_of<Scalar>(values, up, y, mean, inverse, gammas, needed);
}

void track(at::TensorList running, at::TensorList counters, const Tensor& mean, const Tensor& variance, at::IntArrayRef rows,
           at::ArrayRef<double> momenta, double unbiased) {
  check_track<Scalar>(running, counters, mean, variance, rows, momenta);
  count_batch(counters);
  if (mean.scalar_type() == kScalar) track_of<Scalar, Scalar>(running, mean, variance, rows, momenta, unbiased);
  else if (mean.scalar_type() == at::kDouble) track_of<Scalar, double>(running, mean, variance, rows, momenta, unbiased);
  else TORCH_CHECK(false, "no statistics of ", mean.scalar_type(), " for ", kScalar, " norms");
}

}  // namespace

// The name is a macro itself, which torch's own would take as it stands.
#define UNBRANCH_LIBRARY(name, library) TORCH_LIBRARY(name, library)
#define UNBRANCH_LIBRARY_IMPL(name, key, library) TORCH_LIBRARY_IMPL(name, key, library)

UNBRANCH_LIBRARY(UNBRANCH_NAME, library) {
  const std::string terms = "Tensor?[] parameters, int[] places, int[] counts, int taps, int bare, ";
  const std::string window = "int[] kernel, int[] stride, int[] dilation, int[] before, int[] out, ";
  const std::string remembered = "Tensor x, Tensor g, Tensor mean, Tensor kept, Tensor inverse, ";
  const std::string wanted = "int[] needed, bool deep) -> Tensor[]";
  library.def(("fold(Tensor mean, Tensor covariance, " + terms + "int outputs, float[] eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)").c_str());
  library.def(("unfold(Tensor kept, bool is_covariance, Tensor inverse, Tensor product, Tensor total, " + terms + wanted).c_str());
  library.def(("rows_forward(Tensor x, Tensor(a!) y, int groups, " + terms + "float[] eps) -> Tensor[]").c_str());
  library.def(("rows_backward(" + remembered + terms + wanted).c_str());
  library.def(("pictures_forward(Tensor x, Tensor(a!) y, " + window + terms + "float[] eps) -> Tensor[]").c_str());
  library.def("norms_forward(Tensor[] values, Tensor(a!) y, bool adds, bool rectifies, Tensor?[] parameters, float[] eps) -> Tensor[]");
  library.def("norms_backward(Tensor[] values, Tensor g, Tensor? y, Tensor mean, Tensor inverse, Tensor?[] gammas, int[] needed) -> Tensor[]");
  library.def("track(Tensor(a!)[] running, Tensor(b!)[] counters, Tensor mean, Tensor variance, int[] rows, float[] momenta, float unbiased) -> ()");
  library.def(("pictures_backward(" + remembered + window + terms + wanted).c_str());
}

UNBRANCH_LIBRARY_IMPL(UNBRANCH_NAME, CPU, library) {
  library.impl("fold", &fold);
  library.impl("unfold", &unfold);
  library.impl("rows_forward", &rows_forward);
  library.impl("rows_backward", &rows_backward);
  library.impl("norms_forward", &norms_forward);
  library.impl("norms_backward", &norms_backward);
  library.impl("pictures_forward", &pictures_forward);
  library.impl("pictures_backward", &pictures_backward);
  library.impl("track", &track);
}
