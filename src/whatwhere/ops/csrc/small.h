// The small functions in C++: the channel gate from pools and the spatial gate from maps, each image by itself, and
// their gradients. All in float32; sums in one order, whatever the number of threads.
#pragma once

#include "tensors.h"

namespace whatwhere {

// A BatchNorm2d. With `batch` it takes the statistics of the batch, and `mean` and `var` are null.
struct Norm {
  const float *weight, *bias, *mean, *var;
  float eps;
  bool is_there;

  bool batch() const { return is_there && !mean; }
};

// sigmoid of W2 relu(W1 pool + b1) + b2, summed over the pools; without W2 of W1 pool + b1. Without W1 there is none.
struct What {
  const float *w1, *b1, *w2, *b2;
  int64_t hidden;  // rows of W1
  int64_t width;   // W1 is a convolution along the channels, and this its kernel's width; 0 where it is a matrix
  bool average, maximum;

  int64_t pools() const { return average + maximum; }
};

// sigmoid of the norm of the convolution + bias, of the maps in this order; a place is -1 where there is no such map.
// Without a kernel there is none.
struct Where {
  const float *kernel, *bias;
  int64_t size, max_map, mean_map;
  Norm norm;  // of one channel
};

inline float sigmoid(float logit) {
  return 1 / (1 + std::exp(-logit));
}

// of sigmoid, from the logit: 1 - sigmoid would cancel
inline float slope_of_sigmoid(float logit) {
  return sigmoid(logit) * sigmoid(-logit);
}

// out[i] for i in [first, last): the sum over k of kernel[k] * values[i + k - width / 2], zeros being beyond both ends of
// the `size` values; turned, the kernel is read from its end.
inline void convolve_channels(const float* values, int64_t size, const float* kernel, int64_t width, bool turned,
                              int64_t first, int64_t last, float* out) {
  std::fill(out + first, out + last, 0.0f);
  for (int64_t k = 0; k < width; k++) {
    const int64_t shift = k - width / 2, stop = std::min(last, size - shift);
    const float weight = kernel[turned ? width - 1 - k : k];
    for (int64_t i = std::max(first, -shift); i < stop; i++) out[i] += weight * values[i + shift];
  }
}

// What comes out of rows [first, last) of W1 for the pools of some images, (count, C): behind the ReLU if there is a W2,
// (count, rows of W1).
inline void run_hidden(const What& what, int64_t c, int64_t count, const float* pooled, int64_t first, int64_t last,
                       float* hidden) {
  const int64_t h = what.hidden;
  if (what.width) {
    for (int64_t k = 0; k < count; k++)
      convolve_channels(pooled + k * c, c, what.w1, what.width, false, first, last, hidden + k * h);
    return;
  }
  best().dots(what.w1 + first * c, last - first, pooled, count, c, h, hidden + first);
  for (int64_t k = 0; k < count; k++)
    for (int64_t i = first; i < last; i++) {
      float& value = hidden[k * h + i];
      if (what.b1) value += what.b1[i];
      if (what.w2 && value < 0) value = 0;  // a NaN stays one
    }
}

// The sum over the pools of each image, (images, rows of W1), from `hidden`, (images, pools, rows of W1).
inline void add_pools(const What& what, int64_t images, const float* hidden, float* sums) {
  const int64_t h = what.hidden, pools = what.pools();
  for (int64_t i = 0; i < images * h; i++) {
    const float* from = hidden + i / h * pools * h + i % h;
    sums[i] = pools == 2 ? from[0] + from[h] : from[0];
  }
}

// Channels [first, last) of the logits of some images, (images, C), from the sums of add_pools.
inline void run_logits(const What& what, int64_t c, int64_t images, const float* sums, int64_t first, int64_t last,
                       float* logits) {
  const int64_t h = what.hidden;
  if (what.w2) best().dots(what.w2 + first * h, last - first, sums, images, h, c, logits + first);
  for (int64_t image = 0; image < images; image++)
    for (int64_t i = first; i < last; i++)
      if (!what.w2) logits[image * c + i] = sums[image * c + i];
      else if (what.b2) logits[image * c + i] += float(what.pools()) * what.b2[i];
}

// Call body(first, last) for parts of [0, size), in threads.
template <class Body>
void in_parts(int64_t size, Body body) {
  constexpr int64_t part = 64;
  each((size + part - 1) / part, [&](int64_t i) { body(i * part, std::min(size, (i + 1) * part)); });
}

// Where the gradients of the parameters go.
struct OfWhat {
  float *w1, *b1, *w2, *b2;
};

// The gradients of the pools, (N, pools, C), and of the parameters, from those of the logits, (N, C). `pooled` is as the
// first, `hidden` as what run_hidden gave.
inline void what_backward(const What& what, int64_t n, int64_t c, const float* of_logits, const float* pooled,
                          const float* hidden, float* of_pooled, const OfWhat& found) {
  const auto multiply = best().multiply;
  const int64_t h = what.hidden, pools = what.pools();
  Scratch scratch;
  float *of_hidden = scratch.take(n * pools * h), *of_sums = scratch.take(what.w2 ? n * h : 0);
  if (what.w2)
    in_parts(h, [&](int64_t first, int64_t last) {
      multiply(of_logits, c, 1, what.w2 + first, c, n, last - first, h, of_sums + first);
    });
  const float* of_each = what.w2 ? of_sums : of_logits;
  for (int64_t i = 0; i < n * pools * h; i++)
    of_hidden[i] = what.w2 && hidden[i] <= 0 ? 0 : of_each[i / (pools * h) * h + i % h];
  if (what.width) {
    std::vector<double> of_kernel(what.width, 0.0);
    for (int64_t k = 0; k < n * pools; k++) {
      const float *gradient = of_hidden + k * c, *values = pooled + k * c;
      convolve_channels(gradient, c, what.w1, what.width, true, 0, c, of_pooled + k * c);
      for (int64_t j = 0; j < what.width; j++)
        for (int64_t i = std::max<int64_t>(0, what.width / 2 - j), shift = j - what.width / 2; i < c && i + shift < c; i++)
          of_kernel[j] += double(gradient[i]) * values[i + shift];
    }
    std::copy(of_kernel.begin(), of_kernel.end(), found.w1);
    return;
  }
  in_parts(c, [&](int64_t first, int64_t last) {
    multiply(of_hidden, h, 1, what.w1 + first, h, n * pools, last - first, c, of_pooled + first);
  });
  in_parts(h, [&](int64_t first, int64_t last) {
    multiply(of_hidden + first, 1, h, pooled, n * pools, last - first, c, c, found.w1 + first * c);
  });
  const float one = 1;
  if (found.b1) multiply(&one, 0, 0, of_hidden, n * pools, 1, h, h, found.b1);
  if (!what.w2) return;
  float* sums = scratch.take(n * h);
  add_pools(what, n, hidden, sums);
  in_parts(c, [&](int64_t first, int64_t last) {
    multiply(of_logits + first, 1, c, sums, n, last - first, h, h, found.w2 + first * h);
  });
  const float times = float(pools);
  if (found.b2) multiply(&times, 0, 0, of_logits, n, 1, c, c, found.b2);
}

// A map with zeros around it, in rows `stride` apart, behind each of which a vector may be read.
struct Padded {
  int64_t pad, stride;
  std::vector<float> values;

  Padded(int64_t size, int64_t height, int64_t width)
      : pad(size / 2), stride(width + 2 * pad + 16), values((height + 2 * pad) * stride + 16, 0.0f) {}

  float* row(int64_t y) { return values.data() + (y + pad) * stride + pad; }

  const float* fill(const float* map, int64_t height, int64_t width) {
    for (int64_t y = 0; y < height; y++) std::copy_n(map + y * width, width, row(y));
    return values.data();
  }
};

// The convolution of one image's maps, with its bias: q (H * W).
inline void run_convolution(const Where& where, int64_t height, int64_t width, const float* max, const float* mean,
                            float* q) {
  const int64_t size = where.size;
  Padded padded(size, height, width);
  std::fill_n(q, height * width, where.bias ? *where.bias : 0.0f);
  for (int64_t map : {where.max_map, where.mean_map})
    if (map >= 0)
      best().convolve(padded.fill(map == where.max_map ? max : mean, height, width), padded.stride,
                      where.kernel + map * size * size, size, height, width, q);
}

// The gradients of one image's maps and, summed over its pixels, of the kernel, from that of q.
inline void convolution_backward(const Where& where, int64_t height, int64_t width, const float* max,
                                 const float* mean, const float* of_q, float* of_max, float* of_mean,
                                 float* of_kernel) {
  const int64_t size = where.size, area = size * size;
  Padded padded(size, height, width), gradient(size, height, width);
  gradient.fill(of_q, height, width);
  std::vector<float> turned(area);
  for (int64_t map : {where.max_map, where.mean_map}) {
    if (map < 0) continue;
    const bool is_max = map == where.max_map;
    float* to = is_max ? of_max : of_mean;
    const float* kernel = where.kernel + map * area;
    std::reverse_copy(kernel, kernel + area, turned.data());
    std::fill_n(to, height * width, 0.0f);
    best().convolve(gradient.values.data(), gradient.stride, turned.data(), size, height, width, to);
    std::fill_n(of_kernel + map * area, area, 0.0f);
    best().correlate(padded.fill(is_max ? max : mean, height, width), gradient.row(0), padded.stride, size, height,
                     width, of_kernel + map * area);
  }
}

}  // namespace whatwhere
