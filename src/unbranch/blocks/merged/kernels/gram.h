// Symmetric products a^T diag(w) a of tall matrices (R, D): only vectors on or right of the diagonal are multiplied out.
//
// Rows are cut into chunks by their number alone, each summed panel by panel in its own matrix and the chunks added up in float64: results
// are the same on any number of threads.

#pragma once

#include <ATen/ops/empty.h>

#include <vector>

#include "strips.h"

namespace {

// Rows of a panel, which stays in a core's own cache; rows of a tile, of which a vector has a multiple; rows worth a chunk.
constexpr int64_t kPanel = 128, kTileRows = 8, kChunk = 1024;
// Entries of all chunks together, so that they do not take more memory than the matrices themselves.
constexpr int64_t kEntries = 1 << 22;

// Where the matrices of G groups lie: (R, D) each, a row so far behind the one before, and a group so far behind its neighbour.
struct Tall {
  int64_t groups, rows, depth, next_row, next_group;
};

// A panel of a matrix, rows `ld` apart, less `shift`; zeros behind the last column.
template <typename T>
void pack(const T* from, int64_t rows, int64_t depth, int64_t next, const T* __restrict shift, T* __restrict to, int64_t ld) {
  for (int64_t r = 0; r < rows; ++r, from += next, to += ld) {
    if (shift) for (int64_t d = 0; d < depth; ++d) to[d] = from[d] - shift[d];
    else std::copy_n(from, depth, to);
    std::fill(to + depth, to + ld, T(0));
  }
}

// Each row of a panel by its weight.
template <typename T>
void times(const T* weights, const T* __restrict from, int64_t rows, int64_t ld, T* __restrict to) {
  for (int64_t r = 0; r < rows; ++r, from += ld, to += ld)
    for (int64_t d = 0; d < ld; ++d) to[d] = weights[r] * from[d];
}

// ROWS rows of the product by NV vectors, added to `to`.
template <typename T, int ROWS, int NV>
inline void tile(const T* a, const T* b, int64_t rows, int64_t ld, T* to) {
  using V = typename Lanes<T>::type;
  constexpr int64_t L = Lanes<T>::count;
  V sums[ROWS][NV] = {};
  for (int64_t r = 0; r < rows; ++r, a += ld, b += ld) {
    V v[NV];
    UNBRANCH_UNROLL
    for (int n = 0; n < NV; ++n) v[n] = load<T>(b + n * L, L);
    UNBRANCH_UNROLL
    for (int i = 0; i < ROWS; ++i)
      UNBRANCH_UNROLL
      for (int n = 0; n < NV; ++n) sums[i][n] += a[i] * v[n];
  }
  UNBRANCH_UNROLL
  for (int i = 0; i < ROWS; ++i)
    UNBRANCH_UNROLL
    for (int n = 0; n < NV; ++n) store<T>(to + i * ld + n * L, load<T>(to + i * ld + n * L, L) + sums[i][n], L);
}

// What a panel adds to the product (ld, ld), on and right of the diagonal.
template <typename T>
void add_panel(const T* a, const T* b, int64_t rows, int64_t ld, int64_t width, T* to) {
  constexpr int64_t L = Lanes<T>::count;
  for (int64_t i = 0; i < width; i += kTileRows)
    for (int64_t j = i / L * L, step; j < width; j += step) {
      const auto some = [&]<int NV>() {
        step = NV * L;
        tile<T, kTileRows, NV>(a + i, b + j, rows, ld, to + i * ld + j);
      };
      if (width - j >= 3 * L) some.template operator()<3>();
      else if (width - j >= 2 * L) some.template operator()<2>();
      else some.template operator()<1>();
    }
}

// (a - shift)^T (a - shift) of each group, shift (G, D), or a^T diag(weights) a, weights (G, R): (G, D, D). Null is none.
template <typename T>
Tensor symmetric(const T* a, const Tall& tall, const T* shift, const T* weights, const at::TensorOptions& options) {
  constexpr int64_t L = Lanes<T>::count;
  const int64_t depth = tall.depth, width = (depth + L - 1) / L * L, ld = width + L, entries = width * ld;
  const int64_t chunks = std::clamp<int64_t>(std::min(tall.rows / kChunk, kEntries / (tall.groups * entries)), 1, kTasks);
  const Tensor parts = at::zeros({tall.groups * chunks, width, ld}, options);
  T* sums = parts.mutable_data_ptr<T>();
  at::parallel_for(0, tall.groups * chunks, 1, [&](int64_t first, int64_t last) {
    std::vector<T> panel(kPanel * ld), other(weights ? kPanel * ld : 0);
    for (int64_t task = first; task < last; ++task) {
      const int64_t group = task / chunks, chunk = task % chunks, end = (chunk + 1) * tall.rows / chunks;
      const T* less = shift ? shift + group * depth : nullptr;
      for (int64_t r = chunk * tall.rows / chunks; r < end; r += kPanel) {
        const int64_t some = std::min(kPanel, end - r);
        pack(a + group * tall.next_group + r * tall.next_row, some, depth, tall.next_row, less, panel.data(), ld);
        if (weights) times(weights + group * tall.rows + r, panel.data(), some, ld, other.data());
        add_panel(panel.data(), weights ? other.data() : panel.data(), some, ld, width, sums + task * entries);
      }
    }
  });
  Tensor made = at::empty({tall.groups, depth, depth}, options);
  T* to = made.mutable_data_ptr<T>();
  for (int64_t group = 0; group < tall.groups; ++group, to += depth * depth, sums += chunks * entries)
    for (int64_t i = 0; i < depth; ++i)
      for (int64_t j = i; j < depth; ++j) {
        double sum = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += sums[chunk * entries + i * ld + j];
        to[i * depth + j] = to[j * depth + i] = static_cast<T>(sum);
      }
  return made;
}

}  // namespace
