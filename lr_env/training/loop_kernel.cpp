// The scalar products of one training's step in a single pass: of gradients g, the gradients before, the optimizer's directions u, which are never
// stored, and weights w. The same pass stores the gradients for the next step, rounded to bfloat16: half the memory to pass through.

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

namespace {

using Vector = at::vec::Vectorized<float>;
using Rounded = at::vec::Vectorized<c10::BFloat16>;  // twice as many
constexpr int LANES = Vector::size();
constexpr int64_t BLOCK = 8192;  // elements whose products are added up in float32; the sums of blocks are added in float64
constexpr int64_t TO_SHARE = 65536;  // elements of a tensor that is worth more threads than one
constexpr int PRODUCTS = 5;

struct Tensors {  // of a parameter
  int64_t count, rule, group;
  const float *gradients, *weights;
  c10::BFloat16* before;  // may be null
  const float *first, *second, *step;  // the optimizer's state, or null
};

struct Rule {  // of a parameter group, in the order of its numbers
  double is_adam, factor, weight_decay, decoupled_decay, scale, momentum, nesterov, beta1, beta2, epsilon;
};

// SGD: u = of_gradients e + of_first m with e = factor g + weight_decay w. Adam: with the moments after e, and decoupled_decay w besides.
struct Numbers {
  float factor, weight_decay, decoupled_decay, of_gradients, of_first, of_squares, of_second, correction, of_quotient, epsilon;
};

Numbers numbers(const Rule& rule, const Tensors& tensors) {
  const double s = rule.scale, mu = tensors.first ? rule.momentum : 0;
  double of_gradients = s * (rule.nesterov ? 1 + rule.momentum : 1), of_first = s * (rule.nesterov ? mu * mu : mu);
  double step = 1, correction = 1, of_quotient = 1;
  if (rule.is_adam) {
    step = *tensors.step + 1;
    of_gradients = 1 - rule.beta1, of_first = rule.beta1;
    correction = 1 / (1 - std::pow(rule.beta2, step)), of_quotient = s / (1 - std::pow(rule.beta1, step));
  }
  return {float(rule.factor), float(rule.weight_decay), float(s * rule.decoupled_decay), float(of_gradients), float(of_first),
          float(1 - rule.beta2), float(rule.beta2), float(correction), float(of_quotient), float(rule.epsilon)};
}

template <bool HAS_FIRST, bool IS_ADAM>
void take_block(const Tensors& tensors, const Numbers& n, int64_t start, int64_t stop, double* totals) {
  Vector sums[2][PRODUCTS];
  for (auto& chain : sums)
    for (auto& sum : chain) sum = Vector(0);
  const auto take = [&](int64_t i, int count, const Vector& before, Vector* sum) {
    const auto load = [&](const float* values) { return count == LANES ? Vector::loadu(values + i) : Vector::loadu(values + i, count); };
    const Vector g = load(tensors.gradients), w = load(tensors.weights), e = fmadd(w, Vector(n.weight_decay), g * Vector(n.factor));
    Vector u = e * Vector(n.of_gradients);
    if constexpr (HAS_FIRST) u = fmadd(load(tensors.first), Vector(n.of_first), u);
    if constexpr (IS_ADAM) {
      const Vector squares = fmadd(load(tensors.second), Vector(n.of_second), e * e * Vector(n.of_squares));
      u = u * Vector(n.of_quotient) / ((squares * Vector(n.correction)).sqrt() + Vector(n.epsilon));
      u = fmadd(w, Vector(n.decoupled_decay), u);
      if (count < LANES) u = Vector::set(Vector(0), u, count);  // 0 / 0 beyond the end
    }
    sum[0] = fmadd(g, g, sum[0]);
    sum[1] = fmadd(g, before, sum[1]);
    sum[2] = fmadd(g, u, sum[2]);
    sum[3] = fmadd(u, u, sum[3]);
    sum[4] = fmadd(w, w, sum[4]);
    return g;
  };
  const auto take_two = [&](int64_t i, int count) {
    Vector first(0), second(0);
    if (tensors.before)
      std::tie(first, second) = at::vec::convert_bfloat16_float(
          count == 2 * LANES ? Rounded::loadu(tensors.before + i) : Rounded::loadu(tensors.before + i, count));
    first = take(i, std::min(LANES, count), first, sums[0]);
    if (count > LANES) second = take(i + LANES, count - LANES, second, sums[1]);
    if (tensors.before) at::vec::convert_float_bfloat16(first, second).store(tensors.before + i, count);
  };
  int64_t i = start;
  for (; i + 2 * LANES <= stop; i += 2 * LANES) take_two(i, 2 * LANES);
  if (i < stop) take_two(i, int(stop - i));
  for (int k = 0; k < PRODUCTS; ++k) {
    float lanes[LANES];
    (sums[0][k] + sums[1][k]).store(lanes);
    totals[k] = 0;
    for (float lane : lanes) totals[k] += lane;
  }
}

}  // namespace

// Adds to `totals`, (groups, PRODUCTS), what each of the parameters gives; the same for any number of threads. `table`: a row of them for each
// member of Tensors.
extern "C" void measure_loop(int64_t parameters, const int64_t* table, const Rule* rules, int threads, double* totals) {
  for (int64_t parameter = 0; parameter < parameters; ++parameter) {
    const auto number = [&](int row) { return table[row * parameters + parameter]; };
    const auto floats = [&](int row) { return reinterpret_cast<const float*>(number(row)); };
    const Tensors tensors{number(0), number(1), number(2), floats(3), floats(4), reinterpret_cast<c10::BFloat16*>(number(5)), floats(6), floats(7), floats(8)};
    const Rule& rule = rules[tensors.rule];
    const Numbers n = numbers(rule, tensors);
    const auto take = rule.is_adam ? take_block<true, true> : tensors.first ? take_block<true, false> : take_block<false, false>;
    const int64_t blocks = (tensors.count + BLOCK - 1) / BLOCK;
    std::vector<double> of_blocks(blocks * PRODUCTS);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && tensors.count >= TO_SHARE)
    for (int64_t block = 0; block < blocks; ++block)
      take(tensors, n, block * BLOCK, std::min(tensors.count, (block + 1) * BLOCK), &of_blocks[block * PRODUCTS]);
    for (int64_t k = 0; k < blocks * PRODUCTS; ++k) totals[tensors.group * PRODUCTS + k % PRODUCTS] += of_blocks[k];
  }
}
