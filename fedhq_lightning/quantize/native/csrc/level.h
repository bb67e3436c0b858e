// What one level of instructions gives the kernels: how integers lie in memory, and the tile of a product.
//
// Every file of kernels is compiled once a level, each time with that level's instructions and its name as LEVEL. So
// nothing here may be a function that two levels could share: all of it is in a namespace of the level's own, and no
// template of the standard library is used.
//
// A product adds up, over an inner dimension, elements of rows times elements of columns. GROUP neighbours along the
// inner dimension make a word of 32 bits. Rows hold an integer plus OFFSET; columns hold the integer itself, in panels of
// 16: word w of column c of a panel lies at [w][c].
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#define FEDHQ_INLINE static inline __attribute__((always_inline))
#define FEDHQ_INLINE_MEMBER inline __attribute__((always_inline))
#define FEDHQ_INLINE_LAMBDA __attribute__((always_inline))

namespace fedhq {
namespace LEVEL {

constexpr int PANEL = 16;  // columns

#if defined(FEDHQ_AVX512_VNNI)
using Row = uint8_t;
using Column = int8_t;
using Vector = __m512i;
constexpr int GROUP = 4, OFFSET = 128, TILE_ROWS = 8, TILE_PANELS = 2;
FEDHQ_INLINE Vector zero() { return _mm512_setzero_si512(); }
FEDHQ_INLINE Vector load(const void* p) { return _mm512_loadu_si512(p); }
FEDHQ_INLINE void store(void* p, Vector v) { _mm512_storeu_si512(p, v); }
FEDHQ_INLINE Vector every(int32_t word) { return _mm512_set1_epi32(word); }
FEDHQ_INLINE Vector dot(Vector sum, Vector row, Vector column) { return _mm512_dpbusd_epi32(sum, row, column); }
#elif defined(FEDHQ_AVX_VNNI)
using Row = uint8_t;
using Column = int8_t;
using Vector = __m256i;
constexpr int GROUP = 4, OFFSET = 128, TILE_ROWS = 6, TILE_PANELS = 1;
FEDHQ_INLINE Vector dot(Vector sum, Vector row, Vector column) { return _mm256_dpbusd_avx_epi32(sum, row, column); }
#elif defined(FEDHQ_AVX2)
// Sums of two products of bytes would leave 16 bits: integers are kept in 16, whose products are added in 32.
using Row = int16_t;
using Column = int16_t;
using Vector = __m256i;
constexpr int GROUP = 2, OFFSET = 0, TILE_ROWS = 6, TILE_PANELS = 1;
FEDHQ_INLINE Vector dot(Vector sum, Vector row, Vector column) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(row, column));
}
#elif defined(FEDHQ_NEON_DOT)
using Row = int8_t;
using Column = int8_t;
using Vector = int32x4_t;
constexpr int GROUP = 4, OFFSET = 0, TILE_ROWS = 6, TILE_PANELS = 1;
FEDHQ_INLINE Vector zero() { return vdupq_n_s32(0); }
FEDHQ_INLINE Vector load(const void* p) { return vld1q_s32(static_cast<const int32_t*>(p)); }
FEDHQ_INLINE void store(void* p, Vector v) { vst1q_s32(static_cast<int32_t*>(p), v); }
FEDHQ_INLINE Vector every(int32_t word) { return vdupq_n_s32(word); }
FEDHQ_INLINE Vector dot(Vector sum, Vector row, Vector column) {
  return vdotq_s32(sum, vreinterpretq_s8_s32(row), vreinterpretq_s8_s32(column));
}
#else
// The reference: one word after the other, in plain C++.
using Row = int8_t;
using Column = int8_t;
using Vector = int32_t;
constexpr int GROUP = 4, OFFSET = 0, TILE_ROWS = 4, TILE_PANELS = 1;
FEDHQ_INLINE Vector zero() { return 0; }
FEDHQ_INLINE Vector load(const void* p) {
  int32_t word;
  memcpy(&word, p, 4);
  return word;
}
FEDHQ_INLINE void store(void* p, Vector v) { memcpy(p, &v, 4); }
FEDHQ_INLINE Vector every(int32_t word) { return word; }
FEDHQ_INLINE Vector dot(Vector sum, Vector row, Vector column) {
  for (int i = 0; i < 4; i++) {
    const int8_t r = static_cast<int8_t>(static_cast<uint32_t>(row) >> (8 * i));
    const int8_t c = static_cast<int8_t>(static_cast<uint32_t>(column) >> (8 * i));
    sum += static_cast<int32_t>(r) * c;
  }
  return sum;
}
#endif

#if defined(FEDHQ_AVX_VNNI) || defined(FEDHQ_AVX2)
FEDHQ_INLINE Vector zero() { return _mm256_setzero_si256(); }
FEDHQ_INLINE Vector load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
FEDHQ_INLINE void store(void* p, Vector v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
FEDHQ_INLINE Vector every(int32_t word) { return _mm256_set1_epi32(word); }
#endif

constexpr int LANES = sizeof(Vector) / 4;        // columns of a vector
constexpr int PANEL_VECTORS = PANEL / LANES;
constexpr int PANEL_ELEMENTS = PANEL * GROUP;    // of one word of every column of a panel

FEDHQ_INLINE int64_t up(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }
FEDHQ_INLINE int64_t words_of(int64_t inner) { return (inner + GROUP - 1) / GROUP; }
FEDHQ_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FEDHQ_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

FEDHQ_INLINE int32_t word_at(const Row* p) {
  int32_t word;
  memcpy(&word, p, 4);
  return word;
}

}  // namespace LEVEL
}  // namespace fedhq
