// Depthwise windows of at most 3x3 taps on pictures (N, H, W, C), each sum in one pass over the input.
//
// p_j(o) is tap j of the window at output o, from the picture minus `shift` (one number a channel), its border holding
// minus `shift` too, so that the patch is the zero-padded one minus a constant and every moment is exact.
//
//   moments:        mean_j = sum_o p_j / M,  second_jk = sum_o p_j p_k / M        (float64)
//   convolve:       y(o) = bias + sum_j w_j p_j(o)
//   kernel_grad:    A_j = sum_o g(o) p_j(o),  B = sum_o g(o)                       (float64)
//   input_grad:     d(o's tap j) += w_j g(o) + c_j + sum_k Q_jk p_k(o)

#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mean.h>

#include <utility>

#include "dense.h"
#include "windows.h"

namespace {

// From so many values of a channel its shift is taken.
constexpr int64_t kSamples = 256;

template <typename T>
class Pictures {
 public:
  const Geometry geo;
  const int64_t groups, count;
  Tensor mean;  // (C, taps), in float64

  // `known` is the mean where it was found before.
  Pictures(const Tensor& x, const Geometry& geometry, const std::optional<Tensor>& known)
      : geo(geometry), groups(geo.c), count(geo.n * geo.ho * geo.wo), x_(x) {
    if (known.has_value()) {
      mean = *known;
      TORCH_CHECK(mean.dim() == 2 && mean.size(0) == geo.c && mean.size(1) == geo.taps(), "means ", mean.sizes(), " are not of these windows");
      shift_ = mean.mean(1).to(x.scalar_type());
      rest_ = mean - shift_.unsqueeze(1);
      return;
    }
    const Tensor flat = x.view({-1, geo.c});
    shift_ = flat.slice(0, 0, std::nullopt, std::max<int64_t>(1, flat.size(0) / kSamples)).mean(0);
    with_kernel(geo, [&]<int KH, int KW>() {
      auto of = is_dense(geo) ? dense_moments<T, KH, KW> : moments_of<T, KH, KW>;
      sums_ = of(geo, data(x_), data(shift_)).t().contiguous().div_(static_cast<double>(count));
    });
    rest_ = sums_.narrow(1, 0, geo.taps());
    mean = (rest_ + shift_.unsqueeze(1)).contiguous();
  }

  // Means of products of taps, less the products of their means: (C, taps, taps).
  Tensor covariance() const {
    const int64_t taps = geo.taps();
    return sums_.narrow(1, taps, taps * taps).unflatten(1, {taps, taps}) - rest_.unsqueeze(2) * rest_.unsqueeze(1);
  }

  void convolve(const Tensor& weight, const Tensor& offset, Tensor& y) const {
    const Tensor kernel = weight.squeeze(1), by_tap = typed(kernel), bias = typed(offset.view(-1) - (kernel * rest_).sum(1));
    with_kernel(geo, [&]<int KH, int KW>() {
      convolve_to<T, KH, KW>(geo, data(x_), data(shift_), data(by_tap), data(bias), y.mutable_data_ptr<T>());
    });
  }

  std::pair<Tensor, Tensor> kernel_grad(const Tensor& g) const {
    Tensor sums;
    with_kernel(geo, [&]<int KH, int KW>() { sums = kernel_grad_of<T, KH, KW>(geo, data(x_), data(shift_), data(g)); });
    const Tensor by_channel = sums.t().contiguous(), total = by_channel.narrow(1, geo.taps(), 1);
    return {(by_channel.narrow(1, 0, geo.taps()) - total * rest_).unsqueeze(1), total};
  }

  Tensor input_grad(const Tensor& g, const Tensor& weight, const Tensor& constant, const Tensor& quadratic) const {
    const Tensor by_tap = typed(weight.squeeze(1)), square = typed(quadratic.flatten(1)),
                 start = typed(constant - (quadratic * rest_.unsqueeze(1)).sum(2));
    Tensor dx = at::empty_like(x_);
    with_kernel(geo, [&]<int KH, int KW>() {
      auto to = is_dense(geo) ? dense_input_grad<T, KH, KW> : input_grad_to<T, KH, KW>;
      to(geo, data(x_), data(shift_), data(g), data(by_tap), data(start), data(square), dx.mutable_data_ptr<T>());
    });
    return dx;
  }

 private:
  const Tensor x_;
  Tensor shift_, rest_, sums_;

  static const T* data(const Tensor& tensor) { return tensor.const_data_ptr<T>(); }

  // (C, values) in float64 as (values, C) of the pictures' type.
  Tensor typed(const Tensor& values) const { return values.t().to(x_.scalar_type()).contiguous(); }
};

}  // namespace
