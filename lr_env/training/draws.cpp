// Draws of PyTorch's generators on a CPU, for many members at once, with the same bits.
//
// A generator is a Mersenne twister (Matsumoto and Nishimura 1998): 624 words of state and the number of those that are used up, as uint32;
// one more than there are where it was just seeded.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#pragma GCC optimize("tree-loop-vectorize")  // which PyTorch's compiler flags turn off

namespace {

constexpr int WORDS = 624, MIDDLE = 397;

struct Twister {
  uint32_t words[WORDS], used;

  static uint32_t twisted(uint32_t high, uint32_t low, uint32_t other) {
    const uint32_t mixed = (high & 0x80000000u) | (low & 0x7fffffffu);
    return other ^ (mixed >> 1) ^ (-(low & 1u) & 0x9908b0dfu);
  }

  void twist() {
    for (int i = 0; i < WORDS - MIDDLE; ++i) words[i] = twisted(words[i], words[i + 1], words[i + MIDDLE]);
    for (int i = WORDS - MIDDLE; i < WORDS - 1; ++i) words[i] = twisted(words[i], words[i + 1], words[i + MIDDLE - WORDS]);
    words[WORDS - 1] = twisted(words[WORDS - 1], words[0], words[MIDDLE - 1]);
    used = 0;
  }

  // The next `count` random words.
  void draw(int64_t count, uint32_t* target) {
    while (count > 0) {
      if (used >= WORDS) twist();
      const int64_t now = std::min<int64_t>(count, WORDS - used);
      for (int64_t i = 0; i < now; ++i) {
        uint32_t word = words[used + i];
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c5680u;
        word ^= (word << 15) & 0xefc60000u;
        target[i] = word ^ (word >> 18);
      }
      used += now, target += now, count -= now;
    }
  }
};

// NumPy's SeedSequence (after O'Neill 2015), of entropy and of the words of a spawn key that take 32 bits each.
struct Hash {
  uint32_t pool[4] = {}, constant = 0x43b0d7e5u;

  uint32_t hashed(uint32_t word, uint32_t factor = 0x931e8875u) {
    word ^= constant;
    constant *= factor;
    word *= constant;
    return word ^ (word >> 16);
  }

  static uint32_t mixed(uint32_t left, uint32_t right) {
    const uint32_t word = 0xca01f9ddu * left - 0x4973f715u * right;
    return word ^ (word >> 16);
  }

  explicit Hash(uint32_t entropy) {
    for (int i = 0; i < 4; ++i) pool[i] = hashed(i ? 0 : entropy);
    for (int source = 0; source < 4; ++source)
      for (int target = 0; target < 4; ++target)
        if (source != target) pool[target] = mixed(pool[target], hashed(pool[source]));
  }

  void add(uint32_t word) {
    for (uint32_t& each : pool) each = mixed(each, hashed(word));
  }

  void generate(int64_t count, uint32_t* words) {
    constant = 0x8b51f9ddu;
    for (int64_t i = 0; i < count; ++i) words[i] = hashed(pool[i % 4], 0x58f38dedu);
  }
};

static_assert(sizeof(Twister) == 4 * (WORDS + 1));

}  // namespace

// The first `length` words of the streams with number `purpose` of the episodes of seeds, both (count,): words (count, length).
extern "C" void hash_streams(int64_t count, const uint32_t* seeds, const uint32_t* episodes, uint32_t purpose, int64_t length, uint32_t* words) {
  for (int64_t i = 0; i < count; ++i) {
    Hash hash(seeds[i]);
    hash.add(episodes[i]);
    hash.add(purpose);
    hash.generate(length, words + i * length);
  }
}

// Seeds the generators in `rows (count,)` with `seeds (count,)`; several side by side, as each word waits for the last one.
extern "C" void seed_generators(int64_t count, int threads, const int64_t* rows, const uint64_t* seeds, Twister* generators) {
  constexpr int SIDE = 16;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (int64_t first = 0; first < count; first += SIDE) {
    const int own = static_cast<int>(std::min<int64_t>(SIDE, count - first));
    uint32_t last[SIDE] = {};
    for (int i = 0; i < own; ++i) generators[rows[first + i]].words[0] = last[i] = static_cast<uint32_t>(seeds[first + i]);
    for (uint32_t word = 1; word < WORDS; ++word) {
      for (int i = 0; i < SIDE; ++i) last[i] = 1812433253u * (last[i] ^ (last[i] >> 30)) + word;
      for (int i = 0; i < own; ++i) generators[rows[first + i]].words[word] = last[i];
    }
    for (int i = 0; i < own; ++i) generators[rows[first + i]].used = WORDS + 1;
  }
}

// Vectors of uniform numbers, as `Tensor.uniform_` draws them, from the generators in `rows (count,)`.
//   starts, stops: (steps,), where in a vector each step draws; lows, highs: (steps,), between what; vectors: (count, size).
extern "C" void draw_uniform(int64_t count, int threads, const int64_t* rows, Twister* generators, int64_t steps, const int64_t* starts,
                             const int64_t* stops, const float* lows, const float* highs, int64_t size, float* vectors) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<uint32_t> words;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t step = 0; step < steps; ++step) {
        words.resize(stops[step] - starts[step]);
        generators[rows[i]].draw(words.size(), words.data());
        const int64_t kept = std::min(stops[step], size) - starts[step];  // what lies behind is drawn for the generator's sake
        const float low = lows[step], high = highs[step], width = high - low;
        float* target = vectors + i * size + starts[step];
        for (int64_t j = 0; j < kept; ++j) {
          const float value = static_cast<float>(static_cast<int32_t>(words[j] & 0xffffffu) * (1.0 / (1 << 24)) * width + low);
          target[j] = value == high ? low : value;  // rounded up to what is not drawn
        }
      }
    }
  }
}

// Orders of `examples` examples, as `torch.randperm` draws them, from the generators in `rows (count,)`; the first `batches` batches of `batch` are kept.
//   columns: (count,); known: what stands for the examples of the generators in `rows`, (N, examples), or null for themselves;
//   orders: (batches, width, batch), written in the columns.
extern "C" void draw_orders(int64_t count, int threads, const int64_t* rows, const int64_t* columns, Twister* generators, int64_t examples,
                            int64_t batches, int64_t batch, int64_t width, const int64_t* known, int64_t* orders) {
  std::vector<uint64_t> inverses(examples);  // a remainder by two products (Lemire, Kaser and Kurz 2019)
  for (int64_t j = 0; j < examples; ++j) inverses[j] = UINT64_MAX / (examples - j) + 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<uint32_t> order(examples), words(examples);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; ++i) {
      generators[rows[i]].draw(examples - 1, words.data());
      std::iota(order.begin(), order.end(), 0u);
      for (int64_t j = 0; j < examples - 1; ++j) {
        const uint64_t low = inverses[j] * words[j];
        std::swap(order[j], order[j + static_cast<uint32_t>((static_cast<unsigned __int128>(low) * (examples - j)) >> 64)]);
      }
      const int64_t* own = known ? known + rows[i] * examples : nullptr;
      for (int64_t number = 0; number < batches; ++number) {
        int64_t* target = orders + (number * width + columns[i]) * batch;
        for (int64_t j = 0; j < batch; ++j) {
          const uint32_t example = order[number * batch + j];
          target[j] = own ? own[example] : example;
        }
      }
    }
  }
}
