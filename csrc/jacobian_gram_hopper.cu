// Per-sample Jacobian and Gram of a dense layer, float32, for compute capability 9.0; see kernels/jacobian_gram.py.
//
// Why beside csrc/jacobian_gram.cu: the same plan, with the two things that a Hopper has and older devices do not. The float64
// products run on the tensor cores (mma m16n8k16), whose float64 rate is twice that of the vector units (data sheet: 67 against 34
// TFLOP/s), and they are most of the work where a layer has fewer positions than samples. Factors come by bulk copies into shared
// memory: one instruction a warp moves 16 positions of both factors while the 16 before are multiplied, through no register, where
// the other kernel spends 16 registers and 16 guarded loads a lane on half as many. Nothing of this has been timed on a device
// yet; where a measurement shows no gain this one loses its place.
//
// A block of 256 threads takes 32 samples of one group and a run of parameter tiles. Each warp forms the gradients of 4 samples,
// 32 x 32 parameters each, in float32; then every warp multiplies 128 of the tile's 1024 columns, for the 6 blocks of 16 x 8 pairs
// of samples that meet the lower triangle, in float64. Launch partial_gram_hopper on groups * pairs * splits blocks with
// SHARED_BYTES of dynamic shared memory, then add_partials of csrc/jacobian_gram.cu; sums are in a fixed order, nothing is atomic.
// Rows of 32 channels are copied whole, so channels lie side by side, and rows begin at multiples of 16 bytes and have a multiple
// of 4 channels. Plain C++ and PTX: nvcc and NVRTC, no headers.

typedef long long i64;
typedef unsigned long long u64;

#ifndef HOST_PRIMITIVES  // the tests bring their own
namespace {

__device__ unsigned shared_address(const void* pointer) { return static_cast<unsigned>(__cvta_generic_to_shared(pointer)); }

__device__ void barrier_begin(u64* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// By one thread: so many bytes will arrive in this phase.
__device__ void barrier_expect(u64* barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}

__device__ void barrier_wait(u64* barrier, unsigned parity) {
  unsigned done = 0;
  while (!done)
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
}

__device__ void bulk_copy(float* to, const float* from, unsigned bytes, u64* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

// c (16 x 8) += a (16 x 16) b (16 x 8). With g = lane / 4 and t = lane % 4 a lane holds a[i] = A[g + 8 (i % 2)][t + 4 (i / 2)],
// b[i] = B[t + 4 i][g] and c[i] = C[g + 8 (i / 2)][2 t + i % 2].
__device__ void multiply(double (&c)[4], const double (&a)[8], const double (&b)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7, %8, %9, %10, %11}, "
      "{%12, %13, %14, %15}, {%0, %1, %2, %3};"
      : "+d"(c[0]), "+d"(c[1]), "+d"(c[2]), "+d"(c[3])
      : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(a[4]), "d"(a[5]), "d"(a[6]), "d"(a[7]), "d"(b[0]), "d"(b[1]), "d"(b[2]),
        "d"(b[3]));
}

}  // namespace
#endif

namespace {

constexpr int THREADS = 256, WARPS = 8;
constexpr int ROWS = 32, HALF = 16;      // samples of a block
constexpr int TILE = 32;                 // outputs and inputs of a tile
constexpr int DEPTH = 16;                // positions of a copy; both factors' are one copy a lane
constexpr int WIDTH = TILE * TILE + 4;   // 4 mod 32: the 8 samples and 4 columns of a load lie in different banks
constexpr int STAGE = DEPTH * 2 * TILE;  // floats of a stage; a warp has two
constexpr int COLUMNS = TILE * TILE / WARPS, STEP = 16;
constexpr int BLOCKS = 6;                // of 16 x 8 samples: rows 0-15 meet columns 0-15, rows 16-31 all

struct Factor {
  const float* at;  // of this sample and tile
  i64 position;
  int channels;     // from the tile's first on, at most TILE
};

// The copies of one warp: two stages, the barrier of each, and how many copies were begun and awaited.
struct Stages {
  float* memory;
  u64* barriers;
  unsigned begun, awaited;

  __device__ void begin(const Factor& left, const Factor& right, int first, int positions) {
    const int lane = threadIdx.x % 32, place = lane % DEPTH, count = positions - first < DEPTH ? positions - first : DEPTH;
    const float* const at = lane < DEPTH ? left.at : right.at;
    const i64 position = lane < DEPTH ? left.position : right.position;
    const int channels = lane < DEPTH ? left.channels : right.channels;
    u64* const barrier = barriers + begun % 2;
    float* const stage = memory + begun++ % 2 * STAGE;
    if (lane == 0) barrier_expect(barrier, count * 4 * (left.channels + right.channels));
    __syncwarp();
    if (place < count) bulk_copy(stage + lane * TILE, at + (first + place) * position, channels * 4, barrier);
  }

  __device__ const float* await() {
    barrier_wait(barriers + awaited % 2, awaited / 2 % 2);
    return memory + awaited++ % 2 * STAGE;
  }
};

// One sample's tile of sum_q left_q right_q^T, written to `gradient` (outputs outermost); zero outside the tensor, where stages
// hold whatever was there before.
__device__ void form(const Factor& left, const Factor& right, int positions, Stages& stages, float* gradient) {
  const int lane = threadIdx.x % 32, o = lane / 4 * 4, i = lane % 4 * 8;
  float sum[4][8] = {};
  if (positions > 0) stages.begin(left, right, 0, positions);
  for (int first = 0; first < positions; first += DEPTH) {
    if (first + DEPTH < positions) stages.begin(left, right, first + DEPTH, positions);
    const float* const stage = stages.await();
    const int count = positions - first < DEPTH ? positions - first : DEPTH;
    for (int k = 0; k < count; ++k) {
      const float4 a = *reinterpret_cast<const float4*>(stage + k * TILE + o);
      const float4 b = *reinterpret_cast<const float4*>(stage + (DEPTH + k) * TILE + i);
      const float4 c = *reinterpret_cast<const float4*>(stage + (DEPTH + k) * TILE + i + 4);
      const float rows[4] = {a.x, a.y, a.z, a.w}, columns[8] = {b.x, b.y, b.z, b.w, c.x, c.y, c.z, c.w};
#pragma unroll
      for (int y = 0; y < 4; ++y)
#pragma unroll
        for (int x = 0; x < 8; ++x) sum[y][x] += rows[y] * columns[x];
    }
    __syncwarp();  // every lane has read the stage that the next copy overwrites
  }
#pragma unroll
  for (int y = 0; y < 4; ++y)
#pragma unroll
    for (int x = 0; x < 8; ++x)
      gradient[(o + y) * TILE + i + x] = o + y < left.channels && i + x < right.channels ? sum[y][x] : 0.0f;
}

// This warp's columns of the products of all 32 samples.
__device__ void add_products(const float* gradients, double (&sums)[BLOCKS][4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
  for (int p = warp * COLUMNS + t; p < (warp + 1) * COLUMNS; p += STEP) {
    double a[2][8], b[4][4];
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int k = 0; k < 8; ++k) a[r][k] = gradients[(r * HALF + g + k % 2 * 8) * WIDTH + p + k / 2 * 4];
#pragma unroll
    for (int c = 0; c < 4; ++c)
#pragma unroll
      for (int k = 0; k < 4; ++k) b[c][k] = gradients[(c * 8 + g) * WIDTH + p + k * 4];
#pragma unroll
    for (int block = 0; block < BLOCKS; ++block) multiply(sums[block], a[block / 2 > 0], b[block < 2 ? block : block - 2]);
  }
}

}  // namespace

// partial (groups, pairs, splits, ROWS, ROWS): the lower triangle of each block's sum over its tiles. Sample r of right serves
// `repeat` consecutive samples of left. Strides of channels are 1, all others multiples of 4, as are outputs and inputs.
extern "C" __global__ void __launch_bounds__(256)
    partial_gram_hopper(const float* left, const float* right, double* partial, i64 samples, i64 positions, i64 outputs, i64 inputs,
                        i64 splits, i64 pairs, i64 tiles_per_split, i64 repeat, i64 left_group, i64 left_sample,
                        i64 left_position, i64 right_group, i64 right_sample, i64 right_position) {
  extern __shared__ float4 shared[];
  const int thread = threadIdx.x, warp = thread / 32;
  float* const gradients = reinterpret_cast<float*>(shared);
  float* const stage = gradients + ROWS * WIDTH + warp * 2 * STAGE;
  u64* const barriers = reinterpret_cast<u64*>(gradients + ROWS * WIDTH + WARPS * 2 * STAGE) + warp * 2;
  const i64 split = blockIdx.x % splits, pair = blockIdx.x / splits % pairs, group = blockIdx.x / splits / pairs;
  i64 high = 1;
  while (high * (high + 1) / 2 <= pair) ++high;
  const i64 low = pair - high * (high - 1) / 2;
  if (thread % 32 == 0) {
    barrier_begin(barriers);
    barrier_begin(barriers + 1);
  }
  __syncthreads();

  Stages stages = {stage, barriers, 0, 0};
  double sums[BLOCKS][4] = {};
  const i64 tiles_i = (inputs + TILE - 1) / TILE, tiles = (outputs + TILE - 1) / TILE * tiles_i;
  for (i64 tile = split * tiles_per_split; tile < (split + 1) * tiles_per_split && tile < tiles; ++tile) {
    const i64 o = tile / tiles_i * TILE, i = tile % tiles_i * TILE;
    const int high_o = outputs - o < TILE ? outputs - o : TILE, high_i = inputs - i < TILE ? inputs - i : TILE;
    for (int local = warp; local < ROWS; local += WARPS) {
      const i64 sample = local < HALF ? low * HALF + local : (high - 1) * HALF + local;
      const Factor a = {left + group * left_group + sample * left_sample + o, left_position, high_o};
      const Factor b = {right + group * right_group + sample / repeat * right_sample + i, right_position, high_i};
      form(a, b, sample < samples ? static_cast<int>(positions) : 0, stages, gradients + local * WIDTH);
    }
    __syncthreads();
    add_products(gradients, sums);
    __syncthreads();
  }

  double* const found = reinterpret_cast<double*>(shared);  // (WARPS, ROWS, ROWS)
  for (int block = 0; block < BLOCKS; ++block)
    for (int k = 0; k < 4; ++k) {
      const int row = (block > 1) * HALF + thread % 32 / 4 + k / 2 * 8, column = (block < 2 ? block : block - 2) * 8;
      found[(warp * ROWS + row) * ROWS + column + thread % 4 * 2 + k % 2] = sums[block][k];
    }
  __syncthreads();
  for (int element = thread; element < ROWS * ROWS; element += THREADS)
    if (element / ROWS >= element % ROWS) {
      double total = 0;
      for (int k = 0; k < WARPS; ++k) total += found[k * ROWS * ROWS + element];
      partial[blockIdx.x * static_cast<i64>(ROWS * ROWS) + element] = total;
    }
}
