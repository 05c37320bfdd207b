// Sums over the numbers of a warp.
#pragma once
#include "device.cuh"

DEVICE float greatest_of_warp(float x) {
    for (int mask = 16; mask > 0; mask >>= 1) x = greater(x, shuffle_xor(x, mask));
    return x;
}

// The sum of lanes up to and with the own.
template <typename T>
DEVICE T add_up_to(T x) {
    for (int apart = 1; apart < 32; apart *= 2) {
        const T other = shuffle(x, lane_id() - apart & 31);
        x += lane_id() >= apart ? other : T(0);
    }
    return x;
}

struct Place {
    u32 index;      // NONE where there is none
    double before;  // the sum up to it
    double number;
};

// Where the running sum of `count` numbers exceeds a target, by a warp.
template <typename Number>
DEVICE Place place_of(Number number, u32 count, double target) {
    const u32 each = (count + 31) / 32, start = each * lane_id();
    const u32 first = start < count ? start : count, end = first + each < count ? first + each : count;
    double own = 0.0;
    for (u32 i = first; i < end; i++) own += number(i);
    const double through = add_up_to(own);
    const u32 lanes = votes(target < through);
    if (lanes == 0) return Place{NONE, 0.0, 0.0};
    const int lane = lowest_bit(lanes);
    Place place{first, through - own, 0.0};
    if (lane_id() == lane) {
        place.number = number(first);
        while (place.index + 1 < end && target >= place.before + place.number) {
            place.before += place.number;
            place.number = number(++place.index);
        }
    }
    return Place{shuffle(place.index, lane), shuffle(place.before, lane), shuffle(place.number, lane)};
}
