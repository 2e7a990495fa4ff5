// What norms remember of a batch: running = momentum * seen + (1 - momentum) * running, and one more batch counted.

#pragma once

#include "fold.h"

namespace {

// Into `running`, (C,), which need not lie side by side in memory.
template <typename T, typename M>
void move_towards(const Tensor& running, const M* seen, double factor, double momentum) {
  const Tensor flat = running.contiguous();
  T* own = flat.mutable_data_ptr<T>();
  for (int64_t c = 0; c < flat.numel(); ++c) own[c] = static_cast<T>(momentum * (seen[c] * factor) + (1 - momentum) * own[c]);
  if (!flat.is_same(running)) running.copy_(flat);
  else running.unsafeGetTensorImpl()->bump_version();
}

// Mean and variance of norm rows[i], by momenta[i], from its own row of what was seen, (norms, C) each; the variance times `unbiased`.
template <typename T, typename M>
void track_of(at::TensorList running, const Tensor& mean, const Tensor& variance, at::IntArrayRef rows, at::ArrayRef<double> momenta,
              double unbiased) {
  const int64_t columns = mean.size(1);
  const M *means = mean.const_data_ptr<M>(), *variances = variance.const_data_ptr<M>();
  for (size_t i = 0; i < rows.size(); ++i) {
    move_towards<T>(running[2 * i], means + rows[i] * columns, 1, momenta[i]);
    move_towards<T>(running[2 * i + 1], variances + rows[i] * columns, unbiased, momenta[i]);
  }
}

// Before anything is written.
template <typename T>
void check_track(at::TensorList running, at::TensorList counters, const Tensor& mean, const Tensor& variance, at::IntArrayRef rows,
                 at::ArrayRef<double> momenta) {
  TORCH_CHECK(running.size() == 2 * rows.size() && momenta.size() == rows.size() && mean.dim() == 2 && mean.is_contiguous() &&
                  variance.is_contiguous() && variance.sizes() == mean.sizes() && variance.scalar_type() == mean.scalar_type(),
              "a mean and a variance, and a momentum, for each norm are wanted");
  for (const int64_t row : rows) TORCH_CHECK(row >= 0 && row < mean.size(0), "norm ", row, " of ", mean.size(0));
  for (const Tensor& one : running)
    TORCH_CHECK(one.numel() == mean.size(1) && one.scalar_type() == c10::CppTypeToScalarType<T>::value, mean.size(1),
                " running statistics are wanted, got ", one.sizes());
  for (const Tensor& one : counters)
    TORCH_CHECK(one.numel() == 1 && one.scalar_type() == at::kLong, "counters of batches are wanted, got ", one.sizes());
}

inline void count_batch(at::TensorList counters) {
  for (const Tensor& one : counters) {
    ++*one.mutable_data_ptr<int64_t>();
    one.unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace
