// The loops over one tile of x, once for each instruction set. A tile is some pixels of one image with all their
// channels (channels_last: `rows` of c values), or one plane of p values (contiguous).
#pragma once

#include <cstdint>
#include <cstring>

namespace whatwhere {

// bfloat16 by its bits
struct BFloat16 {
  uint16_t bits;
};

// static: each instruction set compiles its own
static inline float widened(float value) {
  return value;
}

static inline float widened(BFloat16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// Round to the nearest, halves to even; a NaN stays one.
static inline BFloat16 rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return {uint16_t(value == value ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : 0x7fc0)};
}

// What one pass over pixels yields for each channel: sums of (x - shift) and of its square, and the extremes with the
// first pixel that holds each.
struct Pools {
  float *shift, *sum, *square, *max, *min;
  int32_t *max_at, *min_at;

  Pools from(int64_t c) const {
    return {shift + c, sum + c, square + c, max + c, min + c, max_at + c, min_at + c};
  }
};

// What of it is wanted. The rest is left as it is.
struct Wanted {
  bool variance;  // the shift is then the mean, found first, and the squares are summed too
  bool extremes, places;
};

// u = x * scale + shift; a null pointer is 1 or 0.
struct Affine {
  const float *scale, *shift;
};

// The first pass of the backward pass, of an image or a part of it. With dv = g, or g where y > 0, and centred x:
// sums[0] += dv * m, sums[1] += dv * m * (x - mean); with `direct` sums[2] += dv, sums[3] += dv * (x - mean); and
// of_x += x - mean.
template <class T>
struct Reduce {
  const T *g, *y, *x;  // y may be null
  T* dv;               // is written where y is not null
  Affine of;           // u = x * scale + shift
  const float* m;      // of a pixel; may be null
  const float* mean;   // of a channel; may be null
  float* dm;           // the sum over C of dv * u is added to it; may be null
  float* sums[4];      // of each channel
  float* of_x;         // of each channel; may be null
  bool direct;
};

// The last pass of the backward pass; the pointers are to the first value of a tile, or of the batch:
// dx = dv * (m * gate + direct) + of_mean * gate + constant + slope * (x - mean); null pointers are 0, a null m is 1.
template <class T>
struct Spread {
  const T *dv, *x;
  T* dx;
  const float *m, *of_mean;                       // of a pixel
  const float *gate, *direct, *constant;          // of a channel
  const float *slope, *mean;                      // of a channel; both or neither
  const float* of_max;                            // of a pixel: is added, times gate, at channel max_at
  const int32_t* max_at;
};

template <class T>
struct Kernels {
  // `at` is the number of the first row
  void (*pool_rows)(const T* x, int64_t rows, int64_t c, int64_t at, Wanted wanted, Pools out);
  void (*pool_plane)(const T* x, int64_t p, Wanted wanted, Pools out);
  // maximum over channels of u, the first channel that holds it where max_at is not null, and the sum
  void (*map_rows)(const T* x, int64_t rows, int64_t c, Affine of, float* max, int32_t* max_at, float* sum);
  void (*map_planes)(const T* x, int64_t c, int64_t stride, int64_t p, Affine of, float* max, int32_t* max_at,
                     float* sum);
  // y = u * m + r, or x * (scale * m + past) + r where past is not 0; m (of a pixel) and r may be null; behind a ReLU
  // with `relu`
  void (*apply_rows)(const T* x, const T* r, T* y, int64_t rows, int64_t c, Affine of, const float* m, float past,
                     bool relu);
  void (*apply_plane)(const T* x, const T* r, T* y, int64_t p, float scale, float shift, const float* m, float past,
                      bool relu);
  void (*reduce_rows)(const Reduce<T>& of, int64_t rows, int64_t c);
  void (*reduce_planes)(const Reduce<T>& of, int64_t c, int64_t stride, int64_t p);
  // sums += weight of each pixel * (x - mean)
  void (*weighted_rows)(const T* x, int64_t rows, int64_t c, const float* weight, const float* mean, float* sums);
  float (*weighted_plane)(const T* x, int64_t p, const float* weight, float mean);
  void (*spread_rows)(const Spread<T>& of, int64_t rows, int64_t c);
  // `channel` is the number of this plane; the pointers "of a channel" are those of the image
  void (*spread_plane)(const Spread<T>& of, int64_t channel, int64_t p);
};


struct InstructionSet {
  const char* name;
  int64_t bits;  // of a vector
  // out[j * stride + i] = dot product of row i of a and row j of b, each of `size` values
  void (*dots)(const float* a, int64_t rows, const float* b, int64_t count, int64_t size, int64_t stride, float* out);
  // out (rows x size) = sum over k of a[row * a_row + k * a_step] * row k of b; rows of out and b are `stride` apart
  void (*multiply)(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t count, int64_t rows,
                   int64_t size, int64_t stride, float* out);
  void (*add)(float* to, const float* from, int64_t size);
  // Add to `out` (height x width) the convolution of a padded map with a square kernel of an odd size. Rows of `padded`
  // are `stride` apart; behind the last value a vector may be read.
  void (*convolve)(const float* padded, int64_t stride, const float* kernel, int64_t size, int64_t height,
                   int64_t width, float* out);
  // Add to `out`, of the kernel's size, the gradient of that convolution: `of` is the gradient of its result, in rows
  // `stride` apart with zeros behind each.
  void (*correlate)(const float* padded, const float* of, int64_t stride, int64_t size, int64_t height, int64_t width,
                    float* out);
  Kernels<float> float32;
  Kernels<BFloat16> bfloat16;
};

extern const InstructionSet baseline;
#if defined(__x86_64__)
extern const InstructionSet avx2, avx512;
#endif

}  // namespace whatwhere
