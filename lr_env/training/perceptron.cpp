// One SGD step of many multilayer perceptrons, one after the other, so that all that belongs to a member stays in the processor's nearest cache:
// the update of its weights, its minibatch, the forward and the backward pass, and the scalar products of its gradient.
//
// Compiled with a header in front that says what the perceptron is:
//   using Number = float;                                  // or double
//   constexpr int BATCH, LAYERS, GROUPS;                   // examples, linear layers, parameter groups
//   constexpr int WIDTHS[LAYERS + 1];                      // inputs, hidden layers, outputs
//   constexpr bool HAS_BIAS[LAYERS];
//   constexpr int GROUP_OF_WEIGHT[LAYERS], GROUP_OF_BIAS[LAYERS];
//   constexpr bool IS_CLASSIFICATION;                      // cross-entropy with classes as targets, or the mean squared error
//   enum Activation { IDENTITY, RELU, TANH, SIGMOID };
//   constexpr Activation ACTIVATIONS[LAYERS];             // of each layer's outputs; of the last, the identity
//   enum Rule { ELSEWHERE, SGD, MOMENTUM, ADAM };
//   constexpr Rule RULE;                                   // of the directions; ELSEWHERE if they are not made here
//   constexpr bool IS_NESTEROV, IS_DECOUPLED;
//   constexpr double WEIGHT_DECAY, BETA1, BETA2, EPSILON;  // BETA1 is the momentum
//
// Matrices lie row by row; rows of scratch memory are padded to whole vectors.

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace {

using Vector = at::vec::Vectorized<Number>;
constexpr int LANES = Vector::size();
constexpr int ACCUMULATORS = sizeof(Number) * LANES >= 64 ? 16 : 8;  // vectors of sums that fit into registers beside the factors

constexpr bool HAS_DIRECTIONS = RULE == MOMENTUM || RULE == ADAM || (RULE == SGD && WEIGHT_DECAY != 0);  // other ones than the gradients
constexpr bool STORES_DIRECTIONS = HAS_DIRECTIONS && (RULE != MOMENTUM || IS_NESTEROV);  // else the momentum is the direction
constexpr int PRODUCTS = HAS_DIRECTIONS ? 5 : 3;

constexpr int padded(int count) { return (count + LANES - 1) / LANES * LANES; }

constexpr int largest_layer() {
  int largest = 0;
  for (int layer = 0; layer < LAYERS; ++layer)
    largest = std::max(largest, std::max(WIDTHS[layer] * padded(WIDTHS[layer + 1]), WIDTHS[layer + 1] * padded(WIDTHS[layer])));
  return largest;
}

constexpr int widest() { return *std::max_element(WIDTHS, WIDTHS + LAYERS + 1); }

constexpr int values_before(int layer) {  // of all layers' outputs, the inputs first
  int count = 0;
  for (int before = 0; before < layer; ++before) count += BATCH * padded(WIDTHS[before]);
  return count;
}

struct Scratch {
  alignas(64) Number values[values_before(LAYERS + 1)];  // inputs and outputs of the layers, (BATCH, width) each
  alignas(64) Number slopes[2][padded(BATCH) * padded(widest())];  // of the loss by a layer's outputs
  alignas(64) Number turned[largest_layer()];                                                 // a layer's weights, transposed or padded
  alignas(64) Number gradient[largest_layer()];
  alignas(64) Number row[padded(widest())];
};

// C[m, n] = start[n] + sum over k of A(m, k) B[k, n] for ROWS rows and COLUMNS vectors of columns.
template <int ROWS, int COLUMNS>
inline void multiply_block(const Number* a, int64_t row_step, int64_t sum_step, const Number* b, int b_row, const Number* start, Number* c, int c_row,
                           int count) {
  Vector sums[ROWS][COLUMNS];
  for (int column = 0; column < COLUMNS; ++column) {
    const Vector first = start ? Vector::loadu(start + column * LANES) : Vector(Number(0));
    for (int row = 0; row < ROWS; ++row) sums[row][column] = first;
  }
  for (int k = 0; k < count; ++k) {
    Vector factors[COLUMNS];
    for (int column = 0; column < COLUMNS; ++column) factors[column] = Vector::loadu(b + k * b_row + column * LANES);
    for (int row = 0; row < ROWS; ++row) {
      const Vector factor(a[row * row_step + k * sum_step]);
      for (int column = 0; column < COLUMNS; ++column) sums[row][column] = at::vec::fmadd(factor, factors[column], sums[row][column]);
    }
  }
  for (int row = 0; row < ROWS; ++row)
    for (int column = 0; column < COLUMNS; ++column) sums[row][column].store(c + row * c_row + column * LANES);
}

template <int COLUMNS>
inline void multiply_columns(const Number* a, int64_t row_step, int64_t sum_step, const Number* b, int b_row, const Number* start, Number* c, int c_row,
                             int rows, int count) {
  constexpr int ROWS = ACCUMULATORS / COLUMNS;
  int row = 0;
  for (; row + ROWS <= rows; row += ROWS)
    multiply_block<ROWS, COLUMNS>(a + row * row_step, row_step, sum_step, b, b_row, start, c + row * c_row, c_row, count);
  if constexpr (ROWS >= 4)
    for (; row + ROWS / 2 <= rows; row += ROWS / 2)
      multiply_block<ROWS / 2, COLUMNS>(a + row * row_step, row_step, sum_step, b, b_row, start, c + row * c_row, c_row, count);
  for (; row < rows; ++row) multiply_block<1, COLUMNS>(a + row * row_step, row_step, sum_step, b, b_row, start, c + row * c_row, c_row, count);
}

// C (rows, columns) = start + A B, where A(m, k) = a[m row_step + k sum_step]; rows of B and C are padded.
inline void multiply(const Number* a, int64_t row_step, int64_t sum_step, const Number* b, const Number* start, Number* c, int rows, int columns,
                     int count) {
  const int width = padded(columns);
  int column = 0;
  for (; column + 4 * LANES <= width; column += 4 * LANES)
    multiply_columns<4>(a, row_step, sum_step, b + column, width, start ? start + column : nullptr, c + column, width, rows, count);
  for (; column + 2 * LANES <= width; column += 2 * LANES)
    multiply_columns<2>(a, row_step, sum_step, b + column, width, start ? start + column : nullptr, c + column, width, rows, count);
  for (; column < width; column += LANES)
    multiply_columns<1>(a, row_step, sum_step, b + column, width, start ? start + column : nullptr, c + column, width, rows, count);
}

// (rows, columns), of which each row begins `source_row` behind the last -> (columns, padded rows); what pads is left as it is.
inline void transpose(const Number* source, int source_row, int rows, int columns, Number* target) {
  const int width = padded(rows);
  for (int row = 0; row < rows; row += LANES)
    for (int column = 0; column < columns; column += LANES)
      at::vec::transpose_mxn<Number>(source + row * source_row + column, source_row, target + column * width + row, width, std::min(LANES, rows - row),
                                     std::min(LANES, columns - column));
}

inline void copy_padded(const Number* source, int rows, int columns, Number factor, Number* target) {
  const int width = padded(columns);
  for (int row = 0; row < rows; ++row) {
    int column = 0;
    for (; column + LANES <= columns; column += LANES) (Vector::loadu(source + row * columns + column) * Vector(factor)).store(target + row * width + column);
    if (column < columns) (Vector::loadu(source + row * columns + column, columns - column) * Vector(factor)).store(target + row * width + column);
  }
}

inline Number sum(Vector values) {
  return at::vec::vec_reduce_all<Number>([](const Vector& left, const Vector& right) { return left + right; }, values);
}

// Sum of the cross-entropies of the first `count` examples by their scores (BATCH, classes), and the slopes of their mean (classes, BATCH): examples
// lie side by side in vectors.
inline double cross_entropy(const Number* scores, const int64_t* targets, const int64_t* indices, int count, Number* slopes) {
  constexpr int CLASSES = WIDTHS[LAYERS], WIDTH = padded(BATCH);
  transpose(scores, padded(CLASSES), BATCH, CLASSES, slopes);
  double total = 0;
  for (int example = 0; example < WIDTH; example += LANES) {
    Vector highest = Vector::loadu(slopes + example);
    for (int row = 1; row < CLASSES; ++row) highest = at::vec::maximum(highest, Vector::loadu(slopes + row * WIDTH + example));
    Vector normaliser(Number(0));
    for (int row = 0; row < CLASSES; ++row) {
      const Vector exponential = (Vector::loadu(slopes + row * WIDTH + example) - highest).exp();
      exponential.store(slopes + row * WIDTH + example);
      normaliser = normaliser + exponential;
    }
    const int own = std::clamp(count - example, 0, LANES);  // behind are no examples, and slopes of 0
    total += sum(Vector::set(Vector(Number(0)), normaliser.log() + highest, own));
    const Vector factor = Vector::set(Vector(Number(0)), Vector(Number(1) / BATCH) / normaliser, own);
    for (int row = 0; row < CLASSES; ++row) (Vector::loadu(slopes + row * WIDTH + example) * factor).store(slopes + row * WIDTH + example);
  }
  for (int example = 0; example < count; ++example) {
    const int64_t target = targets[indices[example]];
    total -= scores[example * padded(CLASSES) + target];
    slopes[target * WIDTH + example] -= Number(1) / BATCH;
  }
  return total;
}

// Sum of the mean squared errors of the first `count` examples by their outputs (BATCH, width), and the slopes of their mean.
inline double squared_error(const Number* outputs, const Number* targets, const int64_t* indices, int count, Number* slopes) {
  constexpr int COUNT = WIDTHS[LAYERS], WIDTH = padded(COUNT);
  double total = 0;
  for (int example = 0; example < count; ++example) {
    Vector squares(Number(0));
    for (int column = 0; column < COUNT; column += LANES) {
      const int own = std::min(LANES, COUNT - column);
      const Vector target = Vector::loadu(targets + indices[example] * COUNT + column, own);
      const Vector error = Vector::set(Vector(Number(0)), Vector::loadu(outputs + example * WIDTH + column) - target, own);
      squares = at::vec::fmadd(error, error, squares);
      (error * Vector(Number(2) / (Number(COUNT) * BATCH))).store(slopes + example * WIDTH + column);
    }
    total += sum(squares);
  }
  return total / COUNT;
}

// How many of the first `count` examples have their highest score, the first of equal ones, in the target's class.
inline int correct(const Number* scores, const int64_t* targets, const int64_t* indices, int count) {
  int total = 0;
  for (int example = 0; example < count; ++example) {
    const Number* row = scores + example * padded(WIDTHS[LAYERS]);
    int best = 0;
    for (int column = 1; column < WIDTHS[LAYERS]; ++column)
      if (row[column] > row[best] || (std::isnan(row[column]) && !std::isnan(row[best]))) best = column;
    total += best == targets[indices[example]];
  }
  return total;
}

// Sums over the examples of slopes (units, BATCH) or, where `of_unit` is 1, (BATCH, units).
inline void sum_examples(const Number* slopes, int64_t of_example, int64_t of_unit, int units, Number* sums) {
  if (of_unit == 1) {
    for (int unit = 0; unit < units; unit += LANES) {
      Vector total(Number(0));
      for (int example = 0; example < BATCH; ++example) total = total + Vector::loadu(slopes + example * of_example + unit);
      total.store(sums + unit);
    }
  } else {
    for (int unit = 0; unit < units; ++unit) {
      Vector total(Number(0));
      for (int example = 0; example < BATCH; example += LANES) total = total + Vector::loadu(slopes + unit * of_unit + example);
      sums[unit] = sum(total);
    }
  }
}

template <class Function>
inline void change(Number* values, int count, Function function) {
  for (int i = 0; i < count; i += LANES) function(Vector::loadu(values + i), i).store(values + i);
}

inline void activate(Activation kind, Number* values, int count) {
  const Vector zero(Number(0)), one(Number(1));
  if (kind == RELU) change(values, count, [&](Vector z, int) { return at::vec::maximum(z, zero); });
  if (kind == TANH) change(values, count, [&](Vector z, int) { return z.tanh(); });
  if (kind == SIGMOID) change(values, count, [&](Vector z, int) { return one / (one + z.neg().exp()); });
}

// Slopes by activated values become slopes by what was activated.
inline void differentiate(Activation kind, const Number* values, Number* slopes, int count) {
  const Vector zero(Number(0)), one(Number(1));
  const auto value = [&](int i) { return Vector::loadu(values + i); };
  if (kind == RELU) change(slopes, count, [&](Vector slope, int i) { return slope & (value(i) > zero); });
  if (kind == TANH) change(slopes, count, [&](Vector slope, int i) { return slope * (one - value(i) * value(i)); });
  if (kind == SIGMOID) change(slopes, count, [&](Vector slope, int i) { return slope * value(i) * (one - value(i)); });
}

struct Products {  // of the gradient and the last one, and of the weights
  Vector squares{Number(0)}, with_previous{Number(0)};
  inline void add(Vector gradient, Vector previous) {
    squares = at::vec::fmadd(gradient, gradient, squares);
    with_previous = at::vec::fmadd(gradient, previous, with_previous);
  }
};

// w <- w - rate u; returns the sum of the squares of the new weights.
inline Number update(Number* weights, const Number* directions, Number rate, int count) {
  const Vector factor(-rate);
  Vector squares(Number(0));
  int i = 0;
  for (; i + LANES <= count; i += LANES) {
    const Vector weight = at::vec::fmadd(Vector::loadu(directions + i), factor, Vector::loadu(weights + i));
    weight.store(weights + i);
    squares = at::vec::fmadd(weight, weight, squares);
  }
  if (i < count) {
    const Vector weight = at::vec::fmadd(Vector::loadu(directions + i, count - i), factor, Vector::loadu(weights + i, count - i));
    weight.store(weights + i, count - i);
    squares = at::vec::fmadd(weight, weight, squares);
  }
  return sum(squares);
}

// Takes over rows of a fresh gradient, which are padded, where the last gradient stands.
inline void take_over(const Number* fresh, int rows, int columns, const Number* previous, Number* gradient, Products& products) {
  const int width = padded(columns);
  for (int row = 0; row < rows; ++row) {
    const int64_t start = int64_t(row) * columns;
    int column = 0;
    for (; column + LANES <= columns; column += LANES) {
      const Vector value = Vector::loadu(fresh + row * width + column);
      products.add(value, Vector::loadu(previous + start + column));
      value.store(gradient + start + column);
    }
    if (column < columns) {
      const Vector value = Vector::loadu(fresh + row * width + column, columns - column);
      products.add(value, Vector::loadu(previous + start + column, columns - column));
      value.store(gradient + start + column, columns - column);
    }
  }
}

// What the optimizer keeps of one member, and the directions that it makes.
struct Moments {
  Number *directions, *first, *second;       // (P,), or null
  Number of_first = 1, of_second_root = 1;  // corrections of Adam's
};

Moments moments(Number* directions, Number* first, Number* second, int64_t step) {  // at the step of this number
  if (RULE != ADAM) return {directions, first, second};
  return {directions, first, second, Number(1 / (1 - std::pow(BETA1, step))), Number(1 / std::sqrt(1 - std::pow(BETA2, step)))};
}

// The directions of some weights; adds their products with the gradients, and their squares.
inline void direct(const Number* weights, const Number* gradients, const Moments& own, int64_t start, int count, Number* with_gradients, Number* squares) {
  const Vector of_first(own.of_first), of_root(own.of_second_root), decay{Number(WEIGHT_DECAY)};
  Vector slopes(Number(0)), norms(Number(0));
  for (int i = 0; i < count; i += LANES) {
    const int part = std::min(LANES, count - i);
    const auto load = [&](const Number* values) { return part == LANES ? Vector::loadu(values + i) : Vector::loadu(values + i, part); };
    const Vector gradient = load(gradients + start), weight = load(weights + start);
    Vector direction = WEIGHT_DECAY != 0 && !IS_DECOUPLED ? at::vec::fmadd(weight, decay, gradient) : gradient;
    if constexpr (RULE == MOMENTUM) {
      const Vector momentum = at::vec::fmadd(load(own.first + start), Vector(Number(BETA1)), direction);
      momentum.store(own.first + start + i, part);
      direction = IS_NESTEROV ? at::vec::fmadd(momentum, Vector(Number(BETA1)), direction) : momentum;
    }
    if constexpr (RULE == ADAM) {
      const Vector mean = load(own.first + start), first = at::vec::fmadd(direction - mean, Vector(Number(1 - BETA1)), mean);
      const Vector second = at::vec::fmadd(direction * direction, Vector(Number(1 - BETA2)), load(own.second + start) * Vector(Number(BETA2)));
      first.store(own.first + start + i, part);
      second.store(own.second + start + i, part);
      direction = first * of_first / at::vec::fmadd(second.sqrt(), of_root, Vector(Number(EPSILON)));
      if (IS_DECOUPLED && WEIGHT_DECAY != 0) direction = at::vec::fmadd(weight, decay, direction);
    }
    if (part < LANES) direction = Vector::set(Vector(Number(0)), direction, part);
    if constexpr (STORES_DIRECTIONS) direction.store(own.directions + start + i, part);
    slopes = at::vec::fmadd(gradient, direction, slopes);
    norms = at::vec::fmadd(direction, direction, norms);
  }
  *with_gradients += sum(slopes);
  *squares += sum(norms);
}

// All layers' outputs for the first `count` examples of a minibatch.
inline void forward(const Number* weights, const Number* inputs, const int64_t* indices, int count, Number scale, Scratch& scratch) {
  for (int example = 0; example < count; ++example)
    copy_padded(inputs + indices[example] * WIDTHS[0], 1, WIDTHS[0], scale, scratch.values + example * padded(WIDTHS[0]));
  int64_t start = 0;
  for (int layer = 0; layer < LAYERS; ++layer) {
    const int fan_in = WIDTHS[layer], fan_out = WIDTHS[layer + 1], width = padded(fan_out);
    const Number* weight = weights + start;
    Number* outputs = scratch.values + values_before(layer + 1);
    transpose(weight, fan_in, fan_out, fan_in, scratch.turned);  // what pads its rows gives outputs that nobody reads
    if (HAS_BIAS[layer]) copy_padded(weight + fan_in * fan_out, 1, fan_out, Number(1), scratch.row);
    multiply(scratch.values + values_before(layer), padded(fan_in), 1, scratch.turned, HAS_BIAS[layer] ? scratch.row : nullptr, outputs, BATCH, fan_out,
             fan_in);
    activate(ACTIVATIONS[layer], outputs, BATCH * width);
    start += fan_out * (fan_in + HAS_BIAS[layer]);
  }
}

inline double loss_and_slopes(const void* targets, const int64_t* indices, int count, Scratch& scratch) {
  const Number* outputs = scratch.values + values_before(LAYERS);
  if constexpr (IS_CLASSIFICATION) {
    return cross_entropy(outputs, static_cast<const int64_t*>(targets), indices, count, scratch.slopes[0]);
  } else {
    return squared_error(outputs, static_cast<const Number*>(targets), indices, count, scratch.slopes[0]);
  }
}

inline Number step(Number* weights, const Number* directions, const Number* previous, Number* gradient, const Number* rates, const Number* inputs,
                   const void* targets, const int64_t* indices, Number scale, const Moments& kept, Number* norms, Scratch& scratch) {
  int64_t starts[LAYERS], size = 0;
  for (int layer = 0; layer < LAYERS; ++layer) {
    starts[layer] = size;
    const int count = WIDTHS[layer] * WIDTHS[layer + 1];
    norms[2 * GROUPS + GROUP_OF_WEIGHT[layer]] += update(weights + size, directions + size, rates[GROUP_OF_WEIGHT[layer]], count);
    size += count;
    if (HAS_BIAS[layer]) {
      norms[2 * GROUPS + GROUP_OF_BIAS[layer]] += update(weights + size, directions + size, rates[GROUP_OF_BIAS[layer]], WIDTHS[layer + 1]);
      size += WIDTHS[layer + 1];
    }
  }
  forward(weights, inputs, indices, BATCH, scale, scratch);
  const Number loss = loss_and_slopes(targets, indices, BATCH, scratch) / BATCH;
  Number* slopes = scratch.slopes[0];
  int64_t of_example = IS_CLASSIFICATION ? 1 : padded(WIDTHS[LAYERS]), of_unit = IS_CLASSIFICATION ? padded(BATCH) : 1;  // how far apart they lie
  for (int layer = LAYERS - 1; layer >= 0; --layer) {
    const int fan_in = WIDTHS[layer], fan_out = WIDTHS[layer + 1];
    const int64_t start = starts[layer];
    const Number* values = scratch.values + values_before(layer);
    Products products, of_bias;
    multiply(slopes, of_unit, of_example, values, nullptr, scratch.gradient, fan_out, fan_in, BATCH);
    take_over(scratch.gradient, fan_out, fan_in, previous + start, gradient + start, products);
    norms[GROUP_OF_WEIGHT[layer]] += sum(products.squares);
    norms[GROUPS + GROUP_OF_WEIGHT[layer]] += sum(products.with_previous);
    if (HAS_BIAS[layer]) {
      sum_examples(slopes, of_example, of_unit, fan_out, scratch.row);
      const int64_t behind = start + int64_t(fan_in) * fan_out;
      take_over(scratch.row, 1, fan_out, previous + behind, gradient + behind, of_bias);
      norms[GROUP_OF_BIAS[layer]] += sum(of_bias.squares);
      norms[GROUPS + GROUP_OF_BIAS[layer]] += sum(of_bias.with_previous);
    }
    if (layer > 0) {
      copy_padded(weights + start, fan_out, fan_in, Number(1), scratch.turned);
      Number* below = scratch.slopes[slopes == scratch.slopes[0]];
      multiply(slopes, of_example, of_unit, scratch.turned, nullptr, below, BATCH, fan_in, fan_out);
      differentiate(ACTIVATIONS[layer - 1], values, below, BATCH * padded(fan_in));
      slopes = below;
      of_example = padded(fan_in), of_unit = 1;
    }
  }
  if constexpr (HAS_DIRECTIONS) {
    const auto direct_part = [&](int64_t start, int count, int group) {
      direct(weights, gradient, kept, start, count, norms + 3 * GROUPS + group, norms + 4 * GROUPS + group);
    };
    for (int layer = 0; layer < LAYERS; ++layer) {
      const int count = WIDTHS[layer] * WIDTHS[layer + 1];
      direct_part(starts[layer], count, GROUP_OF_WEIGHT[layer]);
      if (HAS_BIAS[layer]) direct_part(starts[layer] + count, WIDTHS[layer + 1], GROUP_OF_BIAS[layer]);
    }
  }
  return loss;
}

}  // namespace

// Perceptrons that are stepped in place. The last gradients may be the directions.
struct Members {
  int64_t count, size;   // N; P
  Number* weights;       // (N, P)
  Number* directions;    // (N, P)
  Number* gradients;     // (N, P)
  Number *first, *second;  // (N, P), what the optimizer keeps, or null
  const int64_t* steps;  // (N,), made
  const Number* inputs;  // (M, WIDTHS[0])
  const void* targets;   // (M,) or (M, WIDTHS[LAYERS])
  int64_t target_step;   // distance of the members' own targets, or 0
  const Number* scales;  // (N,), of the inputs, or null
};

// A step of all of them.
//   rates: (N, GROUPS); indices: (N, BATCH), into inputs and targets;
//   made: steps since those of the members were counted;
//   losses: (N,); norms: (PRODUCTS, GROUPS, N): squares of the gradients, their products with the last ones, squares of the weights, and where
//   directions are made that are not the gradients their products with these, and their squares.
extern "C" void step_perceptrons(const Members* all, int threads, const Number* rates, const int64_t* indices, int64_t made, Number* losses,
                                 Number* norms) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    static thread_local Scratch scratch;
#pragma omp for schedule(static)
    for (int64_t member = 0; member < all->count; ++member) {
      Number own[PRODUCTS * GROUPS] = {};
      const char* targets = static_cast<const char*>(all->targets) + member * all->target_step;
      const auto of_member = [&](Number* tensor) { return tensor ? tensor + member * all->size : nullptr; };
      Number *gradient = of_member(all->gradients), *directions = of_member(all->directions);
      const int64_t number = all->steps ? all->steps[member] + made + 1 : 1;
      losses[member] = step(of_member(all->weights), directions, gradient, gradient, rates + member * GROUPS, all->inputs, targets,
                            indices + member * BATCH, all->scales ? all->scales[member] : Number(1),
                            moments(directions, of_member(all->first), of_member(all->second), number), own, scratch);
      for (int row = 0; row < PRODUCTS * GROUPS; ++row) norms[row * all->count + member] = own[row];
    }
  }
}

// Sums over `count` examples, which all members see: losses and, of classes and where it is asked for, how many are right.
//   weights: (members, P); inputs: (count, WIDTHS[0]); targets: (count,) or (count, WIDTHS[LAYERS]); indices: 0, 1, 2, ...; scales: (members,) or null;
//   sums: (members, 2).
extern "C" void evaluate_perceptrons(int64_t members, int64_t size, int threads, const Number* weights, const Number* inputs, const void* targets,
                                     const int64_t* indices, int64_t count, const Number* scales, int counts_right, double* sums) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    static thread_local Scratch scratch;
#pragma omp for schedule(static)
    for (int64_t member = 0; member < members; ++member) {
      double losses = 0, right = 0;
      for (int64_t start = 0; start < count; start += BATCH) {
        const int own = std::min<int64_t>(BATCH, count - start);
        forward(weights + member * size, inputs, indices + start, own, scales ? scales[member] : Number(1), scratch);
        if constexpr (IS_CLASSIFICATION)
          if (counts_right) right += correct(scratch.values + values_before(LAYERS), static_cast<const int64_t*>(targets), indices + start, own);
        losses += loss_and_slopes(targets, indices + start, own, scratch);
      }
      sums[2 * member] = losses;
      sums[2 * member + 1] = right;
    }
  }
}
