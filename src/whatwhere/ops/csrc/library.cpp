// The operators: torch's stable ABI, tiles and threads. The loops are in kernels.inl.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "kernels.h"

namespace whatwhere {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTileBytes = 1 << 19;   // half of a small second-level cache
constexpr int64_t kPixelsOfMaps = 2048;   // of a contiguous image: their maps stay in the first-level cache

const InstructionSet& best() {
#if defined(__x86_64__)
  static const InstructionSet& chosen = []() -> const InstructionSet& {
    const char* asked = std::getenv("WHATWHERE_INSTRUCTIONS");
    for (const InstructionSet* set : {&avx512, &avx2}) {
      if (asked && std::strcmp(asked, set->name)) continue;
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

float widened(float value) {
  return value;
}
float widened(BFloat16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
BFloat16 rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return {uint16_t(std::isnan(value) ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// Which instruction set is used: the bits of its vectors.
int64_t vector_bits() {
  return best().bits;
}

template <class T>
const Kernels<T>& kernels();
template <>
const Kernels<float>& kernels<float>() {
  return best().float32;
}
template <>
const Kernels<BFloat16>& kernels<BFloat16>() {
  return best().bfloat16;
}

// Whether x lies in memory without gaps, in the order of a format; the stride of a dimension of 1 says nothing.
bool is_dense(const Tensor& x, bool channels_last) {
  const int order[2][4] = {{3, 2, 1, 0}, {1, 3, 2, 0}};
  int64_t stride = 1;
  for (int i : order[channels_last]) {
    if (x.size(i) != 1 && x.stride(i) != stride) return false;
    stride *= x.size(i);
  }
  return true;
}

const Tensor* large(const std::optional<Tensor>& of) {
  return of ? &*of : nullptr;
}

// x (N, C, H, W), dense in one of the two memory formats
struct Shape {
  int64_t n, c, p;
  bool channels_last, is_float;
  int64_t rows;   // of a tile: of pixels in channels_last, else all
  int64_t tiles;  // of an image: by rows in channels_last, else by channel

  // The tensors of the size of x must all have its shape, dtype and memory format.
  Shape(const Tensor& x, std::initializer_list<const Tensor*> others = {}) {
    const ScalarType type = x.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, "x must be float32 or bfloat16");
    STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0, "x must be (N, C, H, W) and not empty");
    is_float = type == ScalarType::Float;
    n = x.size(0), c = x.size(1), p = x.size(2) * x.size(3);
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

  Affines(const std::optional<Tensor>& scale, const std::optional<Tensor>& shift, int64_t n, int64_t c) {
    scale_step = scale && scale->size(0) != 1 ? c : 0, shift_step = shift && shift->size(0) != 1 ? c : 0;
    first = {small(scale, scale_step ? n * c : c), small(shift, shift_step ? n * c : c)};
  }

  Affine of(int64_t image) const {
    return {first.scale ? first.scale + image * scale_step : nullptr,
            first.shift ? first.shift + image * shift_step : nullptr};
  }
};

// Memory that is kept from call to call: fresh pages cost more than what is written to them.
float* scratch(int64_t size) {
  thread_local std::vector<float> kept;
  if (int64_t(kept.size()) < size) kept.resize(size);
  return kept.data();
}

Tensor room(const Tensor& x, std::vector<int64_t> sizes, ScalarType type) {
  return torch::stable::new_empty(x, sizes, type);
}

template <class T>
void pool(const Tensor& x, const Shape& shape, float* values, int32_t* indices) {
  const T* from = static_cast<const T*>(x.const_data_ptr());
  const Kernels<T>& run = kernels<T>();
  const int64_t n = shape.n, c = shape.c, p = shape.p, all = n * c;
  const int64_t parts = shape.channels_last ? n * shape.tiles : n;
  const int64_t size = parts * c;
  float* memory = scratch(7 * size);
  int32_t* at = reinterpret_cast<int32_t*>(memory + 5 * size);
  const Pools pools{memory, memory + size, memory + 2 * size, memory + 3 * size, memory + 4 * size, at, at + size};
  torch::stable::parallel_for(0, n * shape.tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++) {
      if (!shape.channels_last) {
        run.pool_plane(from + tile * p, p, pools.from(tile));
        continue;
      }
      const int64_t image = tile / shape.tiles, row = tile % shape.tiles * shape.rows;
      run.pool_rows(from + (image * p + row) * c, std::min(shape.rows, p - row), c, row, pools.from(tile * c));
    }
  });
  const int64_t per_image = parts / n;
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; image++)
      for (int64_t channel = 0; channel < c; channel++) {
        double mean = 0, square = 0, count = 0;
        int64_t first = image * per_image * c + channel;
        float max = pools.max[first], min = pools.min[first];
        int32_t max_at = pools.max_at[first], min_at = pools.min_at[first];
        for (int64_t part = 0; part < per_image; part++) {
          const int64_t i = first + part * c;
          const double rows = double(std::min(shape.rows, p - part * shape.rows));
          const double sum = pools.sum[i], mean_of = pools.shift[i] + sum / rows;
          const double between = mean_of - mean, together = count + rows;
          // the pairwise update of Chan, Golub and LeVeque
          square += pools.square[i] - sum * sum / rows + between * between * count * rows / together;
          mean += between * rows / together, count = together;
          if (pools.max[i] > max) max = pools.max[i], max_at = pools.max_at[i];
          if (pools.min[i] < min) min = pools.min[i], min_at = pools.min_at[i];
        }
        if (std::isnan(mean)) {
          // comparisons pass over a NaN; the first one is the maximum and the minimum
          const T* plane = from + (shape.channels_last ? image * p * c + channel : (image * c + channel) * p);
          for (int64_t pixel = 0; pixel < p; pixel++) {
            const float value = widened(plane[shape.channels_last ? pixel * c : pixel]);
            if (std::isnan(value)) {
              max = min = value, max_at = min_at = int32_t(pixel);
              break;
            }
          }
        }
        const int64_t i = image * c + channel;
        values[i] = float(mean), values[all + i] = float(std::max(square, 0.0) / double(p));
        if (std::isnan(square)) values[all + i] = float(square);
        values[2 * all + i] = max, values[3 * all + i] = min;
        indices[i] = max_at, indices[all + i] = min_at;
      }
  });
}

// Mean, biased variance, maximum and minimum over H x W, (4, N, C) float32; the first index of both, (2, N, C) int32.
std::tuple<Tensor, Tensor> pool_op(const Tensor& x) {
  const Shape shape(x);
  Tensor values = room(x, {4, shape.n, shape.c}, ScalarType::Float);
  Tensor indices = room(x, {2, shape.n, shape.c}, ScalarType::Int);
  auto run = shape.is_float ? pool<float> : pool<BFloat16>;
  run(x, shape, static_cast<float*>(values.mutable_data_ptr()), static_cast<int32_t*>(indices.mutable_data_ptr()));
  return {values, indices};
}

template <class T>
void maps(const Tensor& x, const Shape& shape, const Affines& affines, float* values, int32_t* indices) {
  const T* from = static_cast<const T*>(x.const_data_ptr());
  const Kernels<T>& run = kernels<T>();
  const int64_t c = shape.c, p = shape.p, all = shape.n * p;
  const int64_t rows = shape.channels_last ? shape.rows : kPixelsOfMaps;
  const int64_t tiles = (p + rows - 1) / rows;
  torch::stable::parallel_for(0, shape.n * tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t image = tile / tiles, row = tile % tiles * rows, count = std::min(rows, p - row);
      const int64_t to = image * p + row;
      const Affine of = affines.of(image);
      if (shape.channels_last)
        run.map_rows(from + to * c, count, c, of, values + to, indices + to, values + all + to);
      else
        run.map_planes(from + image * c * p + row, c, p, count, of, values + to, indices + to, values + all + to);
      for (int64_t i = to; i < to + count; i++) values[all + i] /= float(c);
    }
  });
}

// Of u = x * scale + shift the maximum and the mean over C, (2, N, H * W) float32, and the first index of the maximum.
std::tuple<Tensor, Tensor> maps_op(const Tensor& x, std::optional<Tensor> scale, std::optional<Tensor> shift) {
  const Shape shape(x);
  Tensor values = room(x, {2, shape.n, shape.p}, ScalarType::Float);
  Tensor indices = room(x, {shape.n, shape.p}, ScalarType::Int);
  auto run = shape.is_float ? maps<float> : maps<BFloat16>;
  run(x, shape, Affines(scale, shift, shape.n, shape.c), static_cast<float*>(values.mutable_data_ptr()),
      static_cast<int32_t*>(indices.mutable_data_ptr()));
  return {values, indices};
}

template <class T>
void apply(const Tensor& x, const Shape& shape, const Affines& affines, const float* m, const float* past, const std::optional<Tensor>& r, bool relu, const Tensor& y) {
  const T* from = static_cast<const T*>(x.const_data_ptr());
  const T* added = r ? static_cast<const T*>(r->const_data_ptr()) : nullptr;
  T* to = static_cast<T*>(y.mutable_data_ptr());
  const Kernels<T>& run = kernels<T>();
  const int64_t c = shape.c, p = shape.p;
  torch::stable::parallel_for(0, shape.n * shape.tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t image = tile / shape.tiles, part = tile % shape.tiles;
      const Affine of = affines.of(image);
      const float direct = past ? past[image] : 0;
      if (shape.channels_last) {
        const int64_t row = image * p + part * shape.rows, i = row * c;
        run.apply_rows(from + i, added ? added + i : nullptr, to + i, std::min(shape.rows, p - part * shape.rows), c, of,
                       m ? m + row : nullptr, direct, relu);
      } else {
        const int64_t i = tile * p;
        run.apply_plane(from + i, added ? added + i : nullptr, to + i, p, of.scale ? of.scale[part] : 1,
                        of.shift ? of.shift[part] : 0, m ? m + image * p : nullptr, direct, relu);
      }
    }
  });
}

// y = (x * scale + shift) * m + r, or x * (scale * m + past) + r where past is given and not 0; behind a ReLU with
// `relu`; m (N, H * W), past (N,). y may be x.
void apply_op(const Tensor& x, std::optional<Tensor> scale, std::optional<Tensor> shift, std::optional<Tensor> m,
              std::optional<Tensor> past, std::optional<Tensor> r, bool relu, Tensor y) {
  STD_TORCH_CHECK(!past || (scale && !shift), "past comes with a scale alone");
  const Shape shape(x, {large(r), &y});
  auto run = shape.is_float ? apply<float> : apply<BFloat16>;
  run(x, shape, Affines(scale, shift, shape.n, shape.c), small(m, shape.n * shape.p), small(past, shape.n), r, relu, y);
}

// Sum partial sums, (images x parts, count x C), over the parts, in their order: (count, N, C).
void together(const float* partial, int64_t n, int64_t parts, int64_t count, int64_t c, float* sums) {
  for (int64_t image = 0; image < n; image++)
    for (int64_t k = 0; k < count; k++) {
      float* to = sums + (k * n + image) * c;
      std::memset(to, 0, c * sizeof(float));
      for (int64_t part = 0; part < parts; part++) {
        const float* from = partial + ((image * parts + part) * count + k) * c;
        for (int64_t i = 0; i < c; i++) to[i] += from[i];
      }
    }
}

template <class T>
void reduce(const Shape& shape, const Tensor& g, const std::optional<Tensor>& y, const Tensor& x,
            const Affines& affines, const float* m, const float* mean, bool direct, bool of_x, T* dv, float* dm,
            float* sums) {
  const T *of_g = static_cast<const T*>(g.const_data_ptr()), *of_y = y ? static_cast<const T*>(y->const_data_ptr()) : nullptr;
  const T* from = static_cast<const T*>(x.const_data_ptr());
  const Kernels<T>& run = kernels<T>();
  const int64_t c = shape.c, p = shape.p, count = (direct ? 4 : 2) + of_x;
  const int64_t rows = shape.channels_last ? shape.rows : kPixelsOfMaps;
  const int64_t tiles = (p + rows - 1) / rows;
  float* partial = scratch(shape.n * tiles * count * c);
  torch::stable::parallel_for(0, shape.n * tiles, 1, [&](int64_t begin, int64_t end) {
    std::memset(partial + begin * count * c, 0, (end - begin) * count * c * sizeof(float));
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t image = tile / tiles, row = tile % tiles * rows, size = std::min(rows, p - row);
      const int64_t pixel = image * p + row, first = shape.channels_last ? pixel * c : image * c * p + row;
      Reduce<T> of{of_g + first, of_y ? of_y + first : nullptr, from + first, dv ? dv + first : nullptr,
                   affines.of(image), m ? m + pixel : nullptr, mean,
                   dm ? dm + pixel : nullptr, {}, of_x ? partial + (tile * count + count - 1) * c : nullptr,
                   direct};
      for (int64_t k = 0; k < (direct ? 4 : 2); k++) of.sums[k] = partial + (tile * count + k) * c;
      if (dm) std::memset(dm + pixel, 0, size * sizeof(float));
      if (shape.channels_last)
        run.reduce_rows(of, size, c);
      else
        run.reduce_planes(of, c, p, size);
    }
  });
  together(partial, shape.n, tiles, count, c, sums);
}

// With dv = g, or g where y > 0: the sum over C of dv * (x * scale + shift), (N, H * W), where m is given; and
// over H x W the sums of dv * m, of dv * m * (x - mean), with `direct` of dv and of dv * (x - mean), and with `of_x` of
// x - mean, (., N, C). dv is written to the argument where y is given.
std::tuple<Tensor, Tensor> reduce_op(const Tensor& g, std::optional<Tensor> y, const Tensor& x,
                                     std::optional<Tensor> scale, std::optional<Tensor> shift, std::optional<Tensor> m,
                                     std::optional<Tensor> mean, bool direct, bool of_x, std::optional<Tensor> dv) {
  const Shape shape(x, {&g, large(y), large(dv)});
  Tensor dm = room(x, {shape.n, m ? shape.p : 0}, ScalarType::Float);
  Tensor sums = room(x, {(direct ? 4 : 2) + of_x, shape.n, shape.c}, ScalarType::Float);
  float* of_dm = m ? static_cast<float*>(dm.mutable_data_ptr()) : nullptr;
  float* of_sums = static_cast<float*>(sums.mutable_data_ptr());
  void* to = dv ? dv->mutable_data_ptr() : nullptr;
  STD_TORCH_CHECK(!y == !dv, "dv is written where y is given");
  const Affines affines(scale, shift, shape.n, shape.c);
  const float *of_m = small(m, shape.n * shape.p), *means = small(mean, shape.c);
  if (shape.is_float)
    reduce<float>(shape, g, y, x, affines, of_m, means, direct, of_x, static_cast<float*>(to), of_dm, of_sums);
  else
    reduce<BFloat16>(shape, g, y, x, affines, of_m, means, direct, of_x, static_cast<BFloat16*>(to), of_dm, of_sums);
  return {dm, sums};
}

template <class T>
void weighted(const Shape& shape, const Tensor& x, const float* weight, const float* mean, float* sums) {
  const T* from = static_cast<const T*>(x.const_data_ptr());
  const Kernels<T>& run = kernels<T>();
  const int64_t c = shape.c, p = shape.p;
  if (!shape.channels_last) {
    torch::stable::parallel_for(0, shape.n * c, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        sums[i] = run.weighted_plane(from + i * p, p, weight + i / c * p, mean ? mean[i % c] : 0);
    });
    return;
  }
  float* partial = scratch(shape.n * shape.tiles * c);
  torch::stable::parallel_for(0, shape.n * shape.tiles, 1, [&](int64_t begin, int64_t end) {
    std::memset(partial + begin * c, 0, (end - begin) * c * sizeof(float));
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t image = tile / shape.tiles, row = tile % shape.tiles * shape.rows, pixel = image * p + row;
      run.weighted_rows(from + pixel * c, std::min(shape.rows, p - row), c, weight + pixel, mean, partial + tile * c);
    }
  });
  together(partial, shape.n, shape.tiles, 1, c, sums);
}

// The sums over H x W of weight * (x - mean), (N, C) float32; weight (N, H * W), mean (C,).
Tensor weighted_op(const Tensor& x, const Tensor& weight, std::optional<Tensor> mean) {
  const Shape shape(x);
  Tensor sums = room(x, {shape.n, shape.c}, ScalarType::Float);
  auto run = shape.is_float ? weighted<float> : weighted<BFloat16>;
  run(shape, x, small(weight, shape.n * shape.p), small(mean, shape.c),
      static_cast<float*>(sums.mutable_data_ptr()));
  return sums;
}

template <class T>
void spread(const Shape& shape, const Tensor& dv, const Tensor& x, const float* m, const float* of_mean,
            const float* gate, const float* direct, const float* constant, const float* slope, const float* mean,
            const float* of_max, const int32_t* max_at, const float* of_pools, const int32_t* pools_at, int64_t pools, const Tensor& dx) {
  const T *of_dv = static_cast<const T*>(dv.const_data_ptr()), *of_x = static_cast<const T*>(x.const_data_ptr());
  T* to = static_cast<T*>(dx.mutable_data_ptr());
  const Kernels<T>& run = kernels<T>();
  const int64_t c = shape.c, p = shape.p, all = shape.n * c;
  torch::stable::parallel_for(0, shape.n * shape.tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t image = tile / shape.tiles, part = tile % shape.tiles;
      const int64_t row = shape.channels_last ? part * shape.rows : 0, pixel = image * p + row;
      const int64_t first = shape.channels_last ? pixel * c : tile * p, size = std::min(shape.rows, p - row);
      auto of_image = [&](const float* of, int64_t at) { return of ? of + at : nullptr; };
      const Spread<T> of{of_dv + first, of_x + first, to + first, of_image(m, pixel), of_image(of_mean, pixel),
                         gate + image * c, of_image(direct, image * c), of_image(constant, image * c), slope, mean,
                         of_image(of_max, pixel), max_at ? max_at + pixel : nullptr};
      if (shape.channels_last)
        run.spread_rows(of, size, c);
      else
        run.spread_plane(of, part, p);
      // the pools' extremes: one pixel of each channel
      const int64_t start = shape.channels_last ? 0 : part, stop = shape.channels_last ? c : part + 1;
      for (int64_t k = 0; k < pools; k++)
        for (int64_t channel = start; channel < stop; channel++) {
          const int64_t i = k * all + image * c + channel, at = pools_at[i] - row;
          if (at < 0 || at >= size) continue;
          T* here = to + first + (shape.channels_last ? at * c + channel : at);
          if constexpr (sizeof(T) == 4)
            *here += of_pools[i];
          else
            *here = rounded(widened(*here) + of_pools[i]);
        }
    }
  });
}

// dx = dv * (m * gate + direct) + of_mean * gate + constant + slope * (x - mean), plus of_max * gate at the channel
// max_at of each pixel, plus of_pools at the pixel pools_at of each channel. m, of_mean, of_max and max_at are
// (N, H * W); gate, direct and constant (N, C); slope and mean (C,); of_pools and pools_at (., N, C).
void spread_op(const Tensor& dv, const Tensor& x, std::optional<Tensor> m, std::optional<Tensor> of_mean,
               const Tensor& gate, std::optional<Tensor> direct, std::optional<Tensor> constant,
               std::optional<Tensor> slope, std::optional<Tensor> mean, std::optional<Tensor> of_max, std::optional<Tensor> max_at,
               std::optional<Tensor> of_pools, std::optional<Tensor> pools_at, Tensor dx) {
  const Shape shape(x, {&dv, &dx});
  auto run = shape.is_float ? spread<float> : spread<BFloat16>;
  const int64_t pixels = shape.n * shape.p, channels = shape.n * shape.c, pools = of_pools ? of_pools->size(0) : 0;
  STD_TORCH_CHECK(!of_max == !max_at && !of_pools == !pools_at && !slope == !mean, "an index or a mean is missing");
  run(shape, dv, x, small(m, pixels), small(of_mean, pixels), small(gate, channels), small(direct, channels),
      small(constant, channels), small(slope, shape.c), small(mean, shape.c), small(of_max, pixels),
      small<int32_t>(max_at, pixels), small(of_pools, pools * channels), small<int32_t>(pools_at, pools * channels),
      pools, dx);
}

}  // namespace
}  // namespace whatwhere

STABLE_TORCH_LIBRARY(whatwhere, m) {
  m.def("vector_bits() -> int");
  m.def("pool(Tensor x) -> (Tensor, Tensor)");
  m.def("maps(Tensor x, Tensor? scale, Tensor? shift) -> (Tensor, Tensor)");
  m.def(
      "apply(Tensor x, Tensor? scale, Tensor? shift, Tensor? m, Tensor? past, Tensor? r, bool relu, Tensor(a!) y) -> "
      "()");
  m.def(
      "reduce(Tensor g, Tensor? y, Tensor x, Tensor? scale, Tensor? shift, Tensor? m, Tensor? mean, bool direct, "
      "bool of_x, Tensor(a!)? dv) -> (Tensor, Tensor)");
  m.def("weighted(Tensor x, Tensor weight, Tensor? mean) -> Tensor");
  m.def(
      "spread(Tensor dv, Tensor x, Tensor? m, Tensor? of_mean, Tensor gate, Tensor? direct, Tensor? constant, "
      "Tensor? slope, Tensor? mean, Tensor? of_max, Tensor? max_at, Tensor? of_pools, Tensor? pools_at, Tensor(a!) dx) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(whatwhere, CompositeExplicitAutograd, m) {
  m.impl("vector_bits", TORCH_BOX(&whatwhere::vector_bits));
}

STABLE_TORCH_LIBRARY_IMPL(whatwhere, CPU, m) {
  m.impl("pool", TORCH_BOX(&whatwhere::pool_op));
  m.impl("maps", TORCH_BOX(&whatwhere::maps_op));
  m.impl("apply", TORCH_BOX(&whatwhere::apply_op));
  m.impl("reduce", TORCH_BOX(&whatwhere::reduce_op));
  m.impl("weighted", TORCH_BOX(&whatwhere::weighted_op));
  m.impl("spread", TORCH_BOX(&whatwhere::spread_op));
}
