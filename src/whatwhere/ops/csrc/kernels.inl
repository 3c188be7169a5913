// Included once for each instruction set, with WIDTH (floats in a vector) and NAME defined.
#include <type_traits>

#define TEXT(name) #name
#define TEXT_OF(name) TEXT(name)

#include "kernels.h"

namespace whatwhere {
namespace {

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t Bits __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));

// Vectors of WIDTH values, and single values for the rest, by the same names.
struct Many {
  using F = Floats;
  using I = Ints;
};
struct One {
  using F = float;
  using I = int32_t;
};

template <class V, class T>
inline V load(const T* from) {
  V values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

template <class V>
inline V read(const float* from) {
  return load<V>(from);
}

template <class V>
inline V read(const BFloat16* from) {
  if constexpr (sizeof(V) == 4) return widened(*from);
  else return (Floats)(__builtin_convertvector(load<Halves>(from), Bits) << 16);
}

template <class V>
inline void write(float* to, V values) {
  std::memcpy(to, &values, sizeof values);
}

template <class V>
inline void write(BFloat16* to, V values) {
  if constexpr (sizeof(V) == 4) {
    *to = rounded(values);
  } else {
    Bits bits = (Bits)values;
    bits = values == values ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : Bits{} + 0x7fc0;
    Halves halves = __builtin_convertvector(bits, Halves);
    std::memcpy(to, &halves, sizeof halves);
  }
}

template <class V>
inline V all(float value) {
  return V{} + value;
}

// Call body(first, of) with `of` Many as long as whole vectors are left of `size`, then One.
template <class Body>
inline void vectors(int64_t size, Body body) {
  int64_t i = 0;
  for (; i + WIDTH <= size; i += WIDTH) body(i, Many{});
  for (; i < size; i++) body(i, One{});
}

template <class F>
inline void add(float* to, F value) {
  write(to, load<F>(to) + value);
}

// A first value about which to sum: 0 in the place of one that is not finite.
template <class F>
inline F finite(F value) {
  return value - value == F{} ? value : F{};
}

// Call body(extremes, places), both known to the compiler.
template <class Body>
inline void as_wanted(Wanted wanted, Body body) {
  if (!wanted.extremes) body(std::false_type{}, std::false_type{});
  else if (!wanted.places) body(std::true_type{}, std::false_type{});
  else body(std::true_type{}, std::true_type{});
}

template <class T, class Extremes, class Places>
void pool_rows_of(const T* x, int64_t rows, int64_t c, int64_t at, bool variance, Pools out, Extremes extremes,
                  Places places) {
  vectors(c, [&](int64_t i, auto of) {
    using V = decltype(of);
    auto value = read<typename V::F>(x + i);
    write(out.shift + i, finite(value)), write(out.sum + i, value - finite(value));
    write(out.square + i, typename V::F{});
    if constexpr (extremes) write(out.max + i, value), write(out.min + i, value);
    typename V::I first = typename V::I{} + int32_t(at);
    if constexpr (places)
      std::memcpy(out.max_at + i, &first, sizeof first), std::memcpy(out.min_at + i, &first, sizeof first);
  });
  auto step = [&](auto count, int64_t row) {
    vectors(c, [&](int64_t i, auto of) {
      using V = decltype(of);
      using F = typename V::F;
      using I = typename V::I;
      F shift = load<F>(out.shift + i), sum = load<F>(out.square + i), max, min;
      I max_at, min_at;
      if constexpr (extremes) max = load<F>(out.max + i), min = load<F>(out.min + i);
      if constexpr (places) max_at = load<I>(out.max_at + i), min_at = load<I>(out.min_at + i);
      for (int64_t k = 0; k < count.value; k++) {
        F value = read<F>(x + (row + k) * c + i);
        I here = I{} + int32_t(at + row + k);
        sum += value - shift;
        if constexpr (places) max_at = value > max ? here : max_at, min_at = value < min ? here : min_at;
        if constexpr (extremes) max = value > max ? value : max, min = value < min ? value : min;
      }
      write(out.square + i, sum);
      if constexpr (extremes) write(out.max + i, max), write(out.min + i, min);
      if constexpr (places)
        std::memcpy(out.max_at + i, &max_at, sizeof max_at), std::memcpy(out.min_at + i, &min_at, sizeof min_at);
    });
  };
  // sums of 32 rows are added up, which rounds less; until then they stand in the place of the squares
  int64_t row = 1;
  while (row < rows) {
    const int64_t end = rows - row < 32 ? rows : row + 32;
    for (; row + 2 <= end; row += 2) step(std::integral_constant<int, 2>{}, row);
    for (; row < end; row++) step(std::integral_constant<int, 1>{}, row);
    vectors(c, [&](int64_t i, auto of) {
      using F = typename decltype(of)::F;
      add(out.sum + i, load<F>(out.square + i)), write(out.square + i, F{});
    });
  }
  if (!variance) return;
  // about the mean, which a first value far from it would not be
  vectors(c, [&](int64_t i, auto of) {
    using F = typename decltype(of)::F;
    write(out.shift + i, load<F>(out.shift + i) + load<F>(out.sum + i) / float(rows)), write(out.sum + i, F{});
  });
  for (row = 0; row < rows; row += 2)
    vectors(c, [&](int64_t i, auto of) {
      using F = typename decltype(of)::F;
      F mean = load<F>(out.shift + i), one = read<F>(x + row * c + i) - mean;
      F two = row + 1 < rows ? read<F>(x + (row + 1) * c + i) - mean : F{};
      add(out.sum + i, one + two), add(out.square + i, one * one + two * two);
    });
}

template <class T>
void pool_rows(const T* x, int64_t rows, int64_t c, int64_t at, Wanted wanted, Pools out) {
  as_wanted(wanted, [&](auto extremes, auto places) {
    pool_rows_of(x, rows, c, at, wanted.variance, out, extremes, places);
  });
}

inline Ints numbers() {
  Ints result;
  for (int k = 0; k < WIDTH; k++) result[k] = k;
  return result;
}

// The largest value, and of equal ones the lowest index, over vectors that hold one value and its index each.
inline void reduce_max(Floats values, Ints indices, float& max, int32_t& max_at) {
  for (int apart = WIDTH / 2; apart; apart /= 2) {
    const Ints order = numbers() ^ apart;
    const Floats others = __builtin_shuffle(values, order);
    const Ints at = __builtin_shuffle(indices, order);
    const Ints better = (others > values) | ((others == values) & (at < indices));
    values = better ? others : values, indices = better ? at : indices;
  }
  if (values[0] > max || (values[0] == max && indices[0] < max_at)) max = values[0], max_at = indices[0];
}

inline float reduce_max(Floats values) {
  for (int apart = WIDTH / 2; apart; apart /= 2) {
    const Floats others = __builtin_shuffle(values, numbers() ^ apart);
    values = others > values ? others : values;
  }
  return values[0];
}

inline float reduce_sum(Floats values) {
  for (int apart = WIDTH / 2; apart; apart /= 2) values += __builtin_shuffle(values, numbers() ^ apart);
  return values[0];
}

template <class T, class Extremes, class Places>
void pool_plane_of(const T* x, int64_t p, bool variance, Pools out, Extremes extremes, Places places) {
  float shift = finite(read<float>(x)), sum = 0, square = 0, max = read<float>(x), min = max;
  int32_t max_at = 0, min_at = 0;
  int64_t i = 0;
  if (p >= WIDTH) {
    Floats sums{}, maxima = all<Floats>(max), minima = maxima;
    Ints maxima_at{}, minima_at{}, here = numbers();
    for (; i + WIDTH <= p; i += WIDTH, here += WIDTH) {
      Floats value = read<Floats>(x + i);
      sums += value - shift;
      if constexpr (places)
        maxima_at = value > maxima ? here : maxima_at, minima_at = value < minima ? here : minima_at;
      if constexpr (extremes) maxima = value > maxima ? value : maxima, minima = value < minima ? value : minima;
    }
    sum = reduce_sum(sums);
    if constexpr (places) {
      reduce_max(maxima, maxima_at, max, max_at);
      float largest = -min;
      reduce_max(-minima, minima_at, largest, min_at);
      min = -largest;
    } else if constexpr (extremes) {
      max = reduce_max(maxima), min = -reduce_max(-minima);
    }
  }
  for (; i < p; i++) {
    float value = read<float>(x + i);
    sum += value - shift;
    if (value > max) max = value, max_at = int32_t(i);
    if (value < min) min = value, min_at = int32_t(i);
  }
  if (variance) {
    shift += sum / float(p), sum = 0;
    Floats sums{}, squares{};
    vectors(p, [&](int64_t i, auto kind) {
      using F = typename decltype(kind)::F;
      F centred = read<F>(x + i) - shift;
      if constexpr (sizeof(F) == 4) sum += centred, square += centred * centred;
      else sums += centred, squares += centred * centred;
    });
    sum += reduce_sum(sums), square += reduce_sum(squares);
  }
  *out.shift = shift, *out.sum = sum, *out.square = square;
  if constexpr (extremes) *out.max = max, *out.min = min;
  if constexpr (places) *out.max_at = max_at, *out.min_at = min_at;
}

template <class T>
void pool_plane(const T* x, int64_t p, Wanted wanted, Pools out) {
  as_wanted(wanted, [&](auto extremes, auto places) { pool_plane_of(x, p, wanted.variance, out, extremes, places); });
}

template <class V, class T>
inline V affine(const T* x, const Affine& of, int64_t i) {
  V value = read<V>(x);
  if (of.scale) value = value * load<V>(of.scale + i);
  if (of.shift) value = value + load<V>(of.shift + i);
  return value;
}

template <class T>
void map_rows(const T* x, int64_t rows, int64_t c, Affine of, float* max, int32_t* max_at, float* sum) {
  const bool places = max_at;
  for (int64_t row = 0; row < rows; row++, x += c) {
    float largest = affine<float>(x, of, 0), total = 0;
    int32_t at = 0;
    int64_t i = 0;
    if (c >= WIDTH) {
      Floats maxima = all<Floats>(largest), sums{};
      Ints maxima_at{}, here = numbers();
      for (; i + WIDTH <= c; i += WIDTH, here += WIDTH) {
        Floats value = affine<Floats>(x + i, of, i);
        sums += value;
        maxima_at = value > maxima ? here : maxima_at, maxima = value > maxima ? value : maxima;
      }
      total = reduce_sum(sums);
      if (places) reduce_max(maxima, maxima_at, largest, at);
      else largest = reduce_max(maxima);
    }
    for (; i < c; i++) {
      float value = affine<float>(x + i, of, i);
      total += value;
      if (value > largest) largest = value, at = int32_t(i);
    }
    max[row] = largest, sum[row] = total;
    if (places) max_at[row] = at;
  }
}

template <class T>
void map_planes(const T* x, int64_t c, int64_t stride, int64_t p, Affine of, float* max, int32_t* max_at, float* sum) {
  auto u = [&](auto kind, int64_t i, int64_t channel) {
    const float scale = of.scale ? of.scale[channel] : 1, shift = of.shift ? of.shift[channel] : 0;
    return read<typename decltype(kind)::F>(x + channel * stride + i) * scale + shift;
  };
  vectors(p, [&](int64_t i, auto kind) {
    typename decltype(kind)::I first{};
    const auto value = u(kind, i, 0);
    write(max + i, value), write(sum + i, value);
    if (max_at) std::memcpy(max_at + i, &first, sizeof first);
  });
  auto step = [&](auto count, auto places, int64_t channel) {
    vectors(p, [&](int64_t i, auto kind) {
      using F = typename decltype(kind)::F;
      using I = typename decltype(kind)::I;
      F largest = load<F>(max + i), total = load<F>(sum + i);
      I at;
      if constexpr (places) at = load<I>(max_at + i);
      for (int64_t k = 0; k < count.value; k++) {
        const F value = u(kind, i, channel + k);
        total += value;
        if constexpr (places) at = value > largest ? I{} + int32_t(channel + k) : at;
        largest = value > largest ? value : largest;
      }
      write(max + i, largest), write(sum + i, total);
      if constexpr (places) std::memcpy(max_at + i, &at, sizeof at);
    });
  };
  // several channels at a time, so that the maps are read and written less often
  auto run = [&](auto places) {
    int64_t channel = 1;
    for (; channel + 4 <= c; channel += 4) step(std::integral_constant<int, 4>{}, places, channel);
    for (; channel < c; channel++) step(std::integral_constant<int, 1>{}, places, channel);
  };
  if (max_at) run(std::true_type{});
  else run(std::false_type{});
}

// a NaN stays one, as in torch
template <class F>
inline F rectified(F value) {
  return value < 0 ? F{} : value;
}

template <class T>
void apply_rows(const T* x, const T* r, T* y, int64_t rows, int64_t c, Affine of, const float* m, float past,
                bool relu) {
  for (int64_t row = 0; row < rows; row++, x += c, y += c) {
    const float gate = m ? m[row] : 1;
    vectors(c, [&](int64_t i, auto kind) {
      using F = typename decltype(kind)::F;
      F value;
      if (past != 0)  // one multiplication of x: by exactly 1 at a = 0
        value = read<F>(x + i) * (load<F>(of.scale + i) * gate + past);
      else
        value = affine<F>(x + i, of, i) * gate;
      if (r) value = value + read<F>(r + i);
      write(y + i, relu ? rectified(value) : value);
    });
    if (r) r += c;
  }
}

template <class T>
void apply_plane(const T* x, const T* r, T* y, int64_t p, float scale, float shift, const float* m, float past,
                 bool relu) {
  vectors(p, [&](int64_t i, auto kind) {
    using F = typename decltype(kind)::F;
    F value = read<F>(x + i), gate = m ? load<F>(m + i) : all<F>(1);
    value = past != 0 ? value * (gate * scale + past) : (value * scale + shift) * gate;
    if (r) value = value + read<F>(r + i);
    write(y + i, relu ? rectified(value) : value);
  });
}

template <class V, class T>
inline V gradient(const T* g, const T* y, T* dv, int64_t i) {
  V value = read<V>(g + i);
  if (y) {
    // where y is 0, or a NaN, as threshold_backward
    value = read<V>(y + i) <= 0 ? V{} : value;
    write(dv + i, value);
  }
  return value;
}

template <class T>
void reduce_rows(const Reduce<T>& of, int64_t rows, int64_t c) {
  for (int64_t row = 0; row < rows; row++) {
    const int64_t first = row * c;
    const float m = of.m ? of.m[row] : 1;
    Floats totals{};
    float total = 0;
    vectors(c, [&](int64_t i, auto kind) {
      using F = typename decltype(kind)::F;
      F dv = gradient<F>(of.g + first, of.y ? of.y + first : nullptr, of.dv + first, i);
      F x = read<F>(of.x + first + i), centred = of.mean ? x - load<F>(of.mean + i) : x;
      if (of.dm) {
        F u = affine<F>(of.x + first + i, of.of, i);
        if constexpr (sizeof(F) == 4) total += dv * u;
        else totals += dv * u;
      }
      F gated = dv * m;
      add(of.sums[0] + i, gated), add(of.sums[1] + i, gated * centred);
      if (of.direct) add(of.sums[2] + i, dv), add(of.sums[3] + i, dv * centred);
      if (of.of_x) add(of.of_x + i, centred);
    });
    if (of.dm) of.dm[row] += total + reduce_sum(totals);
  }
}

template <class T>
void reduce_planes(const Reduce<T>& of, int64_t c, int64_t stride, int64_t p) {
  for (int64_t channel = 0; channel < c; channel++) {
    const int64_t first = channel * stride;
    const float mean = of.mean ? of.mean[channel] : 0;
    const float scale = of.of.scale ? of.of.scale[channel] : 1, shift = of.of.shift ? of.of.shift[channel] : 0;
    Floats totals[5] = {};
    float rest[5] = {};
    vectors(p, [&](int64_t i, auto kind) {
      using F = typename decltype(kind)::F;
      F dv = gradient<F>(of.g + first, of.y ? of.y + first : nullptr, of.dv + first, i);
      F x = read<F>(of.x + first + i), centred = x - mean, gated = of.m ? dv * load<F>(of.m + i) : dv;
      if (of.dm) add(of.dm + i, dv * (x * scale + shift));
      auto sum = [&](F* sums) {
        sums[0] += gated, sums[1] += gated * centred;
        if (of.direct) sums[2] += dv, sums[3] += dv * centred;
        if (of.of_x) sums[4] += centred;
      };
      if constexpr (sizeof(F) == 4) sum(rest);
      else sum(totals);
    });
    for (int k = 0; k < (of.direct ? 4 : 2); k++) of.sums[k][channel] += rest[k] + reduce_sum(totals[k]);
    if (of.of_x) of.of_x[channel] += rest[4] + reduce_sum(totals[4]);
  }
}

template <class T>
void weighted_rows(const T* x, int64_t rows, int64_t c, const float* weight, const float* mean, float* sums) {
  for (int64_t row = 0; row < rows; row++, x += c)
    vectors(c, [&](int64_t i, auto kind) {
      using F = typename decltype(kind)::F;
      F value = read<F>(x + i);
      if (mean) value = value - load<F>(mean + i);
      add(sums + i, value * weight[row]);
    });
}

template <class T>
float weighted_plane(const T* x, int64_t p, const float* weight, float mean) {
  Floats totals{};
  float rest = 0;
  vectors(p, [&](int64_t i, auto kind) {
    using F = typename decltype(kind)::F;
    F value = (read<F>(x + i) - mean) * load<F>(weight + i);
    if constexpr (sizeof(F) == 4) rest += value;
    else totals += value;
  });
  return rest + reduce_sum(totals);
}

template <class T>
void spread_rows(const Spread<T>& of, int64_t rows, int64_t c) {
  for (int64_t row = 0; row < rows; row++) {
    const int64_t first = row * c;
    const float m = of.m ? of.m[row] : 1, of_mean = of.of_mean ? of.of_mean[row] : 0;
    vectors(c, [&](int64_t i, auto kind) {
      using F = typename decltype(kind)::F;
      F gate = load<F>(of.gate + i), by = gate * m;
      if (of.direct) by = by + load<F>(of.direct + i);
      F value = read<F>(of.dv + first + i) * by + gate * of_mean;
      if (of.constant) value = value + load<F>(of.constant + i);
      if (of.slope) value = value + load<F>(of.slope + i) * (read<F>(of.x + first + i) - load<F>(of.mean + i));
      write(of.dx + first + i, value);
    });
    if (of.of_max) {
      const int32_t at = of.max_at[row];
      T* to = of.dx + first + at;
      write(to, read<float>(to) + of.of_max[row] * of.gate[at]);
    }
  }
}

template <class T>
void spread_plane(const Spread<T>& of, int64_t channel, int64_t p) {
  const float gate = of.gate[channel], direct = of.direct ? of.direct[channel] : 0;
  const float constant = of.constant ? of.constant[channel] : 0, slope = of.slope ? of.slope[channel] : 0;
  const float mean = of.mean ? of.mean[channel] : 0;
  vectors(p, [&](int64_t i, auto kind) {
    using F = typename decltype(kind)::F;
    using I = typename decltype(kind)::I;
    F by = (of.m ? load<F>(of.m + i) * gate : all<F>(gate)) + direct;
    F value = read<F>(of.dv + i) * by + constant;
    if (of.of_mean) value = value + load<F>(of.of_mean + i) * gate;
    if (of.slope) value = value + (read<F>(of.x + i) - mean) * slope;
    if (of.of_max) {
      I at = load<I>(of.max_at + i);
      value = at == int32_t(channel) ? value + load<F>(of.of_max + i) * gate : value;
    }
    write(of.dx + i, value);
  });
}

template <int R, int S>
void dots_of(const float* a, const float* b, int64_t size, int64_t stride, float* out) {
  Floats totals[R][S] = {};
  float rest[R][S] = {};
  vectors(size, [&](int64_t i, auto kind) {
    using F = typename decltype(kind)::F;
    for (int r = 0; r < R; r++)
      for (int s = 0; s < S; s++) {
        F value = load<F>(a + r * size + i) * load<F>(b + s * size + i);
        if constexpr (sizeof(F) == 4) rest[r][s] += value;
        else totals[r][s] += value;
      }
  });
  for (int r = 0; r < R; r++)
    for (int s = 0; s < S; s++) out[s * stride + r] = rest[r][s] + reduce_sum(totals[r][s]);
}

void dots(const float* a, int64_t rows, const float* b, int64_t count, int64_t size, int64_t stride, float* out) {
  int64_t i = 0;
  auto step = [&](auto r) {
    int64_t j = 0;
    for (; j + 4 <= count; j += 4) dots_of<r.value, 4>(a + i * size, b + j * size, size, stride, out + j * stride + i);
    for (; j < count; j++) dots_of<r.value, 1>(a + i * size, b + j * size, size, stride, out + j * stride + i);
    i += r.value;
  };
  while (i + 4 <= rows) step(std::integral_constant<int, 4>{});
  while (i < rows) step(std::integral_constant<int, 1>{});
}

template <int R, int S, class F>
void product_of(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t count, int64_t stride,
                float* out) {
  constexpr int64_t width = sizeof(F) / 4;
  F totals[R][S] = {};
  for (int64_t k = 0; k < count; k++)
    for (int s = 0; s < S; s++) {
      F value = load<F>(b + k * stride + s * width);
      for (int r = 0; r < R; r++) totals[r][s] += value * a[r * a_row + k * a_step];
    }
  for (int r = 0; r < R; r++)
    for (int s = 0; s < S; s++) write(out + r * stride + s * width, totals[r][s]);
}

void multiply(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t count, int64_t rows, int64_t size,
              int64_t stride, float* out) {
  int64_t i = 0;
  auto step = [&](auto r) {
    const float* from = a + i * a_row;
    float* to = out + i * stride;
    int64_t j = 0;
    for (; j + 4 * WIDTH <= size; j += 4 * WIDTH)
      product_of<r.value, 4, Floats>(from, a_row, a_step, b + j, count, stride, to + j);
    for (; j + WIDTH <= size; j += WIDTH)
      product_of<r.value, 1, Floats>(from, a_row, a_step, b + j, count, stride, to + j);
    for (; j < size; j++) product_of<r.value, 1, float>(from, a_row, a_step, b + j, count, stride, to + j);
    i += r.value;
  };
  while (i + 4 <= rows) step(std::integral_constant<int, 4>{});
  while (i < rows) step(std::integral_constant<int, 1>{});
}

void add_to(float* to, const float* from, int64_t size) {
  vectors(size, [&](int64_t i, auto kind) { add(to + i, load<typename decltype(kind)::F>(from + i)); });
}

void convolve(const float* padded, int64_t stride, const float* kernel, int64_t size, int64_t height, int64_t width,
              float* out) {
  for (int64_t y = 0; y < height; y++, out += width)
    for (int64_t x = 0; x < width; x += WIDTH) {
      Floats total{};
      for (int64_t dy = 0; dy < size; dy++)
        for (int64_t dx = 0; dx < size; dx++)
          total += load<Floats>(padded + (y + dy) * stride + x + dx) * kernel[dy * size + dx];
      const int64_t count = width - x < WIDTH ? width - x : WIDTH;
      for (int64_t i = 0; i < count; i++) out[x + i] += total[i];
    }
}

void correlate(const float* padded, const float* of, int64_t stride, int64_t size, int64_t height, int64_t width,
               float* out) {
  for (int64_t dy = 0; dy < size; dy++)
    for (int64_t dx = 0; dx < size; dx++) {
      Floats total{};
      for (int64_t y = 0; y < height; y++) {
        Floats of_row{};  // added up by itself, which rounds less
        for (int64_t x = 0; x < width; x += WIDTH)
          of_row += load<Floats>(of + y * stride + x) * load<Floats>(padded + (y + dy) * stride + x + dx);
        total += of_row;
      }
      out[dy * size + dx] += reduce_sum(total);
    }
}

template <class T>
constexpr Kernels<T> kernels() {
  return {pool_rows<T>,     pool_plane<T>,    map_rows<T>,       map_planes<T>,  apply_rows<T>,  apply_plane<T>,
          reduce_rows<T>, reduce_planes<T>, weighted_rows<T>, weighted_plane<T>, spread_rows<T>, spread_plane<T>};
}

}  // namespace

const InstructionSet NAME = {TEXT_OF(NAME), 32 * WIDTH, dots, multiply, add_to, convolve, correlate, kernels<float>(), kernels<BFloat16>()};

}  // namespace whatwhere
