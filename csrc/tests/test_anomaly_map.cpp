// The kernels against the definition in double precision.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "check.hpp"
#include "features.hpp"
#include "scrd/anomaly_map.hpp"
#include "scrd/error.hpp"
#include "scrd/thread_pool.hpp"

namespace scrd {
namespace {

using namespace test;

std::vector<double> naive_distances(const Features& teacher, const Features& student) {
  const FeatureView& v = teacher.view;
  std::vector<double> distances;
  for (std::size_t i = 0; i < v.n; ++i) {
    for (std::size_t y = 0; y < v.height; ++y) {
      for (std::size_t x = 0; x < v.width; ++x) {
        double ts = 0, tt = 0, ss = 0;
        for (std::size_t c = 0; c < v.channels; ++c) {
          const double a = teacher.get(i, c, y, x), b = student.get(i, c, y, x);
          ts += a * b, tt += a * a, ss += b * b;
        }
        distances.push_back(1 -
                            ts / (std::max(std::sqrt(tt), 1e-8) * std::max(std::sqrt(ss), 1e-8)));
      }
    }
  }
  return distances;
}

// U (size, side): one column of the identity after another is upsampled, then blurred.
std::vector<double> naive_matrix(std::size_t size, std::size_t side, double sigma) {
  const int n = static_cast<int>(size), radius = static_cast<int>(4 * sigma + 0.5);
  std::vector<double> kernel;
  double total = 0;
  for (int d = -radius; d <= radius; ++d) {
    kernel.push_back(radius == 0 ? 1 : std::exp(-d * d / (2 * sigma * sigma)));
    total += kernel.back();
  }
  std::vector<double> matrix(size * side);
  for (std::size_t j = 0; j < side; ++j) {
    std::vector<double> large(size);
    for (int i = 0; i < n; ++i) {
      const double centre = n > 1 ? i * (side - 1.0) / (n - 1.0) : 0;
      large[i] = std::max(0.0, 1 - std::fabs(centre - static_cast<double>(j)));
    }
    for (int i = 0; i < n; ++i) {
      for (int d = -radius; d <= radius; ++d) {
        int at = i + d;
        while (at < 0 || at >= n) at = at < 0 ? -1 - at : 2 * n - 1 - at;
        matrix[i * side + j] += kernel[d + radius] / total * large[at];
      }
    }
  }
  return matrix;
}

// The maps (n, size, size) of distances.
std::vector<double> naive_maps(const std::array<std::vector<double>, kScales>& distances,
                               const std::vector<float>& weights, bool weighted, std::size_t n,
                               std::size_t size, const std::array<std::size_t, kScales>& sides,
                               double sigma) {
  std::vector<double> maps(n * size * size);
  for (int k = 0; k < kScales; ++k) {
    const std::size_t side = sides[k];
    const std::vector<double> u = naive_matrix(size, side, sigma);
    for (std::size_t i = 0; i < n; ++i) {
      const double w = weighted ? weights[i * kScales + k] : 1;
      const double* m = distances[k].data() + i * side * side;
      std::vector<double> rows(size * side);
      for (std::size_t r = 0; r < size; ++r) {
        for (std::size_t y = 0; y < side; ++y) {
          for (std::size_t x = 0; x < side; ++x) {
            rows[r * side + x] += w * u[r * side + y] * m[y * side + x];
          }
        }
      }
      for (std::size_t r = 0; r < size; ++r) {
        for (std::size_t c = 0; c < size; ++c) {
          double sum = 0;
          for (std::size_t x = 0; x < side; ++x) sum += rows[r * side + x] * u[c * side + x];
          maps[(i * size + r) * size + c] += sum;
        }
      }
    }
  }
  return maps;
}

std::vector<float> soft_weights(std::size_t n) {
  std::vector<float> weights;
  for (std::size_t i = 0; i < n; ++i) {
    const float a = 0.2f + 0.05f * static_cast<float>(i % 5);
    weights.insert(weights.end(), {a, 0.1f, 0.9f - a});
  }
  return weights;
}

struct Result {
  Result(std::size_t n, std::size_t size) : map(n * size * size), mean(n), max(n) {}
  bool operator==(const Result& other) const {
    return map == other.map && mean == other.mean && max == other.max;
  }
  std::vector<float> map, mean, max;
};

Result run(const Tail& tail, const Three& teacher, const Three& student,
           const std::vector<float>& weights) {
  Result result(teacher[0]->view.n, tail.size());
  anomaly_map(tail, views(teacher), views(student), nullptr, weights.data(), result.map.data(),
              result.mean.data(), result.max.data());
  return result;
}

void check_result(const Result& result, const std::vector<double>& maps, std::size_t n) {
  const std::size_t pixels = maps.size() / n;
  for (std::size_t i = 0; i < n; ++i) {
    double sum = 0, most = -1;
    for (std::size_t p = 0; p < pixels; ++p) {
      const double expected = maps[i * pixels + p];
      CHECK_NEAR(result.map[i * pixels + p], expected, 5e-6);
      sum += expected;
      most = std::max(most, expected);
    }
    CHECK_NEAR(result.mean[i], sum / static_cast<double>(pixels), 5e-6);
    CHECK_NEAR(result.max[i], most, 5e-6);
  }
}

std::array<Shape, kScales> shapes_of(std::size_t n, const std::array<std::size_t, kScales>& sides) {
  return {Shape{n, 7, sides[0], sides[0]}, Shape{n, 33, sides[1], sides[1]},
          Shape{n, 20, sides[2], sides[2]}};
}

TEST(distances_in_every_layout) {
  // Odd widths, one pixel, one channel, and two tasks of an image with a rest (1024 x 13 x 11).
  const std::array<Shape, kScales> cases[] = {
      {Shape{2, 5, 3, 7}, Shape{2, 1, 1, 1}, Shape{2, 17, 9, 5}},
      {Shape{1, 1024, 13, 11}, Shape{1, 64, 4, 16}, Shape{1, 3, 1, 19}},
  };
  for (const auto& shapes : cases) {
    for (DType dtype : {DType::f32, DType::bf16}) {
      for (Layout t_layout : kLayouts) {
        for (Layout s_layout : kLayouts) {
          const Three teacher = three(shapes, t_layout, dtype, 1);
          const Three student = three(shapes, s_layout, dtype, 2);
          std::array<std::vector<float>, kScales> out;
          std::array<std::vector<double>, kScales> expected;
          std::array<float*, kScales> pointers;
          for (int k = 0; k < kScales; ++k) {
            expected[k] = naive_distances(*teacher[k], *student[k]);
            out[k].resize(expected[k].size());
            pointers[k] = out[k].data();
          }
          std::array<std::vector<float>, kScales> plain;
          for (Isa isa : available_isas()) {
            test::UseIsa use(isa);
            cosine_distances(views(teacher), views(student), pointers);
            if (isa == Isa::plain) plain = out;
            for (int k = 0; k < kScales; ++k) {
              CHECK(largest_difference(out[k], plain[k]) <= 1e-6);
              for (std::size_t p = 0; p < out[k].size(); ++p) {
                CHECK_NEAR(out[k][p], expected[k][p], 1e-6);
              }
            }
          }
        }
      }
    }
  }
}

TEST(maps_of_odd_sizes) {
  struct Case {
    std::size_t n, size;
    std::array<std::size_t, kScales> sides;
    double sigma;
    bool weighted;
  };
  const Case cases[] = {
      {3, 32, {8, 4, 2}, 0, true},       {1, 96, {24, 12, 6}, 4, false},
      {2, 160, {40, 20, 10}, 0.7, true}, {17, 48, {12, 6, 3}, 1.5, true},
      {1, 112, {27, 13, 1}, 28, false},  {1, 16, {16, 5, 1}, 0.1, true},
  };
  for (const Case& c : cases) {
    for (DType dtype : {DType::f32, DType::bf16}) {
      const Three teacher = three(shapes_of(c.n, c.sides), Layout::nchw, dtype, 3);
      const Three student = three(shapes_of(c.n, c.sides), Layout::nhwc, dtype, 4);
      const std::vector<float> weights = soft_weights(c.n);
      std::array<std::vector<double>, kScales> distances;
      for (int k = 0; k < kScales; ++k) distances[k] = naive_distances(*teacher[k], *student[k]);
      const std::vector<double> maps =
          naive_maps(distances, weights, c.weighted, c.n, c.size, c.sides, c.sigma);
      const Tail tail(c.size, c.sides, c.sigma, c.weighted);
      const auto run_with = [&](Isa isa) {
        test::UseIsa use(isa);
        return run(tail, teacher, student, weights);
      };
      const Result plain = run_with(Isa::plain);
      for (Isa isa : available_isas()) {
        const Result result = run_with(isa);
        check_result(result, maps, c.n);
        CHECK(largest_difference(result.map, plain.map) <= 1e-6);
        CHECK(largest_difference(result.mean, plain.mean) <= 1e-6);
        CHECK(largest_difference(result.max, plain.max) <= 1e-6);
      }
    }
  }
}

TEST(what_is_not_asked_for_changes_nothing) {
  const Three teacher = three(shapes_of(2, {16, 8, 4}), Layout::nchw, DType::f32, 5);
  const Three student = three(shapes_of(2, {16, 8, 4}), Layout::nchw, DType::f32, 6);
  const std::vector<float> weights = soft_weights(2);
  const Tail tail(64, {16, 8, 4}, 2, true);
  const Result full = run(tail, teacher, student, weights);
  Result lean(2, 64);
  anomaly_map(tail, views(teacher), views(student), nullptr, weights.data(), nullptr,
              lean.mean.data(), lean.max.data());
  CHECK(lean.mean == full.mean && lean.max == full.max);
  std::fill(lean.mean.begin(), lean.mean.end(), 0.0f);
  anomaly_map(tail, views(teacher), views(student), nullptr, weights.data(), nullptr,
              lean.mean.data(), nullptr);
  CHECK(lean.mean == full.mean);
}

TEST(the_distances_and_the_tail_are_the_whole) {
  const std::array<std::size_t, kScales> sides{16, 8, 4};
  const Three teacher = three(shapes_of(3, sides), Layout::nchw, DType::bf16, 15);
  const Three student = three(shapes_of(3, sides), Layout::nhwc, DType::bf16, 16);
  const Tail tail(64, sides, 2, true);
  std::array<std::vector<float>, kScales> memory;
  std::array<float*, kScales> out;
  for (int k = 0; k < kScales; ++k) {
    memory[k].resize(3 * sides[k] * sides[k]);
    out[k] = memory[k].data();
  }
  cosine_distances(views(teacher), views(student), out);
  Result parts(3, 64);
  tail({out[0], out[1], out[2]}, nullptr, soft_weights(3).data(), 3, parts.map.data(),
       parts.mean.data(), parts.max.data());
  CHECK(parts == run(tail, teacher, student, soft_weights(3)));
}

TEST(maps_beyond_all_memory) {
  const Tail tail(64, {16, 8, 4}, 2, true);
  CHECK(tail.map_values(3) == 3 * 64 * 64 && tail.map_values(0) == 0);
  const std::size_t most = PTRDIFF_MAX / sizeof(float) / (64 * 64);
  CHECK(tail.map_values(most) == most * 64 * 64);
  CHECK_THROWS(std::bad_alloc, std::bad_alloc().what(), tail.map_values(most + 1));
}

TEST(the_number_of_threads_changes_no_bit) {
  const int before = shared_pool()->threads();
  const Three teacher = three(shapes_of(3, {24, 12, 6}), Layout::nchw, DType::f32, 7);
  const Three student = three(shapes_of(3, {24, 12, 6}), Layout::nhwc, DType::f32, 8);
  const Tail tail(96, {24, 12, 6}, 4, true);
  set_threads(1);
  const Result one = run(tail, teacher, student, soft_weights(3));
  bool same = true;
  for (int threads : {2, 5}) {
    set_threads(threads);
    same = same && run(tail, teacher, student, soft_weights(3)) == one;
  }
  set_threads(before);
  CHECK(same);
}

TEST(zero_and_tiny_vectors) {
  const std::array<Shape, kScales> shapes = shapes_of(1, {8, 4, 2});
  const Three teacher = three(shapes, Layout::nchw, DType::f32, 9);
  const Three student = three(shapes, Layout::nchw, DType::f32, 10);
  for (int k = 0; k < kScales; ++k) {
    for (std::size_t c = 0; c < shapes[k][1]; ++c) {
      teacher[k]->set(0, c, 0, 0, 0);
      student[k]->set(0, c, 1, 1, 1e-10 * student[k]->get(0, c, 1, 1));
    }
  }
  std::array<std::vector<float>, kScales> out;
  std::array<float*, kScales> pointers;
  for (int k = 0; k < kScales; ++k) {
    out[k].resize(shapes[k][2] * shapes[k][3]);
    pointers[k] = out[k].data();
  }
  for (Isa isa : available_isas()) {
    test::UseIsa use(isa);
    cosine_distances(views(teacher), views(student), pointers);
    for (int k = 0; k < kScales; ++k) {
      CHECK(out[k][0] == 1);
      const std::vector<double> expected = naive_distances(*teacher[k], *student[k]);
      for (std::size_t p = 0; p < out[k].size(); ++p) CHECK_NEAR(out[k][p], expected[p], 1e-6);
    }
  }
}

TEST(the_band_is_the_whole_matrix) {
  for (std::size_t size : {1, 2, 5, 32, 96, 256}) {
    for (std::size_t side :
         {std::size_t{1}, (size + 15) / 16, (size + 7) / 8, (size + 3) / 4, size}) {
      for (double sigma : {0.0, 1e-200, 0.1, 0.4, 4.0, size / 4.0, 1.0 * size}) {
        if (sigma > static_cast<double>(size)) continue;
        const BandMatrix band = upsample_blur_band(size, side, sigma);
        const std::vector<double> matrix = naive_matrix(size, side, sigma);
        for (std::size_t i = 0; i < size; ++i) {
          std::vector<double> row(side);
          for (std::size_t k = 0; k < band.width; ++k) {
            CHECK(band.first[i] + k < side);
            row[band.first[i] + k] = band.values[i * band.width + k];
          }
          // Weights up to 1, computed in float64 and rounded to float32 once.
          for (std::size_t j = 0; j < side; ++j) CHECK_NEAR(row[j], matrix[i * side + j], 1e-7);
        }
      }
    }
  }
}

TEST(sizes_that_no_matrix_has) {
  const std::size_t most = std::numeric_limits<std::size_t>::max();
  const double nan = std::nan("");
  CHECK_THROWS(InputError, "size: expected 1 to 4096, got 0", upsample_blur_band(0, 0, 0));
  CHECK_THROWS(InputError, "size: expected 1 to 4096, got " + std::to_string(most),
               upsample_blur_band(most, 2, 0));
  CHECK_THROWS(InputError, "side: expected 1 to 8, got 0", upsample_blur_band(8, 0, 0));
  CHECK_THROWS(InputError, "side: expected 1 to 8, got 9", upsample_blur_band(8, 9, 0));
  CHECK_THROWS(InputError, "sigma: expected 0 to 8, got -0.500000", upsample_blur_band(8, 2, -0.5));
  CHECK_THROWS(InputError, "sigma: expected 0 to 8, got nan", upsample_blur_band(8, 2, nan));
  CHECK_THROWS(InputError, "size: expected a multiple of 16, got 40", Tail(40, {8, 4, 2}, 0, true));
  CHECK_THROWS(InputError, "size: expected a multiple of 16, got 0", Tail(0, {8, 4, 2}, 0, true));
  CHECK_THROWS(InputError, "side: expected 1 to 32, got 33", Tail(32, {8, 33, 2}, 0, true));
}

TEST(features_that_do_not_fit) {
  const Tail tail(32, {8, 4, 2}, 1, false);
  const std::vector<float> weights = soft_weights(2);
  const auto teacher = three(shapes_of(2, {8, 4, 2}), Layout::nchw, DType::f32, 11);
  const auto good = views(teacher);
  Result result(2, 32);
  const auto call = [&](const std::array<FeatureView, kScales>& t,
                        const std::array<FeatureView, kScales>& s) {
    anomaly_map(tail, t, s, nullptr, weights.data(), result.map.data(), result.mean.data(),
                result.max.data());
  };
  auto bad = good;
  bad[1].width = 3;
  CHECK_THROWS(InputError, "teacher[1]: expected (N, C, 4, 4), got (2, 33, 4, 3)", call(bad, good));
  CHECK_THROWS(InputError, "student[1]: expected (2, 33, 4, 4), got (2, 33, 4, 3)",
               call(good, bad));
  bad = good;
  bad[2].n = 1;
  CHECK_THROWS(InputError, "teacher[2]: expected a batch of 2 as at the first scale, got 1",
               call(bad, good));
  bad = good;
  bad[0].channels = 0;
  CHECK_THROWS(InputError, "teacher[0]: expected (N, C, h, w) without a zero, got (2, 0, 8, 8)",
               call(bad, bad));
  bad = good;
  bad[0].dtype = DType::f64;
  CHECK_THROWS(InputError, "teacher[0]: expected dtype float32 or bfloat16, got another",
               call(bad, good));
  bad = good;
  bad[2].dtype = DType::bf16;
  CHECK_THROWS(InputError, "student[2]: expected the teacher's dtype, got another",
               call(good, bad));
}

TEST(values_that_are_not_finite) {
  const Tail tail(32, {8, 4, 2}, 1, false);
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  for (DType dtype : {DType::f32, DType::bf16}) {
    for (Layout layout : kLayouts) {
      if (layout == Layout::expanded) continue;  // there both images would be hit
      for (Isa isa : available_isas()) {
        test::UseIsa use(isa);
        for (double value : {nan, inf, -inf, 1e30}) {
          const std::string got = value == 1e30 ? "values whose sum of squares overflows, at row "
                                                : "one that is not, at row ";
          const Three teacher = three(shapes_of(2, {8, 4, 2}), layout, dtype, 12);
          const Three student = three(shapes_of(2, {8, 4, 2}), layout, dtype, 13);
          student[1]->set(1, 32, 3, 2, value);
          CHECK_THROWS(NotFiniteError,
                       "student[1]: expected finite values, got " + got + "3, column 2 of image 1",
                       run(tail, teacher, student, soft_weights(2)));
          teacher[1]->set(1, 0, 3, 3, value);  // later than the student's
          CHECK_THROWS(NotFiniteError,
                       "student[1]: expected finite values, got " + got + "3, column 2 of image 1",
                       run(tail, teacher, student, soft_weights(2)));
          teacher[1]->set(0, 5, 0, 1, value);
          CHECK_THROWS(NotFiniteError,
                       "teacher[1]: expected finite values, got " + got + "0, column 1 of image 0",
                       run(tail, teacher, student, soft_weights(2)));
        }
      }
    }
  }
}

TEST(distances_that_are_not_finite) {
  const Tail tail(32, {8, 4, 2}, 1, false);
  std::array<std::vector<float>, kScales> m{std::vector<float>(2 * 64), std::vector<float>(2 * 16),
                                            std::vector<float>(2 * 4)};
  m[2][5] = std::numeric_limits<float>::quiet_NaN();
  float mean[2];
  CHECK_THROWS(
      NotFiniteError, "distances[2]: expected finite values, got one that is not, in image 1",
      tail({m[0].data(), m[1].data(), m[2].data()}, nullptr, nullptr, 2, nullptr, mean, nullptr));
}

TEST(weights_of_the_scales) {
  const Three features = three(shapes_of(2, {8, 4, 2}), Layout::nchw, DType::f32, 14);
  const Tail weighted(32, {8, 4, 2}, 1, true), plain(32, {8, 4, 2}, 1, false);
  const std::string expected = "scale_weights: expected three weights from 0 that sum to 1, got ";
  const float nan = std::numeric_limits<float>::quiet_NaN();
  struct Case {
    std::vector<float> weights;
    std::string got;
  };
  const Case cases[] = {
      {{1, 0, 0, 0.5, 0.5, 0.5}, "0.500000, 0.500000, 0.500000 for image 1"},
      {{1.25, -0.25, 0, 1, 0, 0}, "1.250000, -0.250000, 0.000000 for image 0"},
      {{1, 0, 0, 1, -nan, 0}, "1.000000, nan, 0.000000 for image 1"},
      {{1, 0, 0, -0.5, 1.5, 0}, "-0.500000, 1.500000, 0.000000 for image 1"},
      {{1, 0, 0, 1.5, 0, -0.5}, "1.500000, 0.000000, -0.500000 for image 1"},
  };
  for (const Case& c : cases) {
    CHECK_THROWS(InputError, expected + c.got, run(weighted, features, features, c.weights));
    run(plain, features, features, c.weights);  // they do not count
  }
}

}  // namespace
}  // namespace scrd
