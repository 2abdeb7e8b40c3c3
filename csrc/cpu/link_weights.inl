// CPU kernels of link_weights, compiled once per instruction set after kernels.inl, in the same
// namespace and with internal linkage throughout.
//
// A tile of kLinkTile rows goes through one factor's network after the other; what lies between the
// layers never leaves the caches. Vectors run along the rows of the tile, which is therefore held
// transposed, (columns, rows): a weight is then one broadcast, and no lane is wasted on the 3 to 15
// links of a factor. Only sums over rows (the gradients of the weights) have their vectors along
// columns, of the tile as it lies in memory, with the columns padded.
//
// Multiply-adds per row and factor: E h + h Q forward; 3 E h + 2 h Q backward, recomputing the
// hidden layer among them. Both passes are bound by them and by the GELU: 22 and 38 instructions a
// vector. Bytes per row: E + M Q elements forward, 2 E + M Q backward.

#include "cpu/link_weights.h"

namespace paramixer::cpu {
namespace PARAMIXER_ISA_NAMESPACE {
namespace {

template <typename A>
constexpr int kNativeLanes = kVectorBytes / int(sizeof(A));
template <typename A>
using Native = Vector<A, kNativeLanes<A>>;

// Columns x vectors of rows that are summed in registers: 24 of 32, or 12 of 16.
#if defined(PARAMIXER_ISA_AVX512)
constexpr int kColumnBlock = 8;
#else
constexpr int kColumnBlock = 4;
#endif
constexpr int kVectorBlock = 3;

// Calls body.operator()<count>() for a count in 1 .. kMost.
template <int kMost, typename Body>
PARAMIXER_INLINE void with_count(int64_t count, const Body& body) {
  if constexpr (kMost > 1) {
    if (count < kMost) return with_count<kMost - 1>(count, body);
  }
  body.template operator()<kMost>();
}

// Calls body.operator()<count>(first) for blocks of nearly equal size that cover 0 .. total - 1.
template <int kMost, typename Body>
PARAMIXER_INLINE void for_each_block(int64_t total, const Body& body) {
  const int64_t blocks = (total + kMost - 1) / kMost;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = total * b / blocks;
    const int64_t count = total * (b + 1) / blocks - first;
    with_count<kMost>(count, [&]<int kCount>() { body.template operator()<kCount>(first); });
  }
}

// ---- GELU: a Phi(a), Phi the normal distribution; its derivative is Phi(a) + a phi(a), phi the
// normal density. kVectorBlock vectors at a time: a polynomial is one long chain of operations.

// The smaller or larger of each lane; NaN in the second argument passes.
#if defined(PARAMIXER_ISA_AVX512)
PARAMIXER_INLINE Native<float> smaller(Native<float> bound, Native<float> a) {
  return (Native<float>)_mm512_min_ps((__m512)bound, (__m512)a);
}
PARAMIXER_INLINE Native<float> larger(Native<float> bound, Native<float> a) {
  return (Native<float>)_mm512_max_ps((__m512)bound, (__m512)a);
}
#elif defined(PARAMIXER_ISA_AVX2)
PARAMIXER_INLINE Native<float> smaller(Native<float> bound, Native<float> a) {
  return (Native<float>)_mm256_min_ps((__m256)bound, (__m256)a);
}
PARAMIXER_INLINE Native<float> larger(Native<float> bound, Native<float> a) {
  return (Native<float>)_mm256_max_ps((__m256)bound, (__m256)a);
}
#else
PARAMIXER_INLINE Native<float> smaller(Native<float> bound, Native<float> a) {
  return bound < a ? bound : a;
}
PARAMIXER_INLINE Native<float> larger(Native<float> bound, Native<float> a) {
  return bound > a ? bound : a;
}
#endif

template <typename A>
PARAMIXER_INLINE Native<A> broadcast(A value) {
  return Native<A>{} + value;
}

template <typename A>
struct Block {
  Native<A> part[kVectorBlock];
};
template <typename A>
constexpr int kBlockLanes = kVectorBlock * kNativeLanes<A>;

template <typename A>
PARAMIXER_INLINE Block<A> load_block(const A* from) {
  Block<A> block;
  for (int v = 0; v < kVectorBlock; ++v) {
    block.part[v] = load<kNativeLanes<A>>(from + v * kNativeLanes<A>);
  }
  return block;
}

template <typename A>
PARAMIXER_INLINE void store_block(A* to, const Block<A>& block) {
  for (int v = 0; v < kVectorBlock; ++v) {
    store<kNativeLanes<A>>(to + v * kNativeLanes<A>, block.part[v]);
  }
}

// The polynomial with these coefficients, highest power first.
template <int kCount>
PARAMIXER_INLINE Block<float> polynomial(const float (&coefficients)[kCount],
                                         const Block<float>& x) {
  Block<float> sum;
  for (auto& part : sum.part) part = broadcast(coefficients[0]);
  for (int i = 1; i < kCount; ++i) {
    for (int v = 0; v < kVectorBlock; ++v) {
      sum.part[v] = sum.part[v] * x.part[v] + coefficients[i];
    }
  }
  return sum;
}

// Beyond +-5.5 the float nearest to Phi is 1, and a Phi(a) is 0 to within 2e-7.
PARAMIXER_INLINE Block<float> clamp(const Block<float>& a) {
  Block<float> clamped;
  for (int v = 0; v < kVectorBlock; ++v) {
    clamped.part[v] = larger(broadcast(-5.5f), smaller(broadcast(5.5f), a.part[v]));
  }
  return clamped;
}

// Phi(a) = 1/2 + a P(u), u = 2 (a / 5.5)^2 - 1. P is the polynomial of degree 15 whose largest
// error in Phi, 8.3e-9, is least (fitted in float64 at 400 Chebyshev points); powers of u in -1 ..
// 1 keep it well conditioned. Rounding included, gelu is off by at most 4e-7 for a < 0 and by a
// relative 1.5e-7 for a > 0.
PARAMIXER_INLINE Block<float> normal_distribution(const Block<float>& clamped) {
  constexpr float kCoefficients[] = {
      -0.0002364181273151189f, 0.0006315589416772127f, -0.0005291294655762613f,
      0.0007201064727269113f,  -0.002418655203655362f, 0.004621781408786774f,
      -0.006819904316216707f,  0.010227826423943043f,  -0.014999080449342728f,
      0.020364567637443542f,   -0.026048259809613228f, 0.032070260494947433f,
      -0.03879278525710106f,   0.04773762822151184f,   -0.06417233496904373f,
      0.1285519301891327f};
  Block<float> u;
  for (int v = 0; v < kVectorBlock; ++v) {
    u.part[v] = clamped.part[v] * clamped.part[v] * (2 / (5.5f * 5.5f)) - 1.0f;
  }
  Block<float> phi = polynomial(kCoefficients, u);
  for (int v = 0; v < kVectorBlock; ++v) {
    phi.part[v] = larger(Native<float>{}, clamped.part[v] * phi.part[v] + 0.5f);
  }
  return phi;
}

// exp(-a^2 / 2) / sqrt(2 pi) = 2^n p(f) with |f| <= 1/2; p has degree 5 and a relative error of at
// most 7.5e-8. Below 2^-120 it stays there.
PARAMIXER_INLINE Block<float> normal_density(const Block<float>& a) {
  using Bits = Vector<int32_t, kNativeLanes<float>>;
  constexpr float kCoefficients[] = {0.0005296545568853617f, 0.003859982592985034f,
                                     0.022144142538309097f,  0.0958343893289566f,
                                     0.2765256464481354f,    0.39894232153892517f};
  constexpr float kRound = 12582912.0f;  // 1.5 2^23: adding it leaves the integer in the low bits
  Block<float> shifted, f;
  for (int v = 0; v < kVectorBlock; ++v) {
    const auto exponent =
        larger(broadcast(-120.0f), a.part[v] * a.part[v] * -0.72134752044448f);  // 1 / (2 ln 2)
    shifted.part[v] = exponent + kRound;
    f.part[v] = exponent - (shifted.part[v] - kRound);
  }
  Block<float> density = polynomial(kCoefficients, f);
  for (int v = 0; v < kVectorBlock; ++v) {
    density.part[v] = (Native<float>)((Bits)density.part[v] + ((Bits)shifted.part[v] << 23));
  }
  return density;
}

PARAMIXER_INLINE void gelu(const Block<float>& a, Block<float>& value) {
  const Block<float> phi = normal_distribution(clamp(a));
  for (int v = 0; v < kVectorBlock; ++v) value.part[v] = a.part[v] * phi.part[v];
}

PARAMIXER_INLINE void gelu_and_slope(const Block<float>& a, Block<float>& value,
                                     Block<float>& slope) {
  const Block<float> clamped = clamp(a);
  const Block<float> phi = normal_distribution(clamped);
  const Block<float> density = normal_density(a);
  for (int v = 0; v < kVectorBlock; ++v) {
    value.part[v] = a.part[v] * phi.part[v];
    slope.part[v] = clamped.part[v] * density.part[v] + phi.part[v];
  }
}

// float64 is for checking: lane by lane, by the C library.
template <typename Body>
PARAMIXER_INLINE void for_each_lane(const Body& body) {
  for (int v = 0; v < kVectorBlock; ++v) {
    for (int lane = 0; lane < kNativeLanes<double>; ++lane) body(v, lane);
  }
}

PARAMIXER_INLINE void gelu(const Block<double>& a, Block<double>& value) {
  for_each_lane([&](int v, int lane) {
    const double x = a.part[v][lane];
    value.part[v][lane] = 0.5 * x * __builtin_erfc(x * -0.7071067811865475244);
  });
}

PARAMIXER_INLINE void gelu_and_slope(const Block<double>& a, Block<double>& value,
                                     Block<double>& slope) {
  for_each_lane([&](int v, int lane) {
    const double x = a.part[v][lane];
    const double phi = 0.5 * __builtin_erfc(x * -0.7071067811865475244);
    value.part[v][lane] = x * phi;
    slope.part[v][lane] = phi + x * 0.3989422804014326779 * __builtin_exp(-0.5 * x * x);
  });
}

// ---- Tiles: (columns, kLinkTile) elements, a column's rows next to each other

// Rows of memory, `pitch` apart, as a tile; rows beyond `count` become zero.
template <typename T>
void load_tile(Accumulate<T>* tile, const T* rows, int64_t pitch, int64_t columns, int count) {
  for (int64_t c = 0; c < columns; ++c) {
    Accumulate<T>* to = tile + c * kLinkTile;
    for (int r = 0; r < count; ++r) to[r] = widen(rows[r * pitch + c]);
    for (int r = count; r < kLinkTile; ++r) to[r] = 0;
  }
}

template <typename T>
void store_tile(T* rows, int64_t pitch, const Accumulate<T>* tile, int64_t columns, int count) {
  for (int r = 0; r < count; ++r) {
    for (int64_t c = 0; c < columns; ++c) rows[r * pitch + c] = narrow<T>(tile[c * kLinkTile + r]);
  }
}

// Brings pieces of rows into the cache while something else is computed: they lie too far apart for
// the processor to foresee them.
template <typename T>
void prefetch_rows(const T* rows, int64_t pitch, int64_t columns, int count) {
  for (int r = 0; r < count; ++r) {
    __builtin_prefetch(rows + r * pitch);
    __builtin_prefetch(rows + r * pitch + columns - 1);
  }
}

// Rows of memory widened, their columns padded with zeros to whole vectors.
template <typename T>
void load_rows(Accumulate<T>* to, const T* rows, int64_t pitch, int64_t columns, int count) {
  for (int r = 0; r < count; ++r) {
    for (int64_t c = 0; c < columns; ++c) to[c] = widen(rows[r * pitch + c]);
    for (int64_t c = columns; c < padded(columns); ++c) to[c] = 0;
    to += padded(columns);
  }
}

// to[c,r] = finish(start(c,r) + sum_d weight[d,c] from[d,r], c, r): one layer on a tile. `start`
// and `finish` take the element's place in the tile.
template <typename A, typename Start, typename Finish>
void multiply_tile(A* to, int64_t columns, const A* weight, const A* from, int64_t depth,
                   const Start& start, const Finish& finish) {
  constexpr int kLanes = kNativeLanes<A>;
  static_assert(kLinkTile % (kVectorBlock * kLanes) == 0);
  for_each_block<kColumnBlock>(columns, [&]<int kCount>(int64_t first) {
    for (int r = 0; r < kLinkTile; r += kVectorBlock * kLanes) {
      const auto place = [&](int c, int v) { return (first + c) * kLinkTile + r + v * kLanes; };
      Native<A> sum[kCount][kVectorBlock];
      for (int c = 0; c < kCount; ++c) {
        for (int v = 0; v < kVectorBlock; ++v) sum[c][v] = start(first + c, place(c, v));
      }
      for (int64_t d = 0; d < depth; ++d) {
        Native<A> row[kVectorBlock];
        for (int v = 0; v < kVectorBlock; ++v) {
          row[v] = load<kLanes>(from + d * kLinkTile + r + v * kLanes);
        }
        for (int c = 0; c < kCount; ++c) {
          const A factor = weight[d * columns + first + c];
          for (int v = 0; v < kVectorBlock; ++v) sum[c][v] += factor * row[v];
        }
      }
      for (int c = 0; c < kCount; ++c) {
        for (int v = 0; v < kVectorBlock; ++v) {
          store<kLanes>(to + place(c, v), finish(place(c, v), sum[c][v]));
        }
      }
    }
  });
}

// sums[a,c] += sum_r left[a,r] right[r,c]: left is a tile of `count` rows, right and sums have
// padded columns. Rows are added in their order.
template <typename A>
void add_row_products(A* sums, const A* left, int64_t left_columns, const A* right,
                      int64_t right_columns, int count) {
  constexpr int kLanes = kNativeLanes<A>;
  const int64_t pitch = padded(right_columns);
  for_each_block<kVectorBlock>(pitch / kLanes, [&]<int kVectors>(int64_t first_vector) {
    for_each_block<kColumnBlock>(left_columns, [&]<int kCount>(int64_t first) {
      A* to = sums + first * pitch + first_vector * kLanes;
      Native<A> sum[kCount][kVectors];
      for (int a = 0; a < kCount; ++a) {
        for (int v = 0; v < kVectors; ++v) sum[a][v] = load<kLanes>(to + a * pitch + v * kLanes);
      }
      for (int r = 0; r < count; ++r) {
        const A* from = right + r * pitch + first_vector * kLanes;
        Native<A> row[kVectors];
        for (int v = 0; v < kVectors; ++v) row[v] = load<kLanes>(from + v * kLanes);
        for (int a = 0; a < kCount; ++a) {
          const A factor = left[(first + a) * kLinkTile + r];
          for (int v = 0; v < kVectors; ++v) sum[a][v] += factor * row[v];
        }
      }
      for (int a = 0; a < kCount; ++a) {
        for (int v = 0; v < kVectors; ++v) store<kLanes>(to + a * pitch + v * kLanes, sum[a][v]);
      }
    });
  });
}

// sums[c] += sum_r tile[c,r]
template <typename A>
void add_row_sums(A* sums, const A* tile, int64_t columns) {
  for (int64_t c = 0; c < columns; ++c) {
    auto sum = Lanes<A, 16>::zero();
    for (int r = 0; r < kLinkTile; r += 16) {
      const auto rows = Lanes<A, 16>::read(tile + c * kLinkTile + r);
      for (int p = 0; p < Lanes<A, 16>::kParts; ++p) sum.part[p] += rows.part[p];
    }
    sums[c] += sum.sum();
  }
}

// ---- The two passes

template <typename T>
const T* block(const void* data, int64_t index, int64_t elements) {
  return static_cast<const T*>(data) + index * elements;
}
template <typename T>
T* block(void* data, int64_t index, int64_t elements) {
  return static_cast<T*>(data) + index * elements;
}

// What a layer starts from and what becomes of its sums, for multiply_tile.
template <typename A>
auto from_bias(const void* bias, int64_t factor, int64_t columns) {
  const A* values = block<A>(bias, factor, columns);
  return [values](int64_t column, int64_t) { return broadcast(values[column]); };
}
constexpr auto kAsItIs = [](int64_t, const auto& sum) { return sum; };

// hidden[j,r] = (hidden_weight[m] x[r] + hidden_bias[m])[j], before the GELU.
template <typename A>
void hidden_layer(A* hidden, const LinkNetworks& n, int64_t m, const A* x) {
  multiply_tile(hidden, n.hidden, block<A>(n.hidden_weight_transposed, m, n.width * n.hidden), x,
                n.width, from_bias<A>(n.hidden_bias, m, n.hidden), kAsItIs);
}

template <typename T>
void link_weights(const LinkNetworks& n, int64_t begin, int64_t end, void* scratch) {
  using A = Accumulate<T>;
  A* x = static_cast<A*>(scratch);
  A* hidden = x + n.width * kLinkTile;
  A* links = hidden + n.hidden * kLinkTile;
  // Rows of the result are put together in the cache: a factor's few links alone are less than a
  // line of memory.
  T* rows = reinterpret_cast<T*>(links + n.outputs * kLinkTile);
  const int64_t row_links = n.factors * n.outputs;
  for (; begin < end; begin += kLinkTile) {
    const int count = static_cast<int>(end - begin < kLinkTile ? end - begin : kLinkTile);
    load_tile(x, block<T>(n.x, begin, n.width), n.width, n.width, count);
    for (int64_t m = 0; m < n.factors; ++m) {
      hidden_layer(hidden, n, m, x);
      for (int64_t i = 0; i < n.hidden * kLinkTile; i += kBlockLanes<A>) {
        Block<A> value;
        gelu(load_block(hidden + i), value);
        store_block(hidden + i, value);
      }
      multiply_tile(links, n.outputs, block<A>(n.output_weight_transposed, m, n.hidden * n.outputs),
                    hidden, n.hidden, from_bias<A>(n.output_bias, m, n.outputs), kAsItIs);
      store_tile(rows + m * n.outputs, row_links, links, n.outputs, count);
    }
    __builtin_memcpy(block<T>(n.result, begin, row_links), rows, count * row_links * sizeof(T));
  }
}

template <typename T>
void link_weights_backward(const LinkNetworks& n, const LinkGradients& gradients, int64_t begin,
                           int64_t end, void* scratch) {
  using A = Accumulate<T>;
  constexpr int kLanes = kNativeLanes<A>;
  A* x = static_cast<A*>(scratch);
  A* grad_x = x + n.width * kLinkTile;
  A* hidden = grad_x + n.width * kLinkTile;
  A* slope = hidden + n.hidden * kLinkTile;
  A* grad = slope + n.hidden * kLinkTile;
  A* x_rows = grad + n.outputs * kLinkTile;
  A* grad_rows = x_rows + padded(n.width) * kLinkTile;
  const int64_t row_links = n.factors * n.outputs;
  for (; begin < end; begin += kLinkTile) {
    const int count = static_cast<int>(end - begin < kLinkTile ? end - begin : kLinkTile);
    load_tile(x, block<T>(n.x, begin, n.width), n.width, n.width, count);
    load_rows(x_rows, block<T>(n.x, begin, n.width), n.width, n.width, count);
    for (int64_t m = 0; m < n.factors; ++m) {
      const T* grad_memory = block<T>(n.grad, begin, row_links) + m * n.outputs;
      load_tile(grad, grad_memory, row_links, n.outputs, count);
      load_rows(grad_rows, grad_memory, row_links, n.outputs, count);
      if (m + 1 < n.factors) prefetch_rows(grad_memory + n.outputs, row_links, n.outputs, count);

      hidden_layer(hidden, n, m, x);
      for (int64_t i = 0; i < n.hidden * kLinkTile; i += kBlockLanes<A>) {
        Block<A> value, derivative;
        gelu_and_slope(load_block(hidden + i), value, derivative);
        store_block(hidden + i, value);
        store_block(slope + i, derivative);
      }
      // From here on `slope` is the gradient of the hidden layer before its GELU.
      A* grad_hidden = slope;
      multiply_tile(
          grad_hidden, n.hidden, block<A>(n.output_weight, m, n.outputs * n.hidden), grad,
          n.outputs, [](int64_t, int64_t) { return Native<A>{}; },
          [slope](int64_t place, const Native<A>& sum) {
            return sum * load<kLanes>(slope + place);
          });

      add_row_products(block<A>(gradients.hidden_weight, m, n.hidden * padded(n.width)),
                       grad_hidden, n.hidden, x_rows, n.width, count);
      add_row_products(
          block<A>(gradients.output_weight_transposed, m, n.hidden * padded(n.outputs)), hidden,
          n.hidden, grad_rows, n.outputs, count);
      add_row_sums(block<A>(gradients.hidden_bias, m, n.hidden), grad_hidden, n.hidden);
      add_row_sums(block<A>(gradients.output_bias, m, n.outputs), grad, n.outputs);
      if (n.grad_x == nullptr) continue;
      multiply_tile(
          grad_x, n.width, block<A>(n.hidden_weight, m, n.hidden * n.width), grad_hidden, n.hidden,
          [&](int64_t, int64_t place) {
            return m == 0 ? Native<A>{} : load<kLanes>(grad_x + place);
          },
          kAsItIs);
    }
    if (n.grad_x != nullptr) {
      store_tile(block<T>(n.grad_x, begin, n.width), n.width, grad_x, n.width, count);
    }
  }
}

}  // namespace
}  // namespace PARAMIXER_ISA_NAMESPACE
}  // namespace paramixer::cpu

// The initializer of InstructionSet::link_kernels.
#define PARAMIXER_LINK_KERNELS_OF(T) \
  {PARAMIXER_ISA_NAMESPACE::link_weights<T>, PARAMIXER_ISA_NAMESPACE::link_weights_backward<T>}
#define PARAMIXER_LINK_KERNELS                                          \
  {PARAMIXER_LINK_KERNELS_OF(double), PARAMIXER_LINK_KERNELS_OF(float), \
   PARAMIXER_LINK_KERNELS_OF(BFloat16), PARAMIXER_LINK_KERNELS_OF(Float16)}
