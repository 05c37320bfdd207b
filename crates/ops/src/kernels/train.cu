// What training takes besides what serving has: gradients of norms, gates and activations, sums of rows, and matrices the other way
// round. All of it is f32.
#include "block.cuh"
#include "tables.cuh"

// Of the DiT's norms.
const float EPSILON = 1e-5f;

struct Transpose {
    const float *x;  // [rows, columns]
    float *out;      // [columns, rows]
    u32 rows;
    u32 columns;
};

// A block to 32 columns (grid x) and 32 rows (grid y).
KERNEL(transpose, Transpose, 256) {
    SHARED float tile[32][33];
    const u32 lane = lane_id(), column = blockIdx.x * 32 + lane, row = blockIdx.y * 32 + lane;
    for (u32 i = warp_id(); i < 32; i += 8) {
        const u32 from = blockIdx.y * 32 + i;
        if (from < a.rows && column < a.columns) tile[i][lane] = a.x[size_t(from) * a.columns + column];
    }
    barrier();
    for (u32 i = warp_id(); i < 32; i += 8) {
        const u32 to = blockIdx.x * 32 + i;
        if (to < a.columns && row < a.rows) a.out[size_t(to) * a.rows + row] = tile[lane][i];
    }
}

struct PickRows {
    const float *x;
    float *out;
    const u32 *rows;  // [picked]
    u32 width;
    u32 back;  // 0: out row i is x row rows[i]; 1: out row rows[i] is x row i
};

// A block to a row.
KERNEL(pick_rows, PickRows, 256) {
    const u32 row = a.rows[blockIdx.x];
    const float *from = a.x + size_t(a.back ? blockIdx.x : row) * a.width;
    float *to = a.out + size_t(a.back ? row : blockIdx.x) * a.width;
    for (u32 i = threadIdx.x; i < a.width; i += 256) to[i] = from[i];
}

struct NormBackward {
    const float *x;   // [rows, width]
    const float *dy;  // [rows, width]: the gradient of the norm's result
    float *dx;        // [rows, width], added to
    float *along;     // [rows, width]: dy times the normalised x, whose sums are the gain's gradient
    Tables tables;
    u32 gain;
    u32 width;
};

// A block to a row.
KERNEL(norm_backward, NormBackward, 256) {
    SHARED float scratch[8];
    const size_t start = size_t(blockIdx.x) * a.width;
    const float *x = a.x + start, *dy = a.dy + start, *gain = line_of(a.tables, blockIdx.x, a.gain), width = float(a.width);
    float sum = 0.0f, squares = 0.0f, inner = 0.0f, along = 0.0f;
    for (u32 i = threadIdx.x; i < a.width; i += 256) sum += x[i];
    const float mean = add_block(sum, scratch) / width;
    for (u32 i = threadIdx.x; i < a.width; i += 256) squares = fused(x[i] - mean, x[i] - mean, squares);
    const float inverse = 1.0f / square_root(add_block(squares, scratch) / width + EPSILON);
    for (u32 i = threadIdx.x; i < a.width; i += 256) {
        const float normal = (x[i] - mean) * inverse;
        inner += dy[i] * gain[i];
        along = fused(dy[i] * gain[i], normal, along);
        a.along[start + i] = dy[i] * normal;
    }
    inner = add_block(inner, scratch) / width;
    along = add_block(along, scratch) / width;
    for (u32 i = threadIdx.x; i < a.width; i += 256) {
        a.dx[start + i] += (dy[i] * gain[i] - inner - (x[i] - mean) * inverse * along) * inverse;
    }
}

struct GateBackward {
    const float *dx;  // [rows, width]: the gradient of x + gate * (y + bias)
    const float *y;   // [rows, width]
    float *dy;        // [rows, width]
    float *along;     // [rows, width]: dx (y + bias), whose sums are the gate's gradient
    Tables tables;
    u32 gate;
    u32 bias;  // NONE for none
    u32 width;
    u32 unused;
};

// A block to a row.
KERNEL(gate_backward, GateBackward, 256) {
    const size_t start = size_t(blockIdx.x) * a.width;
    const float *gate = line_of(a.tables, blockIdx.x, a.gate);
    const float *bias = a.bias == NONE ? nullptr : bias_of(a.tables, blockIdx.x, a.bias);
    for (u32 i = threadIdx.x; i < a.width; i += 256) {
        const float dx = a.dx[start + i], y = a.y[start + i];
        a.dy[start + i] = dx * gate[i];
        a.along[start + i] = dx * (bias ? y + bias[i] : y);
    }
}

struct GeluBackward {
    const float *y;  // [rows, width]
    float *dy;       // [rows, width]: the gradient of gelu(y + bias), then that of y
    Tables tables;
    u32 bias;
    u32 width;
};

DEVICE float gelu_derivative(float x) {
    const float scale = 0.7978846f, cube = 0.044715f;
    const float t = 1.0f - 2.0f / (exponential(2.0f * scale * (x + cube * x * x * x)) + 1.0f);
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * scale * (1.0f + 3.0f * cube * x * x);
}

// A block to a row.
KERNEL(gelu_backward, GeluBackward, 256) {
    const size_t start = size_t(blockIdx.x) * a.width;
    const float *bias = bias_of(a.tables, blockIdx.x, a.bias);
    for (u32 i = threadIdx.x; i < a.width; i += 256) a.dy[start + i] *= gelu_derivative(a.y[start + i] + bias[i]);
}

struct SumRows {
    const float *x;     // [rows, width]
    float *out;         // [groups, width]
    const u32 *order;   // the groups' rows, or null for all in order
    const u32 *starts;  // [groups + 1]: where in `order` each group begins
    u32 width;
    u32 unused;
};

// A block to 256 columns (grid x) and a group (grid y).
KERNEL(sum_rows, SumRows, 256) {
    const u32 column = blockIdx.x * 256 + threadIdx.x;
    if (column >= a.width) return;
    float sum = 0.0f;
    for (u32 i = a.starts[blockIdx.y]; i < a.starts[blockIdx.y + 1]; i++) {
        sum += a.x[size_t(a.order ? a.order[i] : i) * a.width + column];
    }
    a.out[size_t(blockIdx.y) * a.width + column] = sum;
}

struct TurnHeads {
    float *qkv;            // [rows, 3, heads, head_dim]: queries and keys are turned where they lie
    const float *cosines;  // [positions, head_dim / 2]
    const float *sines;
    u32 positions;  // rows of a sequence
    u32 heads;
    u32 head_dim;
    u32 back;     // 1: the other way, as gradients go
    float scale;  // what queries are multiplied with
    u32 unused;
};

// A block to a row.
KERNEL(turn_heads, TurnHeads, 256) {
    const u32 half = a.head_dim / 2, hidden = a.heads * a.head_dim;
    const size_t angles = size_t(blockIdx.x % a.positions) * half;
    float *row = a.qkv + size_t(blockIdx.x) * 3 * hidden;
    for (u32 i = threadIdx.x; i < hidden; i += 256) {
        // Pairs of all queries, then of all keys.
        const bool query = i < hidden / 2;
        const u32 pair = query ? i : i - hidden / 2;
        float *low = row + (query ? 0 : hidden) + pair / half * a.head_dim + pair % half, *high = low + half;
        const float cos = a.cosines[angles + pair % half], sin = a.back ? -a.sines[angles + pair % half] : a.sines[angles + pair % half];
        const float x = *low, y = *high, scale = query ? a.scale : 1.0f;
        *low = (x * cos - y * sin) * scale;
        *high = (y * cos + x * sin) * scale;
    }
}
