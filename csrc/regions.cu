// Region hashing; the function that is computed is defined in kernels/regions.py, and kernels/cuda_regions.py launches this one.
//
// Why beside the Triton kernel (kernels/triton_regions.py): a warp vote packs the signs of 32 neurons in one instruction, and lane
// k then keeps word k, so that 32 words are mixed at once. Triton has no vote: it builds a word by shifts and a tree of shuffles.
// Measured on the compiled code alone (sm_90, fp32, 64-bit hashes, long samples; nvcc 13.0, Triton 3.7.1): for every 16 neurons
// that a thread reads, about 170 instructions and no shuffle here, 346 with 20 shuffles there (whose loads are 16 bytes wide, these
// are 4). Neither has been timed on a device yet, so this one is not in the dispatch; where a device shows no gain it goes.
//
// Plain C++ and CUDA intrinsics: compiles with nvcc and NVRTC, without headers. A warp takes one sample and one split of its words,
// and leaves a sum; a second kernel adds the splits. Every sum is an integer mod 2^64, so any cut gives the same bits, and nothing
// is atomic.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

namespace {

constexpr u64 GOLDEN = 0x9E3779B97F4A7C15ull;
constexpr int AHEAD = 8;  // words whose loads are in flight together

__device__ u64 mix(u64 z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

__device__ float widened(float x) { return x; }
__device__ float widened(unsigned short bfloat16) { return __uint_as_float(static_cast<u32>(bfloat16) << 16); }

// Words first to first + 31 of a sample, one a lane; `count` of them exist.
template <typename T>
__device__ u64 packed_word(const T* __restrict__ row, int neurons, int first, int count, float threshold) {
  const int lane = threadIdx.x % 32;
  u64 mine = 0;
  for (int start = 0; start < count; start += AHEAD) {
    float low[AHEAD], high[AHEAD];  // values, not signs: a thread has only seven predicate registers to wait in
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      const int i = (first + start + k) * 64 + lane;
      low[k] = i < neurons ? widened(row[i]) : threshold;
      high[k] = i + 32 < neurons ? widened(row[i + 32]) : threshold;
    }
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      const u64 word = static_cast<u64>(__ballot_sync(~0u, high[k] > threshold)) << 32 | __ballot_sync(~0u, low[k] > threshold);
      if (lane == start + k) mine = word;
    }
  }
  return mine;
}

// Block split * blocks + b takes that split of the samples b * warps and on; writes partial (splits, samples, lanes). Neurons of
// one sample lie side by side, fewer than 2^31 - 2048, samples `stride` elements apart.
template <typename T>
__device__ void fold(const T* x, const unsigned char* gate, u64* partial, i64 samples, i64 neurons, i64 stride, i64 per_group,
                     i64 words_per_split, i64 threshold_bits, u64 seed0, u64 seed1, i64 lanes) {
  const int warps = blockDim.x / 32, lane = threadIdx.x % 32, blocks = (samples + warps - 1) / warps;
  const int split = blockIdx.x / blocks;
  const i64 sample = static_cast<i64>(blockIdx.x % blocks) * warps + threadIdx.x / 32;
  if (sample >= samples || (gate && !gate[sample / per_group])) return;  // whole warps; finish_signs does not read their sums
  const float threshold = __uint_as_float(static_cast<u32>(threshold_bits));
  const int words = (neurons + 63) / 64, begin = split * words_per_split;
  const int end = min(static_cast<int>(begin + words_per_split), words);
  u64 digest0 = 0, digest1 = 0;
  for (int first = begin; first < end; first += 32) {
    const u64 word = packed_word(x + sample * stride, static_cast<int>(neurons), first, min(32, end - first), threshold);
    if (first + lane < end) {
      const u64 place = (first + lane + 1) * GOLDEN;
      digest0 += mix(word ^ mix(seed0 + place));
      if (lanes == 2) digest1 += mix(word ^ mix(seed1 + place));
    }
  }
  for (int step = 16; step; step /= 2) {
    digest0 += __shfl_xor_sync(~0u, digest0, step);
    digest1 += __shfl_xor_sync(~0u, digest1, step);
  }
  if (lane < lanes) partial[(split * samples + sample) * lanes + lane] = lane ? digest1 : digest0;
}

}  // namespace

extern "C" __global__ void fold_signs_float32(const float* x, const unsigned char* gate, u64* partial, i64 samples, i64 neurons,
                                              i64 stride, i64 per_group, i64 words_per_split, i64 threshold_bits, u64 seed0,
                                              u64 seed1, i64 lanes) {
  fold(x, gate, partial, samples, neurons, stride, per_group, words_per_split, threshold_bits, seed0, seed1, lanes);
}

extern "C" __global__ void fold_signs_bfloat16(const unsigned short* x, const unsigned char* gate, u64* partial, i64 samples,
                                               i64 neurons, i64 stride, i64 per_group, i64 words_per_split, i64 threshold_bits,
                                               u64 seed0, u64 seed1, i64 lanes) {
  fold(x, gate, partial, samples, neurons, stride, per_group, words_per_split, threshold_bits, seed0, seed1, lanes);
}

// One thread an element of the state (samples, lanes), of which there are `size`: adds the splits' sums and mixes them in.
extern "C" __global__ void finish_signs(const u64* partial, const unsigned char* gate, const u64* state, u64* out, i64 size,
                                        i64 lanes, i64 splits, i64 per_group, u64 length) {
  const i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= size) return;
  u64 total = state[i];
  if (!gate || gate[i / lanes / per_group]) {
    total += length;
    for (i64 split = 0; split < splits; ++split) total += partial[split * size + i];
    total = mix(total);
  }
  out[i] = total;
}
