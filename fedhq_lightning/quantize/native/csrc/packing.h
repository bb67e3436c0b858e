// Integers into the panels that products take as their columns.
#pragma once
#include "level.h"

namespace fedhq {
namespace LEVEL {

constexpr int WIDE = 32;  // rows of int8 that are packed have room for a multiple of this, zero beyond their end

#if defined(__AVX2__)
// The next 8 words of a row of int8, as columns hold them.
FEDHQ_INLINE __m256i eight_words(const int8_t* row) {
  if (GROUP == 4) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row)));
}

// 8 rows [8][stride] of 8 words each, to [8 words][PANEL] with one row in each of 8 columns.
FEDHQ_INLINE void transpose_words(const int8_t* rows, int64_t stride, Column* to) {
  __m256i a[8], b[8];
  for (int i = 0; i < 8; i++) a[i] = eight_words(rows + i * stride);
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    a[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    b[i] = _mm256_permute2x128_si256(a[i], a[i + 4], 0x20);
    b[i + 4] = _mm256_permute2x128_si256(a[i], a[i + 4], 0x31);
  }
  for (int w = 0; w < 8; w++) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + w * PANEL_ELEMENTS), b[w]);
}

// PANEL columns of GROUP rows [GROUP][stride], to one word each.
FEDHQ_INLINE void interleave(const int8_t* rows, int64_t stride, Column* to) {
  __m128i r[GROUP];
  for (int i = 0; i < GROUP; i++) r[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + i * stride));
  const __m128i low = _mm_unpacklo_epi8(r[0], r[1]), high = _mm_unpackhi_epi8(r[0], r[1]);
  if (GROUP == 2) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_cvtepi8_epi16(low));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to) + 1, _mm256_cvtepi8_epi16(high));
  } else {
    const __m128i low2 = _mm_unpacklo_epi8(r[GROUP - 2], r[GROUP - 1]);
    const __m128i high2 = _mm_unpackhi_epi8(r[GROUP - 2], r[GROUP - 1]);
    __m128i* const words = reinterpret_cast<__m128i*>(to);
    _mm_storeu_si128(words, _mm_unpacklo_epi16(low, low2));
    _mm_storeu_si128(words + 1, _mm_unpackhi_epi16(low, low2));
    _mm_storeu_si128(words + 2, _mm_unpacklo_epi16(high, high2));
    _mm_storeu_si128(words + 3, _mm_unpackhi_epi16(high, high2));
  }
}
#else
FEDHQ_INLINE void transpose_words(const int8_t* rows, int64_t stride, Column* to) {
  for (int w = 0; w < 8; w++)
    for (int c = 0; c < 8; c++)
      for (int i = 0; i < GROUP; i++) to[(w * PANEL + c) * GROUP + i] = rows[c * stride + w * GROUP + i];
}

FEDHQ_INLINE void interleave(const int8_t* rows, int64_t stride, Column* to) {
  for (int c = 0; c < PANEL; c++)
    for (int i = 0; i < GROUP; i++) to[c * GROUP + i] = rows[i * stride + c];
}
#endif

// Adds the integers of one word of each of PANEL columns to the columns' sums.
FEDHQ_INLINE void add_words(const Column* words, int32_t* sums) {
  const Vector ones = every(GROUP == 4 ? 0x01010101 : 0x00010001);
  for (int v = 0; v < PANEL_VECTORS; v++)
    store(sums + v * LANES, dot(load(sums + v * LANES), ones, load(words + v * LANES * GROUP)));
}

// PANEL rows of int8 [PANEL][stride] become the columns of one panel over `inner`; `sums` [PANEL] are theirs.
FEDHQ_INLINE void pack_across(const int8_t* rows, int64_t stride, int64_t inner, Column* panel, int32_t* sums) {
  const int64_t words = words_of(inner);
  alignas(64) Column last[8 * PANEL_ELEMENTS];
  for (int64_t w = 0; w < words; w += 8) {
    const int64_t count = smaller(8, words - w);
    Column* const to = count == 8 ? panel + w * PANEL_ELEMENTS : last;
    for (int c = 0; c < PANEL; c += 8) transpose_words(rows + c * stride + w * GROUP, stride, to + c * GROUP);
    if (count < 8) memcpy(panel + w * PANEL_ELEMENTS, last, sizeof(Column) * count * PANEL_ELEMENTS);
  }
  for (int c = 0; c < PANEL; c++) sums[c] = 0;
  for (int64_t w = 0; w < words; w++) add_words(panel + w * PANEL_ELEMENTS, sums);
}

// `count` times GROUP rows of int8 [...][stride] become words `w` and on of every column; `words` is the length of a
// column. Their integers are added to `sums`, which has room for a multiple of PANEL.
FEDHQ_INLINE void pack_along(const int8_t* rows, int64_t stride, int64_t num_columns, int64_t w, int64_t count,
                             int64_t words, Column* panels, int32_t* sums) {
  for (int64_t first = 0; first < num_columns; first += PANEL) {
    Column* const to = panels + (first * words + w * PANEL) * GROUP;
    for (int64_t i = 0; i < count; i++) {
      interleave(rows + i * GROUP * stride + first, stride, to + i * PANEL_ELEMENTS);
      add_words(to + i * PANEL_ELEMENTS, sums + first);
    }
  }
}

}  // namespace LEVEL
}  // namespace fedhq
