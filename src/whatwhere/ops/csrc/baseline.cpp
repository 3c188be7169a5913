#define WIDTH 4
#define NAME baseline
#include "kernels.inl"
