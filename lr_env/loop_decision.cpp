// A step of somebody's own loop without a return in between: its signals are measured and observed, and a perceptron decides.

#include <algorithm>
#include <cmath>
#include <cstdint>

using Recorded = void (*)(char** at);  // of recorded_kernel.py
using Measure = void (*)(int64_t parameters, const void* table, const void* rules, int threads, double* totals);  // of loop_kernel.cpp

enum Outcome { DECIDED, SIGNALS_NOT_FINITE, ACTION_NOT_FINITE };
enum Output { TANH, CLIP, ARGMAX };

struct Layer {
  int64_t inputs, outputs;
  const float *weights, *biases;  // (outputs, inputs), (outputs,)
};

struct LoopDecision {
  Measure measure;
  int64_t parameters;
  const void *table, *rules;
  Recorded observe;
  char** of_observing;
  Recorded act;
  char** of_acting;
  double* totals;  // (groups, num_products)
  int64_t groups, num_products, num_columns;
  const int64_t* columns;  // (num_columns,), which of the products the signals after the loss are
  double* signals;         // (1 + num_columns, groups), what is observed
  const float* observation;
  int64_t num_features, num_layers;
  const Layer* layers;
  int64_t has_tanh, output;
  double *means, *count;  // of observations, or null
  float* values;          // (2, widest), scratch
  double* actions;        // what is acted upon
  const double *lowest, *highest;
};

namespace {

bool all_finite(const double* values, int64_t count) {
  return std::all_of(values, values + count, [](double value) { return std::isfinite(value); });
}

// The action of the perceptron for the observation; returns how many numbers it has.
int64_t decide(const LoopDecision& own, int64_t widest) {
  float *inputs = own.values, *outputs = own.values + widest;
  std::copy(own.observation, own.observation + own.num_features, inputs);
  if (own.means) {
    *own.count += 1;
    for (int64_t i = 0; i < own.num_features; ++i) {
      own.means[i] += (own.observation[i] - own.means[i]) / *own.count;
      inputs[own.num_features + i] = float(own.means[i]);
    }
  }
  for (const Layer* layer = own.layers; layer != own.layers + own.num_layers; ++layer) {
    const bool is_last = layer + 1 == own.layers + own.num_layers;
    for (int64_t row = 0; row < layer->outputs; ++row) {
      const float* weights = layer->weights + row * layer->inputs;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < layer->inputs; ++i) sum += weights[i] * inputs[i];
      sum += layer->biases[row];
      outputs[row] = is_last ? sum : own.has_tanh ? std::tanh(sum) : sum < 0 ? 0 : sum;
    }
    std::swap(inputs, outputs);
  }
  const int64_t count = own.layers[own.num_layers - 1].outputs;
  if (own.output == ARGMAX) {
    own.actions[0] = double(std::max_element(inputs, inputs + count) - inputs);
    return 1;
  }
  for (int64_t i = 0; i < count; ++i) own.actions[i] = own.output == TANH ? std::tanh(inputs[i]) : inputs[i] < -1 ? -1 : inputs[i] > 1 ? 1 : inputs[i];
  return count;
}

}  // namespace

// `decides`: whether the rates are chosen anew. `widest`: of the layers.
extern "C" int take_step(const LoopDecision* own, double loss, int decides, int threads, int64_t widest) {
  std::fill(own->totals, own->totals + own->groups * own->num_products, 0.0);
  own->measure(own->parameters, own->table, own->rules, threads, own->totals);
  std::fill(own->signals, own->signals + own->groups, loss);
  for (int64_t row = 0; row < own->num_columns; ++row)
    for (int64_t group = 0; group < own->groups; ++group)
      own->signals[(row + 1) * own->groups + group] = own->totals[group * own->num_products + own->columns[row]];
  if (!all_finite(own->signals, (1 + own->num_columns) * own->groups)) return SIGNALS_NOT_FINITE;
  own->observe(own->of_observing);
  if (!decides) return DECIDED;
  const int64_t count = decide(*own, widest);
  if (!all_finite(own->actions, count)) return ACTION_NOT_FINITE;
  for (int64_t i = 0; i < count; ++i) own->actions[i] = std::min(std::max(own->actions[i], own->lowest[i]), own->highest[i]);
  own->act(own->of_acting);
  return DECIDED;
}
