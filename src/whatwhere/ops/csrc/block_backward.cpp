#include <array>

#include "block.h"

namespace whatwhere {
namespace {

// What the backward pass finds for each small tensor; null where there is nothing to find.
using Found = std::array<float*, kTensors>;

// In the notation of lean_backward.py. The sums of a gradient, and of that times xh, are (N, C) each.
template <class T>
struct Backward {
  const Block& of;
  const Shape& shape;
  const State& state;
  const T *g, *y, *x;
  T *dv, *dx;
  const Found& found;
  const int64_t n, c, p, pools;
  const Scales scales, of_where;
  const float* mean;  // null without a norm
  const bool has_what, has_maps, direct;
  Scratch scratch;
  // the gates, and m times what goes through them
  float *s, *m, *by_m;
  // from the first pass: the sums over C of dv * u, and over H x W of du and of dv
  float *dm, *of_u, *of_u_xh, *of_v, *of_v_xh;
  // through the spatial gate: what every channel of a pixel gets, and what that of the maximum gets, (N, H * W)
  float *of_mean, *of_max;
  float* of_pools;  // of z, (N, pools, C)
  float *of_z, *of_z_xh;
  // of the last pass, see Spread
  float *gate, *past, *constant, *of_pool;

  Backward(const Block& of, const State& state, const T* g, const T* y, const T* x, T* dv, T* dx, const Found& found)
      : of(of), shape(of.shape), state(state), g(g), y(y), x(x), dv(dv), dx(dx), found(found), n(shape.n), c(shape.c),
        p(shape.p), pools(of.what.pools()), scales(of.norm, c, state.mean, state.var),
        of_where(of.where.norm, 1, state.where_mean, state.where_var), mean(of.norm.is_there ? state.mean : nullptr),
        has_what(of.what.w1), has_maps(of.where.kernel), direct(has_maps && of.mix) {
    const int64_t channels = n * c, pixels = n * p;
    s = scratch.take(has_what ? channels : 0), m = scratch.take(has_maps ? pixels : 0);
    by_m = scratch.take(has_maps ? pixels : 0), dm = scratch.take(has_maps ? pixels : 0);
    of_u = scratch.take(4 * channels), of_u_xh = of_u + channels, of_v = of_u_xh + channels, of_v_xh = of_v + channels;
    of_mean = scratch.take(of.where.mean_map >= 0 ? pixels : 0), of_max = scratch.take(of.where.max_map >= 0 ? pixels : 0);
    of_pools = scratch.take(pools * channels), of_z = scratch.take(channels), of_z_xh = scratch.take(channels);
    gate = scratch.take(channels), past = scratch.take(direct ? channels : 0), constant = scratch.take(channels);
    of_pool = scratch.take(of.what.maximum ? channels : 0);
  }

  float gate_of(int64_t i) const { return has_what ? s[i] : 1; }
  float centred(float value, int64_t channel) const { return value - (mean ? mean[channel] : 0); }
  // The sum of a gradient times z, from those of the gradient and of that times xh.
  float by_z(float sum, float by_xh, int64_t channel) const {
    const Norm& norm = of.norm;
    return (norm.weight ? norm.weight[channel] : 1) * by_xh + (norm.bias ? norm.bias[channel] * sum : 0);
  }

  void run() {
    first_pass();
    if (has_maps) through_where();
    if (has_what) through_what();
    double of_mix = 0;
    each(n, [&](int64_t image) { finish(image); });
    for (int64_t image = 0; of.mix && image < n; image++) of_mix += of_mixing(image);
    if (found[kMix]) *found[kMix] = float(of_mix);
    last_pass();
  }

  void first_pass() {
    const int64_t channels = n * c;
    Scratch scratch;
    float* affine = scratch.take(has_maps ? 2 * channels : 0);
    each(n, [&](int64_t image) {
      for (int64_t i = image * c; has_what && i < (image + 1) * c; i++) s[i] = sigmoid(state.logits[i]);
      if (!has_maps) return;
      float *a = affine + 2 * image * c, *b = a + c;
      for (int64_t i = 0; i < c; i++)
        a[i] = scales.scale[i] * gate_of(image * c + i), b[i] = scales.shift[i] * gate_of(image * c + i);
      for (int64_t i = image * p; i < (image + 1) * p; i++)
        m[i] = sigmoid(state.q[i] * of_where.scale[0] + of_where.shift[0]), by_m[i] = m[i] * of.through(image);
    });
    const Reduce<T> first{g, y, x, dv, {}, by_m, mean, dm, {}, nullptr, direct};
    reduce(shape, first, {affine, from(affine, c), 2 * c}, false, of_u);
    each(n, [&](int64_t image) {
      const float through = has_maps ? 1 : of.through(image);
      for (int64_t k = 0; k < c; k++) {
        const int64_t i = image * c + k;
        of_u_xh[i] *= scales.invstd[k];
        if (direct) of_v_xh[i] *= scales.invstd[k];
        else of_v[i] = of_u[i], of_v_xh[i] = of_u_xh[i];
        // without a spatial gate du is dv, but for the factor and the mixing
        of_u[i] *= through, of_u_xh[i] *= through;
      }
    });
  }

  void through_where() {
    const Where& where = of.where;
    const float scale = of_where.scale[0], invstd = of_where.invstd[0], middle = where.norm.is_there ? *state.where_mean : 0;
    Scratch scratch;
    float* of_q = scratch.take(n * p);
    each(n, [&](int64_t image) {
      for (int64_t i = image * p; i < (image + 1) * p; i++)
        of_q[i] = dm[i] * of.through(image) * slope_of_sigmoid(state.q[i] * scale + of_where.shift[0]);
    });
    double sum = 0, by_qh = 0, of_bias = 0;  // of the gradient of the logits, and of that times the normed q
    for (int64_t i = 0; i < n * p; i++) sum += of_q[i], by_qh += of_q[i] * (state.q[i] - middle) * invstd;
    if (found[kWhereWeight]) *found[kWhereWeight] = float(by_qh);
    if (found[kWhereBias]) *found[kWhereBias] = float(sum);
    const double share = where.norm.batch() ? 1 / double(n * p) : 0;
    const float less = float(sum * share), slope = float(by_qh * share) * invstd;
    for (int64_t i = 0; i < n * p; i++) {
      of_q[i] = scale * (of_q[i] - less - slope * (state.q[i] - middle));
      of_bias += of_q[i];
    }
    if (found[kOffset]) *found[kOffset] = float(of_bias);

    const int64_t size = (bool(of_max) + bool(of_mean)) * where.size * where.size;
    float *kernels = scratch.take(n * size), *by_mean = scratch.take(of_mean ? n * c : 0);
    each(n, [&](int64_t image) {
      const int64_t first = image * p;
      convolution_backward(where, shape.height, p / shape.height, from(state.max, first), from(state.average, first),
                           of_q + first, from(of_max, first), from(of_mean, first), kernels + image * size);
      for (int64_t i = first; of_mean && i < first + p; i++) of_mean[i] /= float(c);
    });
    add_up(kernels, 1, n, 1, size, found[kKernel]);

    if (of_mean) weighted(shape, x, of_mean, mean, by_mean);
    each(n, [&](int64_t image) {
      float *u = of_u + image * c, *u_xh = of_u_xh + image * c;
      double total = 0;
      for (int64_t i = image * p; i < (image + 1) * p; i++) {
        if (of_mean) total += of_mean[i];
        if (!of_max) continue;
        const int64_t channel = state.map_at[i];
        const float value = widened(x[shape.channels_last ? i * c + channel : (image * c + channel) * p + i - image * p]);
        u[channel] += of_max[i], u_xh[channel] += of_max[i] * centred(value, channel) * scales.invstd[channel];
      }
      for (int64_t i = 0; of_mean && i < c; i++)
        u[i] += float(total), u_xh[i] += by_mean[image * c + i] * scales.invstd[i];
    });
  }

  void through_what() {
    Scratch scratch;
    float *of_logits = scratch.take(n * c), *pooled = scratch.take(n * pools * c);
    each(n, [&](int64_t image) {
      scales.run(state.pools_of_x + image * pools * c, pools, pooled + image * pools * c);
      for (int64_t i = image * c; i < (image + 1) * c; i++)
        of_logits[i] = by_z(of_u[i], of_u_xh[i], i - image * c) * slope_of_sigmoid(state.logits[i]);
    });
    what_backward(of.what, n, c, of_logits, pooled, state.hidden, of_pools,
                  {found[kW1], found[kB1], found[kW2], found[kB2]});
  }

  // The sums of dz, from those of du, and what the last pass needs of this image.
  void finish(int64_t image) {
    const float through = of.through(image), by_past = of.past(image);
    for (int64_t channel = 0; channel < c; channel++) {
      const int64_t i = image * c + channel, pool = image * pools * c + channel;
      const float scale = scales.scale[channel];
      of_z[i] = of_u[i] * gate_of(i), of_z_xh[i] = of_u_xh[i] * gate_of(i);
      if (of.mix) of_z[i] += of_v[i] * by_past, of_z_xh[i] += of_v_xh[i] * by_past;
      for (int64_t k = pool; k < pool + pools * c; k += c)
        of_z[i] += of_pools[k],
            of_z_xh[i] += of_pools[k] * centred(state.pools_of_x[k], channel) * scales.invstd[channel];
      gate[i] = scale * (has_maps ? gate_of(i) : gate_of(i) * through + by_past);
      constant[i] = of.what.average ? scale * of_pools[pool] / float(p) : 0;
      if (of_pool) of_pool[i] = scale * of_pools[pool + (pools - 1) * c];
      if (past) past[i] = scale * by_past;
    }
  }

  // The part of the gradient of the mixing that comes from an image.
  double of_mixing(int64_t image) const {
    double total = 0;
    for (int64_t i = image * c; i < (image + 1) * c; i++)
      total += by_z(of_v[i], of_v_xh[i], i - image * c) * ((has_maps ? 0 : gate_of(i)) - 1);
    for (int64_t i = image * p; has_maps && i < (image + 1) * p; i++) total += dm[i] * m[i];
    return total * (of.factor ? of.factor[image] : 1);
  }

  void last_pass() {
    Scratch scratch;
    float* slope = scratch.take(of.norm.batch() ? c : 0);
    for (int64_t i = 0; of.norm.is_there && i < c; i++) {
      double sum = 0, by_xh = 0;
      for (int64_t image = 0; image < n; image++) sum += of_z[image * c + i], by_xh += of_z_xh[image * c + i];
      if (found[kBias]) found[kBias][i] = float(sum);
      if (found[kWeight]) found[kWeight][i] = float(by_xh);
      if (!slope) continue;
      const float scale = scales.scale[i];
      slope[i] = -scale * scales.invstd[i] * float(by_xh / double(n * p));
      for (int64_t image = 0; image < n; image++) constant[image * c + i] -= scale * float(sum / double(n * p));
    }
    if (!dx) return;
    const Spread<T> last{y ? dv : g, x, dx, by_m, of_mean, gate, past, constant, slope, slope ? mean : nullptr, of_max,
                         of_max ? state.map_at : nullptr};
    spread(shape, last, of_pool, state.pool_at, of_pool ? 1 : 0);
  }
};

}  // namespace

// From the gradient g of y: the gradients of the small tensors that are learned, in their order, each empty where there
// is none. That of r is written to dv where y is given, behind a ReLU; elsewhere it is g. That of x is written to dx, if
// it is given.
Gradients block_backward(const Tensor& g, std::optional<Tensor> y, const Tensor& x,
                         std::vector<std::optional<Tensor>> tensors, std::vector<double> numbers,
                         std::vector<int64_t> flags, const Tensor& state, const Tensor& indices,
                         std::optional<Tensor> dv, std::optional<Tensor> dx) {
  const Block of(x, {&g, large(y), large(dv), large(dx)}, tensors, numbers, flags);
  STD_TORCH_CHECK(!y == !dv, "dv is written where y is given");
  const State size(of, nullptr, nullptr);
  // it is only read here
  const State kept(of, const_cast<float*>(small(std::optional(state), size.values)),
                   const_cast<int32_t*>(small<int32_t>(std::optional(indices), size.indices)));
  for (int64_t i = 0; of.where.max_map >= 0 && i < of.shape.n * of.shape.p; i++)
    STD_TORCH_CHECK(kept.map_at[i] >= 0 && kept.map_at[i] < of.shape.c, "an index is not that of a channel");
  Found found{};
  auto like = [&](int i) {
    std::vector<int64_t> sizes;
    for (int64_t k = 0; tensors[i] && k < tensors[i]->dim(); k++) sizes.push_back(tensors[i]->size(k));
    Tensor gradient = room(x, tensors[i] ? sizes : std::vector<int64_t>{0}, ScalarType::Float);
    if (tensors[i]) found[i] = to_write<float>(gradient);
    return gradient;
  };
  Gradients gradients{like(kWeight), like(kBias), like(kW1), like(kB1), like(kW2), like(kB2), like(kKernel),
                      like(kOffset), like(kWhereWeight), like(kWhereBias), like(kMix)};
  with_type(of.shape, [&](auto type) {
    using T = decltype(type);
    Backward<T>(of, kept, values<T>(g), values<T>(y), values<T>(x), to_write<T>(dv), to_write<T>(dx), found).run();
  });
  return gradients;
}

}  // namespace whatwhere
