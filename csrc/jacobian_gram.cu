// Per-sample Jacobian and Gram of a dense layer, float32; the function that is computed is defined in kernels/jacobian_gram.py.
//
// Why beside the Triton kernel (kernels/triton_jacobian_gram.py): shared memory has addresses here, so a tile of 32 x 32
// parameters of 32 samples waits there in float32 (128 KiB), where Triton widens 16 x 32 of them at once: a third less is
// loaded for every multiply-add of a gradient, and only the lower triangle is multiplied. It also serves where CuPy is
// installed and Triton is not, and is dispatched only there. Neither has been timed on a device yet; where a measurement shows
// no gain this one loses its place.
//
// A block of 256 threads takes 32 samples of one group and a run of parameter tiles. Each warp forms the gradients of 4
// samples, one after the other: a lane holds 4 x 8 parameters, and while it multiplies, the next 8 positions are on their way
// to its registers. Then 36 blocks of 4 x 4 pairs of samples, times 7 shares of the tile's columns, are one a thread: products
// and sums in float64. More than 32 samples are taken in pairs of half blocks of 16. Launch partial_gram on groups * pairs *
// splits blocks with SHARED_BYTES of dynamic shared memory, then add_partials, which sums in a fixed order; nothing is atomic.
// Plain C++: nvcc and NVRTC, no headers.

typedef long long i64;

namespace {

constexpr int THREADS = 256, WARPS = 8;
constexpr int ROWS = 32, HALF = 16;        // samples of a block
constexpr int TILE = 32;                   // outputs and inputs of a tile
constexpr int DEPTH = 8;                   // positions staged at a time
constexpr int WIDTH = TILE * TILE + 1;     // odd: neighbouring samples lie in different banks
constexpr int STAGE = DEPTH * 2 * TILE;    // floats a warp stages
constexpr int PATCHES = 36, SHARES = 7;    // lower triangle in patches of 4 x 4 samples; shares of a tile's columns

struct Factor {
  const float* at;  // of this sample and tile, nullptr where the sample does not exist
  i64 position, channel;
  int channels;  // from the tile's first on
};

// DEPTH positions of this lane's channel; zero outside the tensor.
__device__ void fetch(const Factor& factor, int first, int positions, float (&values)[DEPTH]) {
  const int lane = threadIdx.x % 32;
  const bool real = factor.at != nullptr && lane < factor.channels;
#pragma unroll
  for (int k = 0; k < DEPTH; ++k)
    values[k] = real && first + k < positions ? factor.at[(first + k) * factor.position + lane * factor.channel] : 0.0f;
}

// One sample's tile of sum_q left_q right_q^T, written to `gradient` (outputs outermost).
__device__ void form(const Factor& left, const Factor& right, int positions, float* stage, float* gradient) {
  const int lane = threadIdx.x % 32, o = lane / 4 * 4, i = lane % 4 * 8;
  float sum[4][8] = {}, next_left[DEPTH], next_right[DEPTH];
  fetch(left, 0, positions, next_left);
  fetch(right, 0, positions, next_right);
  for (int first = 0; first < positions; first += DEPTH) {
    __syncwarp();
#pragma unroll
    for (int k = 0; k < DEPTH; ++k) {
      stage[k * TILE + lane] = next_left[k];
      stage[(DEPTH + k) * TILE + lane] = next_right[k];
    }
    __syncwarp();
    fetch(left, first + DEPTH, positions, next_left);
    fetch(right, first + DEPTH, positions, next_right);
#pragma unroll
    for (int k = 0; k < DEPTH; ++k) {
      const float4 a = *reinterpret_cast<const float4*>(stage + k * TILE + o);
      const float4 b = *reinterpret_cast<const float4*>(stage + (DEPTH + k) * TILE + i);
      const float4 c = *reinterpret_cast<const float4*>(stage + (DEPTH + k) * TILE + i + 4);
      const float rows[4] = {a.x, a.y, a.z, a.w}, columns[8] = {b.x, b.y, b.z, b.w, c.x, c.y, c.z, c.w};
#pragma unroll
      for (int y = 0; y < 4; ++y)
#pragma unroll
        for (int x = 0; x < 8; ++x) sum[y][x] += rows[y] * columns[x];
    }
  }
#pragma unroll
  for (int y = 0; y < 4; ++y)
#pragma unroll
    for (int x = 0; x < 8; ++x) gradient[(o + y) * TILE + i + x] = sum[y][x];
}

// Patch 0 is (0, 0), then (1, 0), (1, 1), (2, 0), ...
__device__ void place(int patch, int& row, int& column) {
  row = 0;
  while ((row + 1) * (row + 2) / 2 <= patch) ++row;
  column = 4 * (patch - row * (row + 1) / 2);
  row *= 4;
}

}  // namespace

// partial (groups, pairs, splits, ROWS, ROWS): the lower triangle of each block's sum over its tiles. Sample r of right serves
// `repeat` consecutive samples of left.
extern "C" __global__ void __launch_bounds__(256)
    partial_gram(const float* left, const float* right, double* partial, i64 samples, i64 positions, i64 outputs, i64 inputs,
                 i64 splits, i64 pairs, i64 tiles_per_split, i64 repeat, i64 left_group, i64 left_sample, i64 left_position,
                 i64 left_output, i64 right_group, i64 right_sample, i64 right_position, i64 right_input) {
  extern __shared__ float4 shared[];
  float* const stage = reinterpret_cast<float*>(shared) + threadIdx.x / 32 * STAGE;
  float* const gradients = reinterpret_cast<float*>(shared) + WARPS * STAGE;
  const i64 split = blockIdx.x % splits, pair = blockIdx.x / splits % pairs, group = blockIdx.x / splits / pairs;
  i64 high = 1;
  while (high * (high + 1) / 2 <= pair) ++high;
  const i64 low = pair - high * (high - 1) / 2;

  const int thread = threadIdx.x, share = thread / PATCHES;
  int row, column;
  place(thread % PATCHES, row, column);
  double sum[4][4] = {};
  const i64 tiles_i = (inputs + TILE - 1) / TILE, tiles = (outputs + TILE - 1) / TILE * tiles_i;
  for (i64 tile = split * tiles_per_split; tile < (split + 1) * tiles_per_split && tile < tiles; ++tile) {
    const i64 o = tile / tiles_i * TILE, i = tile % tiles_i * TILE;
    for (int local = thread / 32; local < ROWS; local += WARPS) {
      const i64 sample = local < HALF ? low * HALF + local : (high - 1) * HALF + local;
      const bool real = sample < samples;
      const float* const a = left + group * left_group + sample * left_sample + o * left_output;
      const float* const b = right + group * right_group + sample / repeat * right_sample + i * right_input;
      form({real ? a : nullptr, left_position, left_output, static_cast<int>(outputs - o)},
           {real ? b : nullptr, right_position, right_input, static_cast<int>(inputs - i)}, static_cast<int>(positions), stage,
           gradients + local * WIDTH);
    }
    __syncthreads();
    if (share < SHARES)
      for (int p = share; p < TILE * TILE; p += SHARES) {
        double a[4], b[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) a[k] = gradients[(row + k) * WIDTH + p], b[k] = gradients[(column + k) * WIDTH + p];
#pragma unroll
        for (int y = 0; y < 4; ++y)
#pragma unroll
          for (int x = 0; x < 4; ++x) sum[y][x] += a[y] * b[x];
      }
    __syncthreads();
  }

  double* const sums = reinterpret_cast<double*>(shared);  // (SHARES, ROWS, ROWS)
  if (share < SHARES)
    for (int y = 0; y < 4; ++y)
      for (int x = 0; x < 4; ++x) sums[(share * ROWS + row + y) * ROWS + column + x] = sum[y][x];
  __syncthreads();
  for (int element = thread; element < ROWS * ROWS; element += THREADS)
    if (element / ROWS >= element % ROWS) {
      double total = 0;
      for (int k = 0; k < SHARES; ++k) total += sums[k * ROWS * ROWS + element];
      partial[blockIdx.x * static_cast<i64>(ROWS * ROWS) + element] = total;
    }
}

// out (groups, samples, samples), `size` elements: the splits' sums in order; (r, s) and (s, r) read the same.
extern "C" __global__ void add_partials(const double* partial, double* out, i64 size, i64 samples, i64 splits, i64 pairs) {
  const i64 element = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
  if (element >= size) return;
  const i64 r = element / samples % samples, s = element % samples, upper = r > s ? r : s, lower = r > s ? s : r;
  const i64 high = upper / HALF > 1 ? upper / HALF : 1, low = upper / HALF == lower / HALF ? 0 : lower / HALF;
  const i64 row = upper % HALF + (upper / HALF == high ? HALF : 0), column = lower % HALF + (lower / HALF == high ? HALF : 0);
  const i64 pair = element / samples / samples * pairs + high * (high - 1) / 2 + low;
  double total = 0;
  for (i64 split = 0; split < splits; ++split) total += partial[((pair * splits + split) * ROWS + row) * ROWS + column];
  out[element] = total;
}
