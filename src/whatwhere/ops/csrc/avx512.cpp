#if defined(__x86_64__)
#include <cstdint>
#include <cstring>
#include <type_traits>
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#define WIDTH 16
#define NAME avx512
#include "kernels.inl"
#endif
