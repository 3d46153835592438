// Decisions of all members without a return in between: rates are chosen, then SGD steps are made with them, and each is learnt from.
//
// Compiled with a header in front that says of what type the trainings' numbers are:
//   using Number = float;  // or double

#include <algorithm>
#include <cstdint>

using Recorded = void (*)(char** at);  // of recorded_kernel.py
using Step = void (*)(const void* members, int threads, const Number* rates, const int64_t* indices, int64_t made, Number* losses,
                      Number* norms);  // of perceptron.cpp

struct Decision {
  Recorded choose;
  char** of_choosing;
  Recorded learn;
  char** of_learning;
  Step step;
  const void* members;
  int64_t count, groups, threads;
  int64_t batch;           // from the indices of one step to those of the next
  const double* rates;     // (groups, count), what is chosen
  Number* own_rates;       // (count, groups)
  Number* measured;        // losses (count,), then norms (.., groups, count)
  int64_t num_signals;
  const int64_t* sources;  // (num_signals,): 0 for the losses, else one more than the number of the norm
  double* signals;         // (num_signals, groups, count), what is learnt from
  double* rewards;         // (groups, count), what is learnt
  const double* diverged;  // (groups, count), so too
  double* earned;          // (groups, count), scratch
};

// At most `most` steps, fewer where a training diverges; rewards are added up. `indices`: of the first step. Returns how many were made.
extern "C" int64_t decide(const Decision* own, int chooses, const int64_t* indices, int64_t most) {
  const int64_t count = own->count, columns = own->groups * count;
  if (chooses) own->choose(own->of_choosing);
  for (int64_t group = 0; group < own->groups; ++group)
    for (int64_t member = 0; member < count; ++member) own->own_rates[member * own->groups + group] = Number(own->rates[group * count + member]);
  Number* norms = own->measured + count;
  for (int64_t made = 1;; ++made, indices += own->batch) {
    own->step(own->members, int(own->threads), own->own_rates, indices, made - 1, own->measured, norms);
    for (int64_t row = 0; row < own->num_signals; ++row) {
      double* signal = own->signals + row * columns;
      const int64_t source = own->sources[row];
      for (int64_t column = 0; column < columns; ++column)
        signal[column] = double(source ? norms[(source - 1) * columns + column] : own->measured[column % count]);
    }
    own->learn(own->of_learning);
    const bool is_over = made == most || std::any_of(own->diverged, own->diverged + count, [](double value) { return value > 0; });
    for (int64_t column = 0; column < columns; ++column) own->earned[column] = own->rewards[column] + (made > 1 ? own->earned[column] : 0.0);
    if (is_over) {
      if (made > 1) std::copy(own->earned, own->earned + columns, own->rewards);
      return made;
    }
  }
}
