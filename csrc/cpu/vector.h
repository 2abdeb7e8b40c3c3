// A block of L accumulator lanes (float or double): loading, storing and summing it. Included by
// kernels.inl only, inside the namespace of one instruction set.
//
// A block wider than the machine's vectors is split into parts, so that L, and with it every order
// of summation, is the same for all instruction sets.

#if defined(PARAMIXER_ISA_AVX512)
constexpr int kVectorBytes = 64;
constexpr bool kCanStream = true;
#elif defined(PARAMIXER_ISA_AVX2)
constexpr int kVectorBytes = 32;
constexpr bool kCanStream = true;
#else
constexpr int kVectorBytes = 16;
constexpr bool kCanStream = false;
#endif

template <typename A, int W>
struct VectorOf {
  typedef A type __attribute__((vector_size(W * sizeof(A))));
};
template <typename A>
struct VectorOf<A, 1> {
  typedef A type;
};
template <typename A, int W>
using Vector = typename VectorOf<A, W>::type;

// ---- W elements of storage type T, widened to a vector, and back

#if defined(PARAMIXER_ISA_AVX2) || defined(PARAMIXER_ISA_AVX512)

template <int W>
PARAMIXER_INLINE Vector<float, W> load_half(const Float16* from) {
  if constexpr (W == 4) {
    return (Vector<float, 4>)_mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)from));
  } else if constexpr (W == 8) {
    return (Vector<float, 8>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#if defined(PARAMIXER_ISA_AVX512)
  } else {
    return (Vector<float, 16>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#endif
  }
}

template <int W>
PARAMIXER_INLINE void store_half(Float16* to, const Vector<float, W>& from) {
  if constexpr (W == 4) {
    _mm_storel_epi64((__m128i*)to, _mm_cvtps_ph((__m128)from, _MM_FROUND_TO_NEAREST_INT));
  } else if constexpr (W == 8) {
    _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)from, _MM_FROUND_TO_NEAREST_INT));
#if defined(PARAMIXER_ISA_AVX512)
  } else {
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph((__m512)from, _MM_FROUND_TO_NEAREST_INT));
#endif
  }
}

#else

template <int W>
PARAMIXER_INLINE Vector<float, W> load_half(const Float16* from) {
  Vector<float, W> to;
  for (int lane = 0; lane < W; ++lane) to[lane] = widen(from[lane]);
  return to;
}

template <int W>
PARAMIXER_INLINE void store_half(Float16* to, const Vector<float, W>& from) {
  for (int lane = 0; lane < W; ++lane) to[lane] = narrow<Float16>(from[lane]);
}

#endif

template <int W>
PARAMIXER_INLINE Vector<float, W> load_bfloat16(const BFloat16* from) {
  Vector<uint16_t, W> bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  return (Vector<float, W>)(__builtin_convertvector(bits, Vector<uint32_t, W>) << 16);
}

// As detail::round_to_bfloat16, lane by lane.
template <int W>
PARAMIXER_INLINE void store_bfloat16(BFloat16* to, const Vector<float, W>& from) {
  const auto wide = (Vector<uint32_t, W>)from;
  const auto rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
  const auto quiet = (wide >> 16) | 0x40u;
  const auto chosen = (wide & 0x7fffffffu) > 0x7f800000u ? quiet : rounded;
  const auto bits = __builtin_convertvector(chosen, Vector<uint16_t, W>);
  __builtin_memcpy(to, &bits, sizeof(bits));
}

template <int W, typename T>
PARAMIXER_INLINE Vector<Accumulate<T>, W> load(const T* from) {
  if constexpr (W == 1) {
    return widen(*from);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return load_bfloat16<W>(from);
  } else if constexpr (std::is_same_v<T, Float16>) {
    return load_half<W>(from);
  } else {
    Vector<T, W> to;
    __builtin_memcpy(&to, from, sizeof(to));
    return to;
  }
}

template <int W, typename T>
PARAMIXER_INLINE void store(T* to, const Vector<Accumulate<T>, W>& from) {
  if constexpr (W == 1) {
    *to = narrow<T>(from);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    store_bfloat16<W>(to, from);
  } else if constexpr (std::is_same_v<T, Float16>) {
    store_half<W>(to, from);
  } else {
    __builtin_memcpy(to, &from, sizeof(from));
  }
}

// Four elements, each `stride` after the one before it.
template <typename T>
PARAMIXER_INLINE Vector<Accumulate<T>, 4> load_apart(const T* from, int64_t stride) {
  Vector<Accumulate<T>, 4> to;
  for (int lane = 0; lane < 4; ++lane) to[lane] = widen(from[lane * stride]);
  return to;
}

// Lane i is lane (kFirst + i) / kTimes of `from`: the lanes from kFirst on, were each there kTimes.
template <int kTimes, int kFirst, typename V, int... kLanes>
PARAMIXER_INLINE V repeat_lanes(const V& from, std::integer_sequence<int, kLanes...>) {
  return __builtin_shufflevector(from, from, ((kFirst + kLanes) / kTimes)...);
}

// Every kEvery-th of 4 kEvery elements that follow each other, from kFirst on.
template <int kEvery, int kFirst, typename T, int... kLanes>
PARAMIXER_INLINE auto load_every(const T* from, std::integer_sequence<int, kLanes...>) {
  static_assert(1 <= kEvery && kEvery <= 3);
  const auto a = load<4>(from);
  if constexpr (kEvery == 1) {
    return a;
  } else {
    const auto ab =
        __builtin_shufflevector(a, load<4>(from + 4), (kFirst + kEvery * kLanes) % 8 ...);
    if constexpr (kEvery == 2) {
      return ab;
    } else {
      return __builtin_shufflevector(
          ab, load<4>(from + 8),
          (kFirst + kEvery * kLanes < 8 ? kLanes : 4 + (kFirst + kEvery * kLanes) % 8)...);
    }
  }
}

// Writing past the caches, for results that would not stay in them. `to` is aligned to the vector.
#if defined(PARAMIXER_ISA_AVX512)
template <typename T, typename V>
PARAMIXER_INLINE void stream(T* to, const V& from) {
  _mm512_stream_ps((float*)to, (__m512)from);
}
PARAMIXER_INLINE void stream_fence() { _mm_sfence(); }
#elif defined(PARAMIXER_ISA_AVX2)
template <typename T, typename V>
PARAMIXER_INLINE void stream(T* to, const V& from) {
  _mm256_stream_ps((float*)to, (__m256)from);
}
PARAMIXER_INLINE void stream_fence() { _mm_sfence(); }
#else
template <typename T, typename V>
PARAMIXER_INLINE void stream(T* to, const V& from) {
  __builtin_memcpy(to, &from, sizeof(from));
}
PARAMIXER_INLINE void stream_fence() {}
#endif

// Sum of all lanes by halving: lane i + lane i + W/2, and so on. The order depends on W alone.
template <typename A, int W>
PARAMIXER_INLINE A sum_lanes(const Vector<A, W>& vector) {
  if constexpr (W == 1) {
    return vector;
  } else {
    Vector<A, W / 2> half[2];
    __builtin_memcpy(half, &vector, sizeof(vector));
    return sum_lanes<A, W / 2>(half[0] + half[1]);
  }
}

// sum + a * b, rounded once where the instruction set can. The compiler fuses vectors by itself; of
// single numbers it may make vectors in a way that leaves some products unfused.
template <typename V, typename F>
PARAMIXER_INLINE V multiply_add(const V& sum, const F& a, const V& b) {
#if defined(__FMA__)
  if constexpr (std::is_same_v<V, float>) return __builtin_fmaf(a, b, sum);
  if constexpr (std::is_same_v<V, double>) return __builtin_fma(a, b, sum);
#endif
  return sum + a * b;
}

// L lanes in as few machine vectors as hold them.
template <typename T, int L>
struct Lanes {
  using A = Accumulate<T>;
  static constexpr int kNative = kVectorBytes / int(sizeof(A));
  static constexpr int kWidth = L < kNative ? L : kNative;
  static constexpr int kParts = L / kWidth;
  Vector<A, kWidth> part[kParts];

  static PARAMIXER_INLINE Lanes zero() {
    Lanes lanes;
    for (int p = 0; p < kParts; ++p) lanes.part[p] = Vector<A, kWidth>{};
    return lanes;
  }
  static PARAMIXER_INLINE Lanes all(A lane) {
    Lanes lanes;
    for (int p = 0; p < kParts; ++p)
      lanes.part[p] = lane - Vector<A, kWidth>{};  // + would cost an addition, for lane = -0
    return lanes;
  }
  static PARAMIXER_INLINE Lanes read(const T* from) {
    Lanes lanes;
    for (int p = 0; p < kParts; ++p) lanes.part[p] = load<kWidth>(from + p * kWidth);
    return lanes;
  }
  PARAMIXER_INLINE void write(T* to) const {
    for (int p = 0; p < kParts; ++p) store<kWidth>(to + p * kWidth, part[p]);
  }
  PARAMIXER_INLINE void write_past_caches(T* to) const {
    for (int p = 0; p < kParts; ++p) stream(to + p * kWidth, part[p]);
  }
  PARAMIXER_INLINE void add(const Lanes& other) {
    for (int p = 0; p < kParts; ++p) part[p] += other.part[p];
  }
  PARAMIXER_INLINE void add_scaled(A factor, const Lanes& other) {
    for (int p = 0; p < kParts; ++p) part[p] = multiply_add(part[p], factor, other.part[p]);
  }
  PARAMIXER_INLINE void add_scaled(const Lanes& factor, const Lanes& other) {
    add_product(factor, other);
  }
  PARAMIXER_INLINE void add_product(const Lanes& a, const Lanes& b) {
    for (int p = 0; p < kParts; ++p) part[p] = multiply_add(part[p], a.part[p], b.part[p]);
  }
  // Parts are added pairwise: the same tree as one wide vector's.
  PARAMIXER_INLINE Vector<A, kWidth> sum_parts() const {
    static_assert((kParts & (kParts - 1)) == 0);
    Lanes tree = *this;
    for (int parts = kParts / 2; parts > 0; parts /= 2) {
      for (int p = 0; p < parts; ++p) tree.part[p] += tree.part[p + parts];
    }
    return tree.part[0];
  }
  PARAMIXER_INLINE A sum() const { return sum_lanes<A, kWidth>(sum_parts()); }
};

// Lane i of the result is lane i % h + lane i % h + h of the (i / h)-th segment of kSegment = 2 h
// lanes of `a` followed by `b`, for i in kLanes.
template <int kSegment, typename V, int... kLanes>
PARAMIXER_INLINE auto fold_segments(const V& a, const V& b, std::integer_sequence<int, kLanes...>) {
  constexpr int kHalf = kSegment / 2;
  return __builtin_shufflevector(a, b, (kLanes / kHalf * kSegment + kLanes % kHalf)...) +
         __builtin_shufflevector(a, b, (kLanes / kHalf * kSegment + kLanes % kHalf + kHalf)...);
}

// sums[i] = the sum of the i-th segment of kSegment lanes of `from`, i < kCount, by halving.
template <typename A, int W, int kSegment, int kCount, int kVectors>
PARAMIXER_INLINE void sum_segments(const Vector<A, W> (&from)[kVectors], A* sums) {
  if constexpr (kSegment == 1) {
    __builtin_memcpy(sums, from, kCount * sizeof(A));
  } else if constexpr (kVectors > 1) {
    Vector<A, W> folded[(kVectors + 1) / 2];
    for (int v = 0; v < kVectors; v += 2) {
      folded[v / 2] = fold_segments<kSegment>(from[v], from[v + 1 < kVectors ? v + 1 : v],
                                              std::make_integer_sequence<int, W>());
    }
    sum_segments<A, W, kSegment / 2, kCount>(folded, sums);
  } else if constexpr (W == 2) {
    *sums = from[0][0] + from[0][1];
  } else {
    const Vector<A, W / 2> folded[1] = {
        fold_segments<kSegment>(from[0], from[0], std::make_integer_sequence<int, W / 2>())};
    sum_segments<A, W / 2, kSegment / 2, kCount>(folded, sums);
  }
}

// sums[i] = blocks[i].sum(), to the last bit, for fewer instructions than one by one: from the
// second halving on, a vector holds lanes of several sums.
template <typename T, int L, int kCount>
PARAMIXER_INLINE void sum_each(const Lanes<T, L> (&blocks)[kCount], Accumulate<T>* sums) {
  using Block = Lanes<T, L>;
  Vector<Accumulate<T>, Block::kWidth> whole[kCount];
  for (int i = 0; i < kCount; ++i) whole[i] = blocks[i].sum_parts();
  sum_segments<Accumulate<T>, Block::kWidth, Block::kWidth, kCount>(whole, sums);
}

// Keeps some lanes and sets the others to zero, whatever they hold.
template <typename T, int L>
struct LaneMask {
  using Block = Lanes<T, L>;
  using Integer = std::conditional_t<sizeof(Accumulate<T>) == 8, int64_t, int32_t>;
  Vector<Integer, Block::kWidth> part[Block::kParts];  // all bits or none of each lane

  static PARAMIXER_INLINE LaneMask without_first(int count) {
    Integer lanes[L];
    for (int lane = 0; lane < L; ++lane) lanes[lane] = lane < count ? 0 : -1;
    LaneMask mask;
    __builtin_memcpy(mask.part, lanes, sizeof(lanes));
    return mask;
  }

  PARAMIXER_INLINE Block keep(const Block& block) const {
    Block kept;
    for (int p = 0; p < Block::kParts; ++p) {
      const auto bits = __builtin_bit_cast(decltype(part[0] & part[0]), block.part[p]) & part[p];
      kept.part[p] = __builtin_bit_cast(decltype(kept.part[0] + kept.part[0]), bits);
    }
    return kept;
  }
};
