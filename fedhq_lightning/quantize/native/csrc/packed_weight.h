// Weights rounded to a grid and packed in its bits, and back, as in packed_weight.py, with the same bits. Eight
// values make exactly `bits` bytes; packing.py has the layout.
#pragma once
#include "rounding.h"
#include "scratch.h"

namespace fedhq {
namespace LEVEL {

constexpr int64_t BLOCK = 8;

FEDHQ_INLINE uint64_t every_word(uint64_t word, int width) {
  uint64_t all = 0;
  for (int start = 0; start < 64; start += width) all |= word << start;
  return all;
}

template <int BITS, int WIDTH>
constexpr uint64_t KEPT = (uint64_t{1} << (BITS * WIDTH / 8)) - 1;

// Two neighbours, WIDTH bits apart, become one of twice as many.
template <int BITS, int WIDTH>
FEDHQ_INLINE uint64_t close(uint64_t word) {
  const uint64_t low = every_word(KEPT<BITS, WIDTH>, 2 * WIDTH);
  constexpr int used = BITS * WIDTH / 8;
  return (word & low) | (word >> (WIDTH - used) & low << used);
}

template <int BITS, int WIDTH>
FEDHQ_INLINE uint64_t open(uint64_t word) {
  const uint64_t low = every_word(KEPT<BITS, WIDTH>, 2 * WIDTH);
  constexpr int used = BITS * WIDTH / 8;
  return (word & low) | (word & low << used) << (WIDTH - used);
}

// Blocks of which all of a word may be touched, of `bytes` bytes.
template <int BITS>
FEDHQ_INLINE int64_t whole_words(int64_t bytes) { return bytes < 8 ? 0 : (bytes - 8) / BITS + 1; }

template <int BITS>
FEDHQ_INLINE uint64_t packed_block(const int8_t* values) {
  uint64_t word;
  memcpy(&word, values, 8);
  return close<BITS, 32>(close<BITS, 16>(close<BITS, 8>(word & every_word((1u << BITS) - 1, 8))));
}

// What lies behind the last block stays.
template <int BITS>
FEDHQ_INLINE void pack_blocks(const int8_t* values, int64_t blocks, uint8_t* packed) {
  const int64_t whole = whole_words<BITS>(blocks * BITS);
  for (int64_t b = 0; b < blocks; b++) {
    const uint64_t word = packed_block<BITS>(values + b * BLOCK);
    if (b < whole) memcpy(packed + b * BITS, &word, 8);  // the next one writes over what is too much
    else memcpy(packed + b * BITS, &word, BITS);
  }
}

// Of the last block `bytes` may be fewer than BITS.
template <int BITS>
FEDHQ_INLINE void unpack_blocks(const uint8_t* packed, int64_t bytes, int64_t blocks, uint8_t* values) {
  const int64_t whole = smaller(blocks, whole_words<BITS>(bytes));
  for (int64_t b = 0; b < blocks; b++) {
    uint64_t word = 0;
    if (b < whole) memcpy(&word, packed + b * BITS, 8);
    else memcpy(&word, packed + b * BITS, smaller(BITS, bytes - b * BITS));
    word = open<BITS, 8>(open<BITS, 16>(open<BITS, 32>(word)));
    memcpy(values + b * BLOCK, &word, 8);
  }
}

#define FEDHQ_FOR_BITS(bits, call) \
  switch (bits) {                  \
    case 2: call(2); break;        \
    case 3: call(3); break;        \
    case 4: call(4); break;        \
    case 5: call(5); break;        \
    case 6: call(6); break;        \
    case 7: call(7); break;        \
  }

static void pack_some(const int8_t* values, int64_t blocks, int bits, uint8_t* packed) {
#define FEDHQ_PACK(b) pack_blocks<b>(values, blocks, packed)
  FEDHQ_FOR_BITS(bits, FEDHQ_PACK)
#undef FEDHQ_PACK
}

static void unpack_some(const uint8_t* packed, int64_t bytes, int64_t blocks, int bits, uint8_t* values) {
#define FEDHQ_UNPACK(b) unpack_blocks<b>(packed, bytes, blocks, values)
  FEDHQ_FOR_BITS(bits, FEDHQ_UNPACK)
#undef FEDHQ_UNPACK
}

// `base` (or null) is taken off first.
static void pack_weight(const float* values, const float* base, int64_t rows, int64_t size, int bits, uint8_t* packed,
                        float* scale) {
  const int lowest = -(1 << (bits - 1)), highest = -lowest - 1;
  float* const difference = base ? static_cast<float*>(scratch(Scratch::values, sizeof(float) * size)) : nullptr;
  int8_t* const integers = static_cast<int8_t*>(scratch(Scratch::rows, 2 * BLOCK + size));
  int64_t held = 0;  // integers that wait for a block to be full
  for (int64_t r = 0; r < rows; r++) {
    const float* from = values + r * size;
    if (base) {
      for (int64_t i = 0; i < size; i++) difference[i] = from[i] - base[r * size + i];
      from = difference;
    }
    scale[r] = weight_scale(from, size, bits, lowest, highest);
    if (bits == 8) {
      round_weight(from, size, scale[r], lowest, highest, reinterpret_cast<int8_t*>(packed) + r * size);
      continue;
    }
    round_weight(from, size, scale[r], lowest, highest, integers + held);
    held += size;
    const int64_t blocks = held / BLOCK;
    pack_some(integers, blocks, bits, packed);
    packed += blocks * bits;
    held -= blocks * BLOCK;
    memmove(integers, integers + blocks * BLOCK, held);
  }
  if (held) {
    uint8_t last[BLOCK];
    memset(integers + held, 0, BLOCK - held);
    pack_some(integers, 1, bits, last);
    memcpy(packed, last, (held * bits + 7) / 8);
  }
}

// Values `begin` (a multiple of 8) and on of a weight of which `packed` has `bytes` bytes in all, `size` of them; every
// `group` values share a scale.
static void unpack_weight(const uint8_t* packed, int64_t bytes, int bits, const float* scale, int64_t group,
                          int64_t begin, int64_t size, float* values) {
  constexpr int64_t SOME = 2048;
  alignas(64) uint8_t held[SOME];
  const int sign = 1 << (bits - 1);
  packed += begin / BLOCK * bits;
  bytes -= begin / BLOCK * bits;
  for (int64_t start = 0; start < size; start += SOME) {
    const int64_t end = smaller(size, start + SOME), before = start / BLOCK * bits;
    const uint8_t* integers = packed + start;
    if (bits < 8) {
      unpack_some(packed + before, bytes - before, (end - start + BLOCK - 1) / BLOCK, bits, held);
      integers = held;
    }
    for (int64_t i = start; i < end;) {
      const int64_t row = (begin + i) / group, until = smaller(end, (row + 1) * group - begin);
      const float by = scale[row];
      float* __restrict const to = values + i;
      const uint8_t* __restrict const from = integers + (i - start);
      for (int64_t j = 0; j < until - i; j++) to[j] = static_cast<float>((from[j] ^ sign) - sign) * by;
      i = until;
    }
  }
}

}  // namespace LEVEL
}  // namespace fedhq
