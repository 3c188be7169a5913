// The passes over x: tiles and threads around the loops of kernels.inl. Sums are taken over tiles of one size, in their
// order, whatever the number of threads.
#pragma once

#include "tensors.h"

namespace whatwhere {

constexpr int64_t kPixelsOfMaps = 2048;  // of a contiguous image: their maps stay in the first-level cache

template <class V>
V* from(V* of, int64_t at) {
  return of ? of + at : nullptr;
}

// The pools of the parts of images: of the tiles in channels_last, else of the whole planes.
struct Parts {
  Scratch scratch;
  int64_t per_image;
  Pools pools;

  explicit Parts(const Shape& shape) : per_image(shape.channels_last ? shape.tiles : 1) {
    const int64_t size = shape.n * per_image * shape.c;
    float* memory = scratch.take(5 * size);
    int32_t* at = scratch.take<int32_t>(2 * size);
    pools = {memory, memory + size, memory + 2 * size, memory + 3 * size, memory + 4 * size, at, at + size};
  }
};

template <class T>
void pool_tile(const T* x, const Shape& shape, int64_t tile, Wanted wanted, const Parts& parts) {
  const Kernels<T>& run = kernels<T>();
  const int64_t c = shape.c, p = shape.p;
  if (!shape.channels_last) return run.pool_plane(x + tile * p, p, wanted, parts.pools.from(tile));
  const int64_t image = tile / shape.tiles, row = tile % shape.tiles * shape.rows;
  run.pool_rows(x + (image * p + row) * c, std::min(shape.rows, p - row), c, row, wanted,
                parts.pools.from(tile * c));
}

struct Pooled {
  float mean, variance, max, min;
  int32_t max_at, min_at;
};

// One channel of one image, from its parts in their order.
template <class T>
Pooled together(const T* x, const Shape& shape, const Parts& parts, Wanted wanted, int64_t image, int64_t channel) {
  const int64_t c = shape.c, p = shape.p, first = image * parts.per_image * c + channel;
  const Pools& pools = parts.pools;
  double count = double(std::min(shape.rows, p)), sum = pools.sum[first];
  double mean = pools.shift[first] + sum / count, square = wanted.variance ? pools.square[first] - sum * sum / count : 0;
  Pooled of{0, 0, 0, 0, 0, 0};
  if (wanted.extremes) of.max = pools.max[first], of.min = pools.min[first];
  if (wanted.places) of.max_at = pools.max_at[first], of.min_at = pools.min_at[first];
  for (int64_t part = 1; part < parts.per_image; part++) {
    const int64_t i = first + part * c;
    const double rows = double(std::min(shape.rows, p - part * shape.rows));
    sum = pools.sum[i];
    const double mean_of = pools.shift[i] + sum / rows, between = mean_of - mean, all = count + rows;
    // the pairwise update of Chan, Golub and LeVeque
    if (wanted.variance) square += pools.square[i] - sum * sum / rows + between * between * count * rows / all;
    mean += between * rows / all, count = all;
    if (!wanted.extremes) continue;
    if (pools.max[i] > of.max) of.max = pools.max[i], of.max_at = wanted.places ? pools.max_at[i] : 0;
    if (pools.min[i] < of.min) of.min = pools.min[i], of.min_at = wanted.places ? pools.min_at[i] : 0;
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

// Call with each channel's Pooled: found(i, of), with i over (N, C).
template <class T, class Found>
void pool(const T* x, const Shape& shape, Wanted wanted, Found found) {
  const int64_t c = shape.c;
  const Parts parts(shape);
  each(shape.n * shape.tiles, [&](int64_t tile) { pool_tile(x, shape, tile, wanted, parts); });
  each(shape.n, [&](int64_t image) {
    for (int64_t i = image * c; i < (image + 1) * c; i++) found(i, together(x, shape, parts, wanted, image, i % c));
  });
}

// Pixels of an image that are mapped together, in every memory format.
inline int64_t rows_of_maps(const Shape& shape) {
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
      max[i] = value;
      if (max_at) max_at[i] = int32_t(channel);
      break;
    }
  }
}

template <class T>
void maps(const T* x, const Shape& shape, const Affines& affines, float* max, int32_t* max_at, float* mean) {
  const int64_t p = shape.p, rows = rows_of_maps(shape), tiles = (p + rows - 1) / rows;
  each(shape.n * tiles, [&](int64_t tile) {
    const int64_t image = tile / tiles, row = tile % tiles * rows, to = image * p + row;
    map_tile(x, shape, image, row, affines.of(image), max + to, from(max_at, to), mean + to);
  });
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
    kernels<T>().apply_plane(to.x + i, r, to.y + i, p, of.scale ? of.scale[part] : 1, of.shift ? of.shift[part] : -0.0f, m,
                             past, to.relu);
}

// The sum with r alone, of `count` values in whatever order they lie.
template <class T>
void apply_flat(const Apply<T>& to, int64_t count) {
  constexpr int64_t part = kTileBytes / sizeof(T);
  each((count + part - 1) / part, [&](int64_t i) {
    const int64_t first = i * part;
    kernels<T>().apply_plane(to.x + first, to.r ? to.r + first : nullptr, to.y + first, std::min(part, count - first), 1,
                             -0.0f, nullptr, 0, to.relu);
  });
}

template <class T>
void apply(const Apply<T>& to, const Shape& shape, const Affines& affines, const float* m, const float* past) {
  each(shape.n * shape.tiles, [&](int64_t tile) {
    const int64_t image = tile / shape.tiles;
    apply_tile(to, shape, tile, affines.of(image), m ? m + image * shape.p : nullptr, past ? past[image] : 0);
  });
}

// Sum partial sums, (images x parts, count x C), over the parts, in their order: (count, N, C).
inline void add_up(const float* partial, int64_t n, int64_t parts, int64_t count, int64_t c, float* sums) {
  each(n * count, [&](int64_t i) {
    const int64_t image = i / count, k = i % count;
    float* to = sums + (k * n + image) * c;
    std::memset(to, 0, c * sizeof(float));
    for (int64_t part = 0; part < parts; part++)
      best().add(to, partial + ((image * parts + part) * count + k) * c, c);
  });
}

// Sums (2 or, with `direct`, 4, and one more with `of_x`, N, C) as in Reduce; the pointers of `whole` are to the first
// values of the batch.
template <class T>
void reduce(const Shape& shape, const Reduce<T>& whole, const Affines& affines, bool of_x, float* sums) {
  const int64_t c = shape.c, p = shape.p, each_has = whole.direct ? 4 : 2, count = each_has + of_x;
  const int64_t rows = rows_of_maps(shape), tiles = (p + rows - 1) / rows;
  Scratch scratch;
  float* partial = scratch.take(shape.n * tiles * count * c);
  each(shape.n * tiles, [&](int64_t tile) {
    float* found = partial + tile * count * c;
    std::memset(found, 0, count * c * sizeof(float));
    const int64_t image = tile / tiles, row = tile % tiles * rows, size = std::min(rows, p - row);
    const int64_t pixel = image * p + row, first = shape.channels_last ? pixel * c : image * c * p + row;
    Reduce<T> of{whole.g + first, from(whole.y, first), whole.x + first, from(whole.dv, first), affines.of(image),
                 from(whole.m, pixel), whole.mean, from(whole.dm, pixel), {}, nullptr, whole.direct};
    for (int64_t k = 0; k < each_has; k++) of.sums[k] = found + k * c;
    if (of_x) of.of_x = found + each_has * c;
    if (of.dm) std::memset(of.dm, 0, size * sizeof(float));
    if (shape.channels_last)
      kernels<T>().reduce_rows(of, size, c);
    else
      kernels<T>().reduce_planes(of, c, p, size);
  });
  add_up(partial, shape.n, tiles, count, c, sums);
}

// The sums over H x W of weight * (x - mean), (N, C); weight (N, H * W), mean (C,) or null.
template <class T>
void weighted(const Shape& shape, const T* x, const float* weight, const float* mean, float* sums) {
  const int64_t c = shape.c, p = shape.p;
  if (!shape.channels_last)
    return each(shape.n * c, [&](int64_t i) {
      sums[i] = kernels<T>().weighted_plane(x + i * p, p, weight + i / c * p, mean ? mean[i % c] : 0);
    });
  Scratch scratch;
  float* partial = scratch.take(shape.n * shape.tiles * c);
  each(shape.n * shape.tiles, [&](int64_t tile) {
    const int64_t image = tile / shape.tiles, row = tile % shape.tiles * shape.rows, pixel = image * p + row;
    float* to = partial + tile * c;
    std::memset(to, 0, c * sizeof(float));
    kernels<T>().weighted_rows(x + pixel * c, std::min(shape.rows, p - row), c, weight + pixel, mean, to);
  });
  add_up(partial, shape.n, shape.tiles, 1, c, sums);
}

// Write dx; the pointers of `whole` are to the first values of the batch. Then add of_pools to it at the pixel pools_at
// of each channel, (pools, N, C) both.
template <class T>
void spread(const Shape& shape, const Spread<T>& whole, const float* of_pools, const int32_t* pools_at,
            int64_t pools) {
  const int64_t c = shape.c, p = shape.p, all = shape.n * c;
  each(shape.n * shape.tiles, [&](int64_t tile) {
    const int64_t image = tile / shape.tiles, part = tile % shape.tiles;
    const int64_t row = shape.channels_last ? part * shape.rows : 0, pixel = image * p + row;
    const int64_t first = shape.channels_last ? pixel * c : tile * p, size = std::min(shape.rows, p - row);
    const Spread<T> of{whole.dv + first, whole.x + first, whole.dx + first, from(whole.m, pixel),
                       from(whole.of_mean, pixel), whole.gate + image * c, from(whole.direct, image * c),
                       from(whole.constant, image * c), whole.slope, whole.mean, from(whole.of_max, pixel),
                       from(whole.max_at, pixel)};
    if (shape.channels_last)
      kernels<T>().spread_rows(of, size, c);
    else
      kernels<T>().spread_plane(of, part, p);
    // the pools' extremes: one pixel of each channel
    const int64_t start = shape.channels_last ? 0 : part, stop = shape.channels_last ? c : part + 1;
    for (int64_t k = 0; k < pools; k++)
      for (int64_t channel = start; channel < stop; channel++) {
        const int64_t i = k * all + image * c + channel, at = pools_at[i] - row;
        if (at < 0 || at >= size) continue;
        T* here = of.dx + (shape.channels_last ? at * c + channel : at);
        if constexpr (sizeof(T) == 4)
          *here += of_pools[i];
        else
          *here = rounded(widened(*here) + of_pools[i]);
      }
  });
}

}  // namespace whatwhere
