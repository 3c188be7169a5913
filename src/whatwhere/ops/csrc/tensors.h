// Tensors of torch's stable ABI as the loops read them, and the choice of an instruction set.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <type_traits>
#include <vector>

#include "kernels.h"

namespace whatwhere {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTileBytes = 1 << 19;  // half of a small second-level cache

inline const InstructionSet& best() {
#if defined(__x86_64__)
  static const InstructionSet& chosen = []() -> const InstructionSet& {
    const char* asked = std::getenv("WHATWHERE_INSTRUCTIONS");  // for the tests: those of older processors
    for (const InstructionSet* set : {&avx512, &avx2}) {
      if (asked && *asked && std::strcmp(asked, set->name)) continue;
      if (set == &avx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return *set;
      if (set == &avx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return *set;
    }
    return baseline;
  }();
  return chosen;
#else
  return baseline;
#endif
}

template <class T>
const Kernels<T>& kernels();
template <>
inline const Kernels<float>& kernels<float>() {
  return best().float32;
}
template <>
inline const Kernels<BFloat16>& kernels<BFloat16>() {
  return best().bfloat16;
}

// Whether x lies in memory without gaps, in the order of a format; the stride of a dimension of 1 says nothing.
inline bool is_dense(const Tensor& x, bool channels_last) {
  const int order[2][4] = {{3, 2, 1, 0}, {1, 3, 2, 0}};
  int64_t stride = 1;
  for (int i : order[channels_last]) {
    if (x.size(i) != 1 && x.stride(i) != stride) return false;
    stride *= x.size(i);
  }
  return true;
}

inline const Tensor* large(const std::optional<Tensor>& of) {
  return of ? &*of : nullptr;
}

// x (N, C, H, W), dense in one of the two memory formats
struct Shape {
  int64_t n, c, p, height;
  bool channels_last, is_float;
  int64_t rows;   // of a tile: of pixels in channels_last, else all
  int64_t tiles;  // of an image: by rows in channels_last, else by channel

  // The tensors of the size of x must all have its shape, dtype and memory format.
  Shape(const Tensor& x, std::initializer_list<const Tensor*> others = {}) {
    const ScalarType type = x.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, "x must be float32 or bfloat16");
    STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0, "x must be (N, C, H, W) and not empty");
    is_float = type == ScalarType::Float;
    n = x.size(0), c = x.size(1), p = x.size(2) * x.size(3), height = x.size(2);
    channels_last = !is_dense(x, false);
    STD_TORCH_CHECK(!channels_last || is_dense(x, true), "x must be dense, contiguous or channels_last");
    for (const Tensor* other : others) {
      if (!other) continue;
      STD_TORCH_CHECK(other->scalar_type() == type && other->dim() == 4, "all large tensors must be as x");
      for (int64_t i = 0; i < 4; i++) STD_TORCH_CHECK(other->size(i) == x.size(i), "all large tensors must be as x");
      STD_TORCH_CHECK(is_dense(*other, channels_last), "all large tensors must have the memory format of x");
    }
    const int64_t size = is_float ? 4 : 2;
    rows = channels_last ? std::max<int64_t>(1, kTileBytes / (c * size)) : p;
    tiles = channels_last ? (p + rows - 1) / rows : c;
  }
};

// The values of a small tensor, which must be dense, of type T and have `count` values; null without one.
template <class T = float>
const T* small(const std::optional<Tensor>& of, int64_t count) {
  if (!of) return nullptr;
  const ScalarType type = std::is_same_v<T, float> ? ScalarType::Float : ScalarType::Int;
  STD_TORCH_CHECK(of->scalar_type() == type && of->is_contiguous(), "small tensors must be dense, in float32 or int32");
  STD_TORCH_CHECK(of->numel() == count, "a small tensor has the wrong number of values");
  return static_cast<const T*>(of->const_data_ptr());
}

// Scale and shift: (N, C), or (1, C) for all images.
struct Affines {
  Affine first;
  int64_t scale_step, shift_step;

  Affines(const float* scale, const float* shift, int64_t step) : first{scale, shift}, scale_step(step), shift_step(step) {}

  Affines(const std::optional<Tensor>& scale, const std::optional<Tensor>& shift, int64_t n, int64_t c) {
    scale_step = scale && scale->size(0) != 1 ? c : 0, shift_step = shift && shift->size(0) != 1 ? c : 0;
    first = {small(scale, scale_step ? n * c : c), small(shift, shift_step ? n * c : c)};
  }

  Affine of(int64_t image) const {
    return {first.scale ? first.scale + image * scale_step : nullptr,
            first.shift ? first.shift + image * shift_step : nullptr};
  }
};

// Memory of one thread that is kept from call to call: fresh pages cost more than what is written to them. What is taken
// belongs to the taker until its Scratch ends; a Scratch that began later must end before.
class Scratch {
 public:
  Scratch() : chunk_(kept().chunk), used_(kept().used) {
    Kept& of = kept();
    if (chunk_ || used_ || of.chunks.size() < 2) return;
    // nobody has taken any: one chunk as large as all, or images of many sizes would each leave one
    size_t size = 0;
    for (const auto& chunk : of.chunks) size += chunk.size();
    of.chunks.clear();
    of.chunks.emplace_back(size);
  }
  ~Scratch() { kept().chunk = chunk_, kept().used = used_; }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // `count` values of no particular value; null for none.
  template <class T = float>
  T* take(int64_t count) {
    if (count == 0) return nullptr;
    Kept& of = kept();
    const size_t bytes = (size_t(count) * sizeof(T) + 63) / 64 * 64;
    while (of.chunk < of.chunks.size() && of.used + bytes > of.chunks[of.chunk].size()) of.chunk++, of.used = 0;
    if (of.chunk == of.chunks.size()) of.chunks.emplace_back(std::max<size_t>(bytes, 1 << 20));
    T* found = reinterpret_cast<T*>(of.chunks[of.chunk].data() + of.used);
    of.used += bytes;
    return found;
  }

 private:
  struct Kept {
    std::vector<std::vector<char>> chunks;
    size_t chunk = 0, used = 0;
  };
  static Kept& kept() {
    thread_local Kept kept;
    return kept;
  }
  size_t chunk_, used_;
};

inline Tensor room(const Tensor& x, std::vector<int64_t> sizes, ScalarType type) {
  return torch::stable::new_empty(x, sizes, type);
}

// The values of a tensor of the size of x; null without one.
template <class T>
const T* values(const std::optional<Tensor>& of) {
  return of ? static_cast<const T*>(of->const_data_ptr()) : nullptr;
}

template <class T>
T* to_write(const std::optional<Tensor>& of) {
  return of ? static_cast<T*>(of->mutable_data_ptr()) : nullptr;
}

// Call body(T{}) with T the type of the values of x.
template <class Body>
void with_type(const Shape& shape, Body body) {
  if (shape.is_float)
    body(float{});
  else
    body(BFloat16{});
}

// Call body(i) for each i below `size`, in torch's threads.
template <class Body>
void each(int64_t size, Body body) {
  torch::stable::parallel_for(0, size, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) body(i);
  });
}

}  // namespace whatwhere
