// The operators: one by one the passes, for small functions that run in torch; and a whole call (block_forward.cpp,
// block_backward.cpp).
#include "block.h"
#include "passes.h"

namespace whatwhere {
namespace {

// Which instruction set is used: the bits of its vectors.
int64_t vector_bits() {
  return best().bits;
}

// native.py asks for this number: an old library beside new Python would compute something else.
int64_t version() {
  return 3;
}

// Mean, biased variance (without meaning unless asked for), maximum and minimum over H x W, (4, N, C) float32; the first
// index of both, (2, N, C) int32.
std::tuple<Tensor, Tensor> pool_op(const Tensor& x, bool variance) {
  const Shape shape(x);
  Tensor results = room(x, {4, shape.n, shape.c}, ScalarType::Float);
  Tensor indices = room(x, {2, shape.n, shape.c}, ScalarType::Int);
  float* values_to = to_write<float>(results);
  int32_t* at = to_write<int32_t>(indices);
  const int64_t all = shape.n * shape.c;
  with_type(shape, [&](auto type) {
    pool(values<decltype(type)>(x), shape, {variance, true, true}, [=](int64_t i, const Pooled& of) {
      const float found[4] = {of.mean, of.variance, of.max, of.min};
      for (int64_t k = 0; k < 4; k++) values_to[k * all + i] = found[k];
      at[i] = of.max_at, at[all + i] = of.min_at;
    });
  });
  return {results, indices};
}

// Of u = x * scale + shift the maximum and the mean over C, (2, N, H * W) float32, and the first index of the maximum.
std::tuple<Tensor, Tensor> maps_op(const Tensor& x, std::optional<Tensor> scale, std::optional<Tensor> shift) {
  const Shape shape(x);
  Tensor results = room(x, {2, shape.n, shape.p}, ScalarType::Float);
  Tensor indices = room(x, {shape.n, shape.p}, ScalarType::Int);
  const Affines affines(scale, shift, shape.n, shape.c);
  float *max = to_write<float>(results), *mean = max + shape.n * shape.p;
  with_type(shape, [&](auto type) {
    maps(values<decltype(type)>(x), shape, affines, max, to_write<int32_t>(indices), mean);
  });
  return {results, indices};
}

// y = (x * scale + shift) * m + r, or x * (scale * m + past) + r where past is given and not 0; behind a ReLU with
// `relu`; m (N, H * W), past (N,). y may be x.
void apply_op(const Tensor& x, std::optional<Tensor> scale, std::optional<Tensor> shift, std::optional<Tensor> m,
              std::optional<Tensor> past, std::optional<Tensor> r, bool relu, Tensor y) {
  STD_TORCH_CHECK(!past || (scale && !shift), "past comes with a scale alone");
  const Shape shape(x, {large(r), &y});
  const Affines affines(scale, shift, shape.n, shape.c);
  const float *gate = small(m, shape.n * shape.p), *by_past = small(past, shape.n);
  with_type(shape, [&](auto type) {
    using T = decltype(type);
    const Apply<T> to{values<T>(x), values<T>(r), to_write<T>(y), relu};
    if (scale || shift || m) apply(to, shape, affines, gate, by_past);
    else apply_flat(to, shape.n * shape.c * shape.p);
  });
}

// With dv = g, or g where y > 0: the sum over C of dv * (x * scale + shift), (N, H * W), where m is given; and
// over H x W the sums of dv * m, of dv * m * (x - mean), with `direct` of dv and of dv * (x - mean), and with `of_x` of
// x - mean, (., N, C). dv is written to the argument where y is given.
std::tuple<Tensor, Tensor> reduce_op(const Tensor& g, std::optional<Tensor> y, const Tensor& x,
                                     std::optional<Tensor> scale, std::optional<Tensor> shift, std::optional<Tensor> m,
                                     std::optional<Tensor> mean, bool direct, bool of_x, std::optional<Tensor> dv) {
  const Shape shape(x, {&g, large(y), large(dv)});
  STD_TORCH_CHECK(!y == !dv, "dv is written where y is given");
  Tensor dm = room(x, {shape.n, m ? shape.p : 0}, ScalarType::Float);
  Tensor sums = room(x, {(direct ? 4 : 2) + of_x, shape.n, shape.c}, ScalarType::Float);
  const Affines affines(scale, shift, shape.n, shape.c);
  const float *gate = small(m, shape.n * shape.p), *means = small(mean, shape.c);
  float* of_m = m ? to_write<float>(dm) : nullptr;
  with_type(shape, [&](auto type) {
    using T = decltype(type);
    const Reduce<T> whole{values<T>(g), values<T>(y), values<T>(x), to_write<T>(dv), {}, gate, means, of_m, {}, nullptr, direct};
    reduce(shape, whole, affines, of_x, to_write<float>(sums));
  });
  return {dm, sums};
}

// The sums over H x W of weight * (x - mean), (N, C) float32; weight (N, H * W), mean (C,).
Tensor weighted_op(const Tensor& x, const Tensor& weight, std::optional<Tensor> mean) {
  const Shape shape(x);
  Tensor sums = room(x, {shape.n, shape.c}, ScalarType::Float);
  const float *by = small(std::optional(weight), shape.n * shape.p), *means = small(mean, shape.c);
  with_type(shape, [&](auto type) { weighted(shape, values<decltype(type)>(x), by, means, to_write<float>(sums)); });
  return sums;
}

// dx = dv * (m * gate + direct) + of_mean * gate + constant + slope * (x - mean), plus of_max * gate at the channel
// max_at of each pixel, plus of_pools at the pixel pools_at of each channel. m, of_mean, of_max and max_at are
// (N, H * W); gate, direct and constant (N, C); slope and mean (C,); of_pools and pools_at (., N, C).
void spread_op(const Tensor& dv, const Tensor& x, std::optional<Tensor> m, std::optional<Tensor> of_mean,
               const Tensor& gate, std::optional<Tensor> direct, std::optional<Tensor> constant,
               std::optional<Tensor> slope, std::optional<Tensor> mean, std::optional<Tensor> of_max,
               std::optional<Tensor> max_at, std::optional<Tensor> of_pools, std::optional<Tensor> pools_at, Tensor dx) {
  const Shape shape(x, {&dv, &dx});
  const int64_t pixels = shape.n * shape.p, channels = shape.n * shape.c, pools = of_pools ? of_pools->size(0) : 0;
  STD_TORCH_CHECK(!of_max == !max_at && !of_pools == !pools_at && !slope == !mean, "an index or a mean is missing");
  with_type(shape, [&](auto type) {
    using T = decltype(type);
    const Spread<T> whole{values<T>(dv), values<T>(x), to_write<T>(dx), small(m, pixels), small(of_mean, pixels),
                          small(std::optional(gate), channels), small(direct, channels), small(constant, channels),
                          small(slope, shape.c), small(mean, shape.c), small(of_max, pixels),
                          small<int32_t>(max_at, pixels)};
    spread(shape, whole, small(of_pools, pools * channels), small<int32_t>(pools_at, pools * channels), pools);
  });
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
      "block(Tensor x, Tensor?[] tensors, float[] numbers, int[] flags, Tensor? r, bool relu, bool keep, Tensor(a!) y, "
      "Tensor(b!)[] running, float[] momenta) -> (Tensor, Tensor)");
  m.def(
      "block_backward(Tensor g, Tensor? y, Tensor x, Tensor?[] tensors, float[] numbers, int[] flags, Tensor state, "
      "Tensor indices, Tensor(a!)? dv, Tensor(b!)? dx) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor)");
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
  m.impl("block", TORCH_BOX(&whatwhere::block));
  m.impl("block_backward", TORCH_BOX(&whatwhere::block_backward));
  m.impl("weighted", TORCH_BOX(&whatwhere::weighted_op));
  m.impl("spread", TORCH_BOX(&whatwhere::spread_op));
}
