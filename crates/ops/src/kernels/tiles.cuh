// A matrix in 4.625 bits: the numbers of q4_K, laid out for the tensor cores. A tile is 16 outputs by 256 inputs; tiles lie
// [out / 16][input / 256], padded with zeros. Within a tile, lane 4 g + t of a warp has outputs g and g + 8 and, of every 64
// inputs, the sixteen from 16 t on; word s of its sixteen bytes holds inputs 4 s .. 4 s + 3 of these: nibbles p and p + 4 are
// the first and second of the pair (output g + 8 (p % 2), inputs 4 s + 2 (p / 2) and the next).
#pragma once
#include "device.cuh"

const int TILE_OUT = 16;
const int TILE_IN = 256;

struct Tile {
    uint4 quants[4][32];   // by 64 inputs, by lane
    uint4 levels[2][8];    // by t / 2, by g: for every 64 inputs and both outputs a scale and a minimum in 6 bits, a byte each
    u16 halves[8][4];      // by g: scale and minimum of output g, of output g + 8
};

// The 6-bit pair of 64 inputs `quarter` and output g + 8 `upper`.
DEVICE u32 level_of(uint4 levels, int quarter, int upper) {
    u32 word = quarter == 0 ? levels.x : quarter == 1 ? levels.y : quarter == 2 ? levels.z : levels.w;
    return upper ? word >> 16 : word & 0xffffu;
}

DEVICE u32 word_of(uint4 v, int index) { return index == 0 ? v.x : index == 1 ? v.y : index == 2 ? v.z : v.w; }

// One weight, for what reads single rows.
DEVICE float tile_weight(const Tile &tile, int output, int input) {
    const int g = output % 8, upper = output / 8, quarter = input / 64, t = input % 64 / 16, s = input % 16 / 4, i = input % 4;
    const u32 word = word_of(tile.quants[quarter][4 * g + t], s);
    const int nibble = i / 2 * 2 + upper + 4 * (i % 2);
    const u32 level = level_of(tile.levels[t / 2][g], quarter, upper);
    const float scale = half_to_float(tile.halves[g][2 * upper]) * float(level & 0xffu);
    const float minimum = half_to_float(tile.halves[g][2 * upper + 1]) * float(level >> 8);
    return scale * float(word >> (4 * nibble) & 15u) - minimum;
}
