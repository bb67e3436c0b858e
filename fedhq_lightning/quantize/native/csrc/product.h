// Products of integers: rows times packed columns, a tile that fits the registers at a time.
#pragma once
#include "level.h"

namespace fedhq {
namespace LEVEL {

// Where the words of a row lie: `count` of them from each of `num_starts` starts on, `stride` elements apart.
struct Inner {
  const int64_t* starts;
  int64_t num_starts;
  int64_t count;
  int64_t stride;
};

// TILE_ROWS rows times PANELS panels, to sums [TILE_ROWS][PANELS * PANEL].
template <int PANELS>
FEDHQ_INLINE void tile(const Row* const* rows, const Inner& inner, const Column* panel, int64_t panel_size,
                       int32_t* sums) {
  constexpr int VECTORS = PANELS * PANEL_VECTORS;
  Vector sum[TILE_ROWS][VECTORS];
  for (int r = 0; r < TILE_ROWS; r++)
    for (int v = 0; v < VECTORS; v++) sum[r][v] = zero();
  for (int64_t s = 0; s < inner.num_starts; s++) {
    int64_t place = inner.starts[s];
    for (int64_t w = 0; w < inner.count; w++, place += inner.stride, panel += PANEL_ELEMENTS) {
      Vector column[VECTORS];
      for (int v = 0; v < VECTORS; v++)
        column[v] = load(panel + (v / PANEL_VECTORS) * panel_size + (v % PANEL_VECTORS) * LANES * GROUP);
      for (int r = 0; r < TILE_ROWS; r++) {
        const Vector row = every(word_at(rows[r] + place));
        for (int v = 0; v < VECTORS; v++) sum[r][v] = dot(sum[r][v], row, column[v]);
      }
    }
  }
  for (int r = 0; r < TILE_ROWS; r++)
    for (int v = 0; v < VECTORS; v++) store(sums + (r * VECTORS + v) * LANES, sum[r][v]);
}

constexpr int64_t BYTES_OF_ROWS_AT_ONCE = 256 * 1024;  // rows that stay in the second-level cache over all panels

// Rows times columns. `row_of(m)` is where row m begins; `finish(m, rows, n, columns, sums, width)` takes the sums
// [rows][width] of `columns` columns from n on.
template <class RowOf, class Finish>
FEDHQ_INLINE void product(const RowOf& row_of, int64_t num_rows, int64_t row_bytes, const Inner& inner,
                          const Column* panels, int64_t num_columns, const Finish& finish) {
  const int64_t panel_size = inner.num_starts * inner.count * PANEL_ELEMENTS;
  const int64_t num_panels = (num_columns + PANEL - 1) / PANEL;
  const int64_t block = larger(1, BYTES_OF_ROWS_AT_ONCE / larger(1, row_bytes) / TILE_ROWS) * TILE_ROWS;
  alignas(64) int32_t sums[TILE_ROWS * TILE_PANELS * PANEL];
  for (int64_t first = 0; first < num_rows; first += block) {
    const int64_t last = smaller(num_rows, first + block);
    for (int64_t p = 0; p < num_panels; p += TILE_PANELS) {
      const bool is_wide = TILE_PANELS == 1 || p + TILE_PANELS <= num_panels;
      const int64_t width = is_wide ? TILE_PANELS * PANEL : PANEL;
      const int64_t columns = smaller(width, num_columns - p * PANEL);
      for (int64_t m = first; m < last; m += TILE_ROWS) {
        const int64_t count = smaller(TILE_ROWS, last - m);
        const Row* rows[TILE_ROWS];
        for (int r = 0; r < TILE_ROWS; r++) rows[r] = row_of(m + (r < count ? r : 0));
        if (is_wide) {
          tile<TILE_PANELS>(rows, inner, panels + p * panel_size, panel_size, sums);
          finish(m, count, p * PANEL, columns, sums, TILE_PANELS * PANEL);
        } else {
          tile<1>(rows, inner, panels + p * panel_size, panel_size, sums);
          finish(m, count, p * PANEL, columns, sums, PANEL);
        }
      }
    }
  }
}

}  // namespace LEVEL
}  // namespace fedhq
