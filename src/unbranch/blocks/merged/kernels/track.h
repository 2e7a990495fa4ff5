// What norms remember of a batch: running += momentum * (seen - running), and one more batch counted.

#pragma once

#include "fold.h"

namespace {

// Into `running`, (C,), which need not lie side by side in memory.
template <typename T, typename M>
void move_towards(const Tensor& running, const M* seen, double factor, double momentum) {
  const Tensor flat = running.contiguous();
  T* own = flat.mutable_data_ptr<T>();
  for (int64_t c = 0; c < flat.numel(); ++c) own[c] = static_cast<T>(own[c] + momentum * (seen[c] * factor - own[c]));
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
    TORCH_CHECK(rows[i] >= 0 && rows[i] < mean.size(0), "norm ", rows[i], " of ", mean.size(0));
    for (const Tensor& one : {running[2 * i], running[2 * i + 1]})
      TORCH_CHECK(one.numel() == columns && one.scalar_type() == c10::CppTypeToScalarType<T>::value, columns, " running statistics are wanted");
    move_towards<T>(running[2 * i], means + rows[i] * columns, 1, momenta[i]);
    move_towards<T>(running[2 * i + 1], variances + rows[i] * columns, unbiased, momenta[i]);
  }
}

inline void count_batch(at::TensorList counters) {
  for (const Tensor& one : counters) {
    TORCH_CHECK(one.numel() == 1 && one.scalar_type() == at::kLong, "counters of batches are wanted, got ", one.sizes());
    ++*one.mutable_data_ptr<int64_t>();
    one.unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace
