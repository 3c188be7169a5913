#include "block.h"

namespace whatwhere {
namespace {

template <class T>
struct Forward {
  const Block& of;
  const Shape& shape;
  const State& state;
  const T* x;
  const Apply<T> to;
  const int64_t n, c, p;
  const bool has_pools, has_maps;
  const Wanted wanted;
  Scratch scratch;
  Scales scales{{}, 0, nullptr, nullptr}, of_where{{}, 1, nullptr, nullptr};
  Pooled* planes;
  float *pooled, *sums;  // of z, (N, pools, C); see add_pools
  float* affine;         // of each image scale and shift of u, then of v
  float* m;              // the spatial gate
  float *max, *average;  // the maps
  int32_t* max_at;       // null unless a backward pass needs it

  Forward(const Block& of, const State& state, const T* x, const Apply<T>& to, bool keep)
      : of(of), shape(of.shape), state(state), x(x), to(to), n(shape.n), c(shape.c), p(shape.p),
        has_pools(of.what.w1 || of.norm.batch()), has_maps(of.where.kernel),
        wanted{of.norm.batch(), of.what.w1 && of.what.maximum, of.what.maximum && keep} {
    planes = scratch.take<Pooled>(has_pools ? n * c : 0);
    pooled = scratch.take(n * of.what.pools() * c), sums = scratch.take(n * of.what.hidden);
    affine = scratch.take(2 * n * c), m = scratch.take(has_maps ? n * p : 0);
    // both maps are computed, whether they are wanted or not
    const bool has_max = of.where.max_map >= 0, has_mean = of.where.mean_map >= 0;
    max = has_max ? state.max : scratch.take(has_maps ? n * p : 0);
    max_at = has_max && keep ? state.map_at : nullptr;
    average = has_mean ? state.average : scratch.take(has_maps ? n * p : 0);
  }

  // The norm's mean and variance, from those of each plane.
  void norm_statistics() {
    const Norm& norm = of.norm;
    for (int64_t i = 0; norm.is_there && i < c; i++) {
      if (!norm.batch()) {
        state.mean[i] = norm.mean[i], state.var[i] = norm.var[i];
        continue;
      }
      double mean = 0, var = 0;
      for (int64_t image = 0; image < n; image++) mean += planes[image * c + i].mean;
      mean /= double(n);
      for (int64_t image = 0; image < n; image++) {
        const Pooled& plane = planes[image * c + i];
        var += plane.variance + (plane.mean - mean) * (plane.mean - mean);
      }
      state.mean[i] = float(mean), state.var[i] = float(var / double(n));
    }
    scales = Scales(norm, c, state.mean, state.var);
  }

  // Scale and shift, and the pools, of z.
  void pools_of_z(int64_t image) {
    float *scale = affine + 2 * image * c, *shift = scale + c;
    std::copy_n(scales.scale.data(), c, scale), std::copy_n(scales.shift.data(), c, shift);
    if (!of.what.w1) return;
    const int64_t pools = of.what.pools(), first = image * pools * c;
    for (int64_t i = 0; i < c; i++) {
      const Pooled& plane = planes[image * c + i];
      if (of.what.average) state.pools_of_x[first + i] = plane.mean;
      if (!of.what.maximum) continue;
      // where the scale is below 0 the maximum of z is the minimum of x; where it is 0 all are equal
      float& extreme = state.pools_of_x[first + (pools - 1) * c + i];
      int32_t& at = state.pool_at[image * c + i];
      extreme = scale[i] < 0 ? plane.min : plane.max, at = scale[i] < 0 ? plane.min_at : plane.max_at;
      if (scale[i] != 0) continue;
      at = 0;  // and NaN stays NaN
      if (std::isfinite(extreme)) extreme = widened(x[shape.channels_last ? image * p * c + i : (image * c + i) * p]);
    }
    scales.run(state.pools_of_x + first, pools, pooled + first);
  }

  // Scale and shift of u.
  void gate(int64_t image) {
    float *scale = affine + 2 * image * c, *shift = scale + c;
    for (int64_t i = 0; of.what.w1 && i < c; i++) {
      const float s = sigmoid(state.logits[image * c + i]);
      scale[i] *= s, shift[i] *= s;
    }
  }

  Affines affines() const { return {affine, affine + c, 2 * c}; }

  void convolve(int64_t image) {
    run_convolution(of.where, shape.height, p / shape.height, max + image * p, average + image * p, state.q + image * p);
  }

  void where_statistics() {
    const Norm& norm = of.where.norm;
    if (!norm.is_there) return;
    double mean = 0, var = 0;
    for (int64_t i = 0; norm.batch() && i < n * p; i++) mean += state.q[i];
    mean /= double(n * p);
    for (int64_t i = 0; norm.batch() && i < n * p; i++) var += (state.q[i] - mean) * (state.q[i] - mean);
    *state.where_mean = norm.batch() ? float(mean) : *norm.mean;
    *state.where_var = norm.batch() ? float(var / double(n * p)) : *norm.var;
    of_where = Scales(norm, 1, state.where_mean, state.where_var);
  }

  // The spatial gate, and scale and shift of v.
  void finish(int64_t image) {
    for (int64_t i = image * p; has_maps && i < (image + 1) * p; i++)
      m[i] = sigmoid(state.q[i] * of_where.scale[0] + of_where.shift[0]);
    float *scale = affine + 2 * image * c, *shift = scale + c;
    if (of.z_in_y)  // z is read, not x
      for (int64_t i = 0; i < c; i++) scale[i] = of.what.w1 ? sigmoid(state.logits[image * c + i]) : 1, shift[i] = 0;
    const float through = of.through(image);
    for (int64_t i = 0; through != 1 && i < 2 * c; i++) scale[i] *= through;
  }

  void apply(int64_t tile) {
    const int64_t image = tile / shape.tiles;
    const float* scale = affine + 2 * image * c;
    apply_tile(to, shape, tile, {scale, of.mix ? nullptr : scale + c}, from(m, image * p), of.past(image));
  }

  // An image at a time, which stays in the cache of its core.
  void run_by_images() {
    const int64_t pools = of.what.pools(), h = of.what.hidden;
    const int64_t rows = rows_of_maps(shape);
    const Parts parts(shape);
    norm_statistics(), where_statistics();
    each(n, [&](int64_t image) {
      for (int64_t tile = 0; has_pools && tile < shape.tiles; tile++)
        pool_tile(x, shape, image * shape.tiles + tile, wanted, parts);
      for (int64_t i = 0; has_pools && i < c; i++) planes[image * c + i] = together(x, shape, parts, wanted, image, i);
      pools_of_z(image);
      if (of.what.w1) {
        float *hidden = state.hidden + image * pools * h, *sum = sums + image * h;
        run_hidden(of.what, c, pools, pooled + image * pools * c, 0, h, hidden);
        add_pools(of.what, 1, hidden, sum);
        run_logits(of.what, c, 1, sum, 0, c, state.logits + image * c);
      }
      gate(image);
      for (int64_t row = 0; has_maps && row < p; row += rows) {
        const int64_t first = image * p + row;
        map_tile(x, shape, image, row, affines().of(image), max + first, from(max_at, first), average + first);
      }
      if (has_maps) convolve(image);
      finish(image);
      for (int64_t tile = shape.tiles; tile-- > 0;) apply(image * shape.tiles + tile);
    });
  }

  // A step at a time, so that all images share what a step reads and computes.
  void run_by_steps() {
    if (has_pools) pool(x, shape, wanted, [&](int64_t i, const Pooled& plane) { planes[i] = plane; });
    norm_statistics();
    each(n, [&](int64_t image) { pools_of_z(image); });
    if (of.what.w1) {
      in_parts(of.what.hidden, [&](int64_t first, int64_t last) {
        run_hidden(of.what, c, n * of.what.pools(), pooled, first, last, state.hidden);
      });
      add_pools(of.what, n, state.hidden, sums);
      in_parts(c, [&](int64_t first, int64_t last) { run_logits(of.what, c, n, sums, first, last, state.logits); });
    }
    each(n, [&](int64_t image) { gate(image); });
    if (has_maps) {
      maps(x, shape, affines(), max, max_at, average);
      each(n, [&](int64_t image) { convolve(image); });
    }
    where_statistics();
    each(n, [&](int64_t image) { finish(image); });
    // in reverse: the last tiles are still in the cache
    each(n * shape.tiles, [&](int64_t tile) { apply(n * shape.tiles - 1 - tile); });
  }

  void run() {
    // matrices that drive an image out of its core's cache are read once for all images, where these are near anyway
    constexpr int64_t near = 16 << 20;
    const int64_t image = c * p * int64_t(sizeof(T));
    const int64_t matrices = of.what.w1 && !of.what.width ? (1 + bool(of.what.w2)) * c * of.what.hidden * 4 : 0;
    const bool share = matrices > image && n * image <= near;
    // the norms take the statistics of the batch, or there are more cores than images
    if (of.norm.batch() || of.where.norm.batch() || n < int64_t(torch::stable::get_num_threads()) || share)
      run_by_steps();
    else
      run_by_images();
  }
};

// Move a running mean and variance, of `c` values, by those of a batch of `count` values.
void move(const std::vector<Tensor>& running, size_t first, double momentum, int64_t c, const float* mean,
          const float* var, int64_t count) {
  const float unbiased = float(double(count) / double(count - 1)), by = float(momentum);
  for (size_t k = 0; k < 2; k++) {
    small(std::optional(running[first + k]), c);
    float* to = to_write<float>(running[first + k]);
    for (int64_t i = 0; i < c; i++) to[i] = to[i] * (1 - by) + (k ? var[i] * unbiased : mean[i]) * by;
  }
}

}  // namespace

// y as `Block` says, plus r, behind a ReLU with `relu`. `running` are the running means and variances that are moved: of
// the norm where momenta[0] is given, then of that in `where` with momenta[1]; a momentum below 0 moves nothing. Returns
// the State and its indices; both empty unless `keep`.
std::tuple<Tensor, Tensor> block(const Tensor& x, std::vector<std::optional<Tensor>> tensors,
                                 std::vector<double> numbers, std::vector<int64_t> flags, std::optional<Tensor> r,
                                 bool relu, bool keep, Tensor y, std::vector<Tensor> running,
                                 std::vector<double> momenta) {
  const Block of(x, {large(r), &y}, tensors, numbers, flags);
  STD_TORCH_CHECK(momenta.size() == 2 && running.size() == size_t(2 * (momenta[0] >= 0) + 2 * (momenta[1] >= 0)),
                  "each momentum comes with a mean and a variance");
  const State size(of, nullptr, nullptr);
  Scratch scratch;
  Tensor kept = room(x, {keep ? size.values : 0}, ScalarType::Float);
  Tensor indices = room(x, {keep ? size.indices : 0}, ScalarType::Int);
  const int64_t count = of.shape.n * of.shape.p;
  STD_TORCH_CHECK((momenta[0] < 0 || (of.norm.batch() && count > 1)) && (momenta[1] < 0 || (of.where.norm.batch() && count > 1)),
                  "only statistics of a batch of several values are moved");
  const State state(of, keep ? to_write<float>(kept) : scratch.take(size.values),
                    keep ? to_write<int32_t>(indices) : scratch.take<int32_t>(size.indices));
  with_type(of.shape, [&](auto type) {
    using T = decltype(type);
    T* to = to_write<T>(y);
    Forward<T>(of, state, values<T>(x), {of.z_in_y ? to : values<T>(x), values<T>(r), to, relu}, keep).run();
  });
  if (momenta[0] >= 0) move(running, 0, momenta[0], of.shape.c, state.mean, state.var, count);
  if (momenta[1] >= 0) move(running, running.size() - 2, momenta[1], 1, state.where_mean, state.where_var, count);
  return {kept, indices};
}

}  // namespace whatwhere
