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

// native.py asks for this number: an old library beside new Python would compute something else.
int64_t version() {
  return 1;
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

// The pools of the parts of images: of the tiles in channels_last, else of the whole planes.
struct Parts {
  int64_t per_image;
  Pools pools;

  explicit Parts(const Shape& shape) : per_image(shape.channels_last ? shape.tiles : 1) {
    const int64_t size = shape.n * per_image * shape.c;
    float* memory = scratch(7 * size);
    int32_t* at = reinterpret_cast<int32_t*>(memory + 5 * size);
    pools = {memory, memory + size, memory + 2 * size, memory + 3 * size, memory + 4 * size, at, at + size};
  }
};

template <class T>
void pool_tile(const T* x, const Shape& shape, int64_t tile, bool variance, const Parts& parts) {
  const Kernels<T>& run = kernels<T>();
  const int64_t c = shape.c, p = shape.p;
  if (!shape.channels_last) return run.pool_plane(x + tile * p, p, variance, parts.pools.from(tile));
  const int64_t image = tile / shape.tiles, row = tile % shape.tiles * shape.rows;
  run.pool_rows(x + (image * p + row) * c, std::min(shape.rows, p - row), c, row, variance,
                parts.pools.from(tile * c));
}

struct Pooled {
  float mean, variance, max, min;
  int32_t max_at, min_at;
};

// One channel of one image, from its parts in their order.
template <class T>
Pooled together(const T* x, const Shape& shape, const Parts& parts, int64_t image, int64_t channel) {
  const int64_t c = shape.c, p = shape.p, first = image * parts.per_image * c + channel;
  const Pools& pools = parts.pools;
  double mean = 0, square = 0, count = 0;
  Pooled of{0, 0, pools.max[first], pools.min[first], pools.max_at[first], pools.min_at[first]};
  for (int64_t part = 0; part < parts.per_image; part++) {
    const int64_t i = first + part * c;
    const double rows = double(std::min(shape.rows, p - part * shape.rows));
    const double sum = pools.sum[i], mean_of = pools.shift[i] + sum / rows;
    const double between = mean_of - mean, all = count + rows;
    // the pairwise update of Chan, Golub and LeVeque
    square += pools.square[i] - sum * sum / rows + between * between * count * rows / all;
    mean += between * rows / all, count = all;
    if (pools.max[i] > of.max) of.max = pools.max[i], of.max_at = pools.max_at[i];
    if (pools.min[i] < of.min) of.min = pools.min[i], of.min_at = pools.min_at[i];
  }
  of.mean = float(mean), of.variance = float(std::isnan(square) ? square : std::max(square, 0.0) / double(p));
  if (std::isnan(mean)) {
    // comparisons pass over a NaN; the first one is the maximum and the minimum
    const T* plane = x + (shape.channels_last ? image * p * c + channel : (image * c + channel) * p);
    double total = 0;
    int64_t pixel = 0;
    for (; pixel < p; pixel++) {
      const float value = widened(plane[shape.channels_last ? pixel * c : pixel]);
      total += value;
      if (!std::isnan(value)) continue;
      of.max = of.min = value, of.max_at = of.min_at = int32_t(pixel);
      break;
    }
    if (pixel == p) of.mean = float(total);  // of infinite values
  }
  return of;
}

template <class T>
void pool(const Tensor& x, const Shape& shape, bool variance, float* values, int32_t* indices) {
  const T* from = static_cast<const T*>(x.const_data_ptr());
  const int64_t c = shape.c, all = shape.n * c;
  const Parts parts(shape);
  torch::stable::parallel_for(0, shape.n * shape.tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++) pool_tile(from, shape, tile, variance, parts);
  });
  torch::stable::parallel_for(0, shape.n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * c; i < end * c; i++) {
      const Pooled of = together(from, shape, parts, i / c, i % c);
      values[i] = of.mean, values[all + i] = of.variance, values[2 * all + i] = of.max, values[3 * all + i] = of.min;
      indices[i] = of.max_at, indices[all + i] = of.min_at;
    }
  });
}

// Mean, biased variance (without meaning unless asked for), maximum and minimum over H x W, (4, N, C) float32; the first index of both,
// (2, N, C) int32.
std::tuple<Tensor, Tensor> pool_op(const Tensor& x, bool variance) {
  const Shape shape(x);
  Tensor values = room(x, {4, shape.n, shape.c}, ScalarType::Float);
  Tensor indices = room(x, {2, shape.n, shape.c}, ScalarType::Int);
  auto run = shape.is_float ? pool<float> : pool<BFloat16>;
  run(x, shape, variance, static_cast<float*>(values.mutable_data_ptr()),
      static_cast<int32_t*>(indices.mutable_data_ptr()));
  return {values, indices};
}

// Pixels of an image that are mapped together, in every memory format.
int64_t rows_of_maps(const Shape& shape) {
  return shape.channels_last ? shape.rows : kPixelsOfMaps;
}

template <class T>
void map_tile(const T* x, const Shape& shape, int64_t image, int64_t row, Affine of, float* max, int32_t* max_at,
              float* mean) {
  const int64_t c = shape.c, p = shape.p, count = std::min(rows_of_maps(shape), p - row);
  if (shape.channels_last)
    kernels<T>().map_rows(x + (image * p + row) * c, count, c, of, max, max_at, mean);
  else
    kernels<T>().map_planes(x + image * c * p + row, c, p, count, of, max, max_at, mean);
  for (int64_t i = 0; i < count; i++) {
    mean[i] /= float(c);
    if (!std::isnan(mean[i])) continue;
    // as in the pools
    for (int64_t channel = 0; channel < c; channel++) {
      const int64_t at = shape.channels_last ? (image * p + row + i) * c + channel : (image * c + channel) * p + row + i;
      const float value = widened(x[at]) * (of.scale ? of.scale[channel] : 1) + (of.shift ? of.shift[channel] : 0);
      if (!std::isnan(value)) continue;
      max[i] = value, max_at[i] = int32_t(channel);
      break;
    }
  }
}

template <class T>
void maps(const Tensor& x, const Shape& shape, const Affines& affines, float* values, int32_t* indices) {
  const T* from = static_cast<const T*>(x.const_data_ptr());
  const int64_t p = shape.p, all = shape.n * p, rows = rows_of_maps(shape), tiles = (p + rows - 1) / rows;
  torch::stable::parallel_for(0, shape.n * tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t image = tile / tiles, row = tile % tiles * rows, to = image * p + row;
      map_tile(from, shape, image, row, affines.of(image), values + to, indices + to, values + all + to);
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
struct Apply {
  const T *x, *r;
  T* y;
  bool relu;
};

template <class T>
void apply_tile(const Apply<T>& to, const Shape& shape, int64_t tile, Affine of, const float* m, float past) {
  const int64_t c = shape.c, p = shape.p, image = tile / shape.tiles, part = tile % shape.tiles;
  const int64_t row = shape.channels_last ? part * shape.rows : 0;
  const int64_t i = shape.channels_last ? (image * p + row) * c : tile * p;
  const T* r = to.r ? to.r + i : nullptr;
  if (shape.channels_last)
    kernels<T>().apply_rows(to.x + i, r, to.y + i, std::min(shape.rows, p - row), c, of, m ? m + row : nullptr, past,
                            to.relu);
  else
    kernels<T>().apply_plane(to.x + i, r, to.y + i, p, of.scale ? of.scale[part] : 1, of.shift ? of.shift[part] : 0, m,
                             past, to.relu);
}

template <class T>
void apply(const Tensor& x, const Shape& shape, const Affines& affines, const float* m, const float* past,
           const std::optional<Tensor>& r, bool relu, const Tensor& y) {
  const Apply<T> to{static_cast<const T*>(x.const_data_ptr()),
                    r ? static_cast<const T*>(r->const_data_ptr()) : nullptr, static_cast<T*>(y.mutable_data_ptr()),
                    relu};
  torch::stable::parallel_for(0, shape.n * shape.tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t image = tile / shape.tiles;
      apply_tile(to, shape, tile, affines.of(image), m ? m + image * shape.p : nullptr, past ? past[image] : 0);
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
void add_up(const float* partial, int64_t n, int64_t parts, int64_t count, int64_t c, float* sums) {
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
  const int64_t rows = rows_of_maps(shape), tiles = (p + rows - 1) / rows;
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
  add_up(partial, shape.n, tiles, count, c, sums);
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
  add_up(partial, shape.n, shape.tiles, 1, c, sums);
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

// The small functions of one call for inference.
struct Gates {
  // what: sigmoid of W2 relu(W1 pool + b1) + b2, summed over the pools; without W2 of W1 pool + b1
  const float *w1, *b1, *w2, *b2;
  int64_t hidden;
  bool average, maximum;
  // where: sigmoid of slope * convolution + offset, of the maps in this order; one is -1 that is not there
  const float* kernel;
  int64_t size, max_map, mean_map;
  float slope, offset;
};

float sigmoid(float value) {
  return 1 / (1 + std::exp(-value));
}

// The channel gate of one image, from its pools.
void run_what(const Gates& gates, int64_t c, const float* average, const float* maximum, float* s) {
  const auto dot = best().dot;
  const int64_t hidden = gates.w2 ? gates.hidden : c;
  std::vector<float> sums(hidden, 0.0f);
  int64_t pools = 0;
  for (const float* pool : {gates.average ? average : nullptr, gates.maximum ? maximum : nullptr}) {
    if (!pool) continue;
    pools++;
    for (int64_t i = 0; i < hidden; i++) {
      const float value = dot(gates.w1 + i * c, pool, c) + (gates.b1 ? gates.b1[i] : 0);
      // a NaN stays one
      sums[i] += gates.w2 && value < 0 ? 0 : value;
    }
  }
  for (int64_t i = 0; i < c; i++) {
    float logit = sums[gates.w2 ? 0 : i];
    if (gates.w2) logit = dot(gates.w2 + i * hidden, sums.data(), hidden) + (gates.b2 ? float(pools) * gates.b2[i] : 0);
    s[i] = sigmoid(logit);
  }
}

// The spatial gate of one image, from its maps.
void run_where(const Gates& gates, int64_t height, int64_t width, const float* max, const float* mean, float* m) {
  const int64_t size = gates.size, pad = size / 2, p = height * width, stride = width + 2 * pad + 16;
  std::vector<float> padded((height + 2 * pad) * stride + 16);
  std::fill(m, m + p, 0.0f);
  for (int64_t map : {gates.max_map, gates.mean_map}) {
    if (map < 0) continue;
    const float* from = map == gates.max_map ? max : mean;
    std::fill(padded.begin(), padded.end(), 0.0f);
    for (int64_t y = 0; y < height; y++) std::copy_n(from + y * width, width, padded.data() + (y + pad) * stride + pad);
    best().convolve(padded.data(), stride, gates.kernel + map * size * size, size, height, width, m);
  }
  for (int64_t i = 0; i < p; i++) m[i] = sigmoid(m[i] * gates.slope + gates.offset);
}

template <class T>
void infer(const Tensor& x, const Shape& shape, const Gates& gates, const float* scale, const float* shift, float past,
           float through, const std::optional<Tensor>& r, bool relu, const Tensor& y) {
  const Apply<T> to{static_cast<const T*>(x.const_data_ptr()),
                    r ? static_cast<const T*>(r->const_data_ptr()) : nullptr, static_cast<T*>(y.mutable_data_ptr()),
                    relu};
  const int64_t n = shape.n, c = shape.c, p = shape.p, rows = rows_of_maps(shape);
  const Parts parts(shape);
  std::vector<float> values(n * (4 * c + 3 * p));
  std::vector<int32_t> unused(n * p);
  auto what = [&](int64_t image) {
    float *average = values.data() + image * (4 * c + 3 * p), *maximum = average + c, *a = average + 2 * c, *b = a + c;
    for (int64_t i = 0; i < c; i++) a[i] = scale ? scale[i] : 1, b[i] = shift ? shift[i] : 0;
    if (!gates.w1) return;
    for (int64_t i = 0; i < c; i++) {
      const Pooled of = together(to.x, shape, parts, image, i);
      average[i] = of.mean * a[i] + b[i];
      // where the scale is below 0 the maximum of z is the minimum of x
      maximum[i] = (a[i] < 0 ? of.min : of.max) * a[i] + b[i];
    }
    std::vector<float> s(c);
    run_what(gates, c, average, maximum, s.data());
    for (int64_t i = 0; i < c; i++) a[i] *= s[i], b[i] *= s[i];
  };
  auto where = [&](int64_t image, int64_t row) {
    float *a = values.data() + image * (4 * c + 3 * p) + 2 * c, *max = a + 2 * c + row, *mean = max + p;
    map_tile(to.x, shape, image, row, {a, a + c}, max, unused.data() + image * p + row, mean);
  };
  auto finish = [&](int64_t image) {
    float *a = values.data() + image * (4 * c + 3 * p) + 2 * c, *max = a + 2 * c, *m = max + 2 * p;
    if (gates.kernel) run_where(gates, shape.height, p / shape.height, max, max + p, m);
    for (int64_t i = 0; i < 2 * c; i++) a[i] *= through;
  };
  auto apply = [&](int64_t tile) {
    const int64_t image = tile / shape.tiles;
    float *a = values.data() + image * (4 * c + 3 * p) + 2 * c, *m = a + 2 * c + 2 * p;
    apply_tile(to, shape, tile, {a, a + c}, gates.kernel ? m : nullptr, past);
  };
  if (n >= int64_t(torch::stable::get_num_threads())) {
    // an image at a time, which stays in the cache of its core
    torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; image++) {
        const int64_t first = image * shape.tiles;
        for (int64_t tile = 0; gates.w1 && tile < shape.tiles; tile++) pool_tile(to.x, shape, first + tile, false, parts);
        what(image);
        for (int64_t row = 0; gates.kernel && row < p; row += rows) where(image, row);
        finish(image);
        for (int64_t tile = shape.tiles; tile-- > 0;) apply(first + tile);
      }
    });
    return;
  }
  // more cores than images: they share each
  auto each = [](int64_t size, auto body) {
    torch::stable::parallel_for(0, size, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) body(i);
    });
  };
  const int64_t tiles = (p + rows - 1) / rows;
  if (gates.w1) each(n * shape.tiles, [&](int64_t tile) { pool_tile(to.x, shape, tile, false, parts); });
  each(n, what);
  if (gates.kernel) each(n * tiles, [&](int64_t tile) { where(tile / tiles, tile % tiles * rows); });
  each(n, finish);
  each(n * shape.tiles, apply);
}

// The whole of a call without gradients: see Gates, and `apply` for y. With z = x * scale + shift, both (C,), the gate is
// past + through * s * m. y may be x.
void infer_op(const Tensor& x, std::optional<Tensor> scale, std::optional<Tensor> shift, std::optional<Tensor> w1,
              std::optional<Tensor> b1, std::optional<Tensor> w2, std::optional<Tensor> b2, bool average, bool maximum,
              std::optional<Tensor> kernel, int64_t max_map, int64_t mean_map, double slope, double offset, double past,
              double through, std::optional<Tensor> r, bool relu, Tensor y) {
  const Shape shape(x, {large(r), &y});
  const int64_t c = shape.c, hidden = w2 ? w2->size(1) : c, size = kernel ? kernel->size(2) : 0;
  STD_TORCH_CHECK(past == 0 || !shift, "past comes with no shift");
  STD_TORCH_CHECK(max_map < 2 && mean_map < 2 && (max_map != mean_map || max_map < 0), "each map has a place of its own");
  const int64_t maps = (max_map >= 0) + (mean_map >= 0);
  const Gates gates{small(w1, hidden * c), small(b1, hidden), small(w2, c * hidden), small(b2, c), hidden, average,
                    maximum, small(kernel, maps * size * size), size, max_map, mean_map, float(slope), float(offset)};
  auto run = shape.is_float ? infer<float> : infer<BFloat16>;
  run(x, shape, gates, small(scale, c), small(shift, c), float(past), float(through), r, relu, y);
}

}  // namespace
}  // namespace whatwhere

STABLE_TORCH_LIBRARY(whatwhere, m) {
  m.def("vector_bits() -> int");
  m.def("version() -> int");
  m.def("pool(Tensor x, bool variance) -> (Tensor, Tensor)");
  m.def("maps(Tensor x, Tensor? scale, Tensor? shift) -> (Tensor, Tensor)");
  m.def(
      "apply(Tensor x, Tensor? scale, Tensor? shift, Tensor? m, Tensor? past, Tensor? r, bool relu, Tensor(a!) y) -> "
      "()");
  m.def(
      "reduce(Tensor g, Tensor? y, Tensor x, Tensor? scale, Tensor? shift, Tensor? m, Tensor? mean, bool direct, "
      "bool of_x, Tensor(a!)? dv) -> (Tensor, Tensor)");
  m.def(
      "infer(Tensor x, Tensor? scale, Tensor? shift, Tensor? w1, Tensor? b1, Tensor? w2, Tensor? b2, bool average, "
      "bool maximum, Tensor? kernel, int max_map, int mean_map, float slope, float offset, float past, float through, "
      "Tensor? r, bool relu, Tensor(a!) y) -> ()");
  m.def("weighted(Tensor x, Tensor weight, Tensor? mean) -> Tensor");
  m.def(
      "spread(Tensor dv, Tensor x, Tensor? m, Tensor? of_mean, Tensor gate, Tensor? direct, Tensor? constant, "
      "Tensor? slope, Tensor? mean, Tensor? of_max, Tensor? max_at, Tensor? of_pools, Tensor? pools_at, Tensor(a!) dx) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(whatwhere, CompositeExplicitAutograd, m) {
  m.impl("vector_bits", TORCH_BOX(&whatwhere::vector_bits));
  m.impl("version", TORCH_BOX(&whatwhere::version));
}

STABLE_TORCH_LIBRARY_IMPL(whatwhere, CPU, m) {
  m.impl("pool", TORCH_BOX(&whatwhere::pool_op));
  m.impl("maps", TORCH_BOX(&whatwhere::maps_op));
  m.impl("apply", TORCH_BOX(&whatwhere::apply_op));
  m.impl("reduce", TORCH_BOX(&whatwhere::reduce_op));
  m.impl("infer", TORCH_BOX(&whatwhere::infer_op));
  m.impl("weighted", TORCH_BOX(&whatwhere::weighted_op));
  m.impl("spread", TORCH_BOX(&whatwhere::spread_op));
}
