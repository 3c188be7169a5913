// One call of `gate` as one operator, and its backward pass as another: for the small functions of small.h.
#pragma once

#include <tuple>

#include "passes.h"
#include "small.h"

namespace whatwhere {

// The order of the small tensors.
enum {
  kWeight, kBias, kMean, kVar, kW1, kB1, kW2, kB2, kKernel, kOffset, kWhereWeight, kWhereBias, kWhereMean, kWhereVar,
  kFactor, kMix, kTensors
};
enum { kHasNorm, kAverage, kMaximum, kMaxMap, kMeanMap, kHasWhereNorm, kZInY, kFlags };

// z = norm(x), or x without a norm; s = what(pools of z); m = where(maps of z * s);
// v = f * z * (1 - a + a * s * m), with the factor f of each image and the mixing a, both 1 where they are missing.
struct Block {
  Shape shape;
  Norm norm;
  What what;
  Where where;
  const float *factor, *mix;
  bool z_in_y;  // y holds z already, computed by the norm itself

  Block(const Tensor& x, std::initializer_list<const Tensor*> others, const std::vector<std::optional<Tensor>>& tensors,
        const std::vector<double>& numbers, const std::vector<int64_t>& flags)
      : shape(x, others) {
    STD_TORCH_CHECK(tensors.size() == kTensors && numbers.size() == 2 && flags.size() == kFlags, "a list is too short");
    const int64_t c = shape.c;
    auto norm_of = [&](int first, int64_t count, double eps, bool is_there) {
      STD_TORCH_CHECK(!tensors[first + 2] == !tensors[first + 3], "a mean comes with a variance");
      return Norm{small(tensors[first], count), small(tensors[first + 1], count), small(tensors[first + 2], count),
                  small(tensors[first + 3], count), float(eps), is_there};
    };
    norm = norm_of(kWeight, c, numbers[0], flags[kHasNorm]);
    const int64_t hidden = tensors[kW2] ? tensors[kW2]->size(1) : tensors[kW1] ? c : 0;
    const int64_t width = tensors[kW1] && tensors[kW1]->dim() == 3 ? tensors[kW1]->size(2) : 0;
    what = {small(tensors[kW1], width ? width : hidden * c), small(tensors[kB1], hidden), small(tensors[kW2], c * hidden),
            small(tensors[kB2], c), hidden, width, flags[kAverage] != 0, flags[kMaximum] != 0};
    STD_TORCH_CHECK(bool(what.w1) == (what.pools() > 0), "what comes with its pools");
    STD_TORCH_CHECK(!width || (width % 2 && !what.w2 && !what.b1), "a convolution along the channels is all, and odd");
    const int64_t max_map = flags[kMaxMap], mean_map = flags[kMeanMap], maps = (max_map >= 0) + (mean_map >= 0);
    STD_TORCH_CHECK(max_map < maps && mean_map < maps && (max_map != mean_map || max_map < 0),
                    "each map has a place of its own");
    const int64_t size = tensors[kKernel] ? tensors[kKernel]->size(2) : 0;
    where = {small(tensors[kKernel], maps * size * size), small(tensors[kOffset], 1), size, max_map, mean_map,
             norm_of(kWhereWeight, 1, numbers[1], flags[kHasWhereNorm])};
    STD_TORCH_CHECK(bool(where.kernel) == (maps > 0) && (maps == 0 || size % 2), "where comes with maps and an odd size");
    STD_TORCH_CHECK(where.kernel || !where.norm.is_there, "where comes with its kernel");
    factor = small(tensors[kFactor], shape.n), mix = small(tensors[kMix], 1), z_in_y = flags[kZInY];
    STD_TORCH_CHECK(!mix || !norm.is_there || z_in_y, "a mixing reads z from y");
  }

  float through(int64_t image) const { return (mix ? *mix : 1) * (factor ? factor[image] : 1); }
  float past(int64_t image) const { return mix ? (1 - *mix) * (factor ? factor[image] : 1) : 0; }
};

// What a forward pass leaves for its backward pass: one run of float32 and one of int32. block.py knows its size.
struct State {
  float *mean, *var;              // of the norm, (C,)
  float *where_mean, *where_var;  // of the norm in `where`, one value each
  float* pools_of_x;              // whose x * scale + shift are the pools of z, (N, pools, C)
  float* hidden;                  // as in run_hidden, (N, pools, rows of W1)
  float* logits;                  // of the channel gate, (N, C)
  float *max, *average;           // the maps, (N, H * W)
  float* q;                       // behind the convolution, (N, H * W)
  int64_t values = 0;
  int32_t *pool_at, *map_at;  // (N, C), (N, H * W)
  int64_t indices = 0;

  State(const Block& of, float* to, int32_t* at) {
    const int64_t n = of.shape.n, c = of.shape.c, pixels = n * of.shape.p, pools = of.what.pools();
    auto next = [&](int64_t count) { return values += count, from(to, values - count); };
    auto next_index = [&](int64_t count) { return indices += count, from(at, indices - count); };
    mean = next(of.norm.is_there ? c : 0), var = next(of.norm.is_there ? c : 0);
    where_mean = next(of.where.norm.is_there), where_var = next(of.where.norm.is_there);
    pools_of_x = next(n * pools * c), hidden = next(n * pools * of.what.hidden), logits = next(pools ? n * c : 0);
    max = next(of.where.max_map >= 0 ? pixels : 0), average = next(of.where.mean_map >= 0 ? pixels : 0);
    q = next(of.where.kernel ? pixels : 0);
    pool_at = next_index(of.what.maximum ? n * c : 0), map_at = next_index(of.where.max_map >= 0 ? pixels : 0);
  }
};

// scale and shift with norm(x) = x * scale + shift
struct Scales {
  std::vector<float> scale, shift, invstd;

  Scales(const Norm& norm, int64_t c, const float* mean, const float* var)
      : scale(c, 1.0f), shift(c, 0.0f), invstd(c, 1.0f) {
    for (int64_t i = 0; norm.is_there && i < c; i++) {
      invstd[i] = 1 / std::sqrt(var[i] + norm.eps);
      scale[i] = invstd[i] * (norm.weight ? norm.weight[i] : 1);
      shift[i] = (norm.bias ? norm.bias[i] : 0) - mean[i] * scale[i];
    }
  }

  // values * scale + shift, of `count` rows
  void run(const float* values, int64_t count, float* to) const {
    const int64_t c = int64_t(scale.size());
    for (int64_t k = 0; k < count * c; k += c)
      for (int64_t i = 0; i < c; i++) to[k + i] = values[k + i] * scale[i] + shift[i];
  }
};

std::tuple<Tensor, Tensor> block(const Tensor& x, std::vector<std::optional<Tensor>> tensors,
                                 std::vector<double> numbers, std::vector<int64_t> flags, std::optional<Tensor> r,
                                 bool relu, bool keep, Tensor y, std::vector<Tensor> running,
                                 std::vector<double> momenta);

// one for each small tensor that is learned
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients block_backward(const Tensor& g, std::optional<Tensor> y, const Tensor& x,
                         std::vector<std::optional<Tensor>> tensors, std::vector<double> numbers,
                         std::vector<int64_t> flags, const Tensor& state, const Tensor& indices,
                         std::optional<Tensor> dv, std::optional<Tensor> dx);

}  // namespace whatwhere
