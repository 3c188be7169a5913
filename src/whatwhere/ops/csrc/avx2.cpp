#if defined(__x86_64__)
#include <cstdint>
#include <cstring>
#include <type_traits>
#pragma GCC target("avx2,fma")
#define WIDTH 8
#define NAME avx2
#include "kernels.inl"
#endif
