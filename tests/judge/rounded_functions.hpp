#pragma once

// Functions of one number by MPFR, rounded to f32.

namespace moeref::judge {

float nearest_exp(float x);
float nearest_log1p(double x);
float nearest_tanh(float x);

}  // namespace moeref::judge
